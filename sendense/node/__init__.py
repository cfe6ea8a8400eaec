"""A node: the workers of a site, kept up on one machine for a hub on another."""
