"""EKS: clusters, access entries, pod identities, managed node groups, and the tokens of its API servers."""
