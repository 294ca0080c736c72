"""Controllers that create pods: ReplicaSet, Deployment, StatefulSet, DaemonSet and Job."""
