"""`python -m sendense` is the `sendense` command."""

from sendense.cli.main import main

main()
