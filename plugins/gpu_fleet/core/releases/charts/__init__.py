"""Chart archives: where they come from, and the lock file of their digests."""
