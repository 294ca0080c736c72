"""The GPUs of a node: physical identities, device manager, plugin configuration, labels, and faults."""
