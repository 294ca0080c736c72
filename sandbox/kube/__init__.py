"""The Kubernetes client of the controllers, the nodes and Karpenter: requests, informers, work queues, events."""
