"""Where the time of a node goes, from the pod that waits for it to the first user's pod on it."""
