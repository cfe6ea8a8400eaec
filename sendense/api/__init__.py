"""The hub over HTTP: thin shells over `sendense.service.operations` (docs/api.md)."""
