"""What runs inside a guest, from the image of the repository's code, with its own Python."""
