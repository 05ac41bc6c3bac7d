"""The README's pictures, drawn from a real run."""
