"""The container runtime: images, environments, processes and their logs."""
