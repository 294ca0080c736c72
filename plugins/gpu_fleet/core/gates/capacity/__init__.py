"""Gates on the capacity of a pool: its nodes with their GPUs, and the nodes that a burst of pods buys."""
