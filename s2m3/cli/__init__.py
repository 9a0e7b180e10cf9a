"""The command line: a file a command. Anything that computes or starts something lives elsewhere."""
