"""What a hub does for its users, whichever way they reach it: a command on its machine, or its API."""
