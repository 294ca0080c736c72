"""Objects in memory, and the paths on which they are written, deleted and evicted."""
