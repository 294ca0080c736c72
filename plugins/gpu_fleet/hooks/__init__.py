"""I/O: AWS, Kubernetes, Helm, files."""
