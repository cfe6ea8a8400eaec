"""The command line: thin shells over plain functions."""
