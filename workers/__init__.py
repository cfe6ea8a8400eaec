"""The Celery workers: thin tasks over the functions of `sendense`."""
