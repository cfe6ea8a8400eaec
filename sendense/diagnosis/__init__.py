"""Check-ups of an installation: what is looked at on a hub's machine and on a node's, and what to do."""
