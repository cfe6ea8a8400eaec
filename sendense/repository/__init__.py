"""Restore points as files: a folder for each, found and read without any database."""
