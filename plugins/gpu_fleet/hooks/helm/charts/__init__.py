"""Chart archives: pulled to the worker, and their lock file."""
