"""The hub on this machine: its parts, kept up by whichever command needs them, and used by all."""
