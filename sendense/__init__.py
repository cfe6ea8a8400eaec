"""Sendense copies disks over NBD, in parallel, resumable and verified."""

__version__ = "0.1.0"
