"""Local mode: one machine, nothing to configure. A private Redis, a private worker, private servers, one job."""
