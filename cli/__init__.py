"""The command line, for operators: a few lines a command over `coordinator`."""
