"""The latency model: simulated seconds per step, as (low, high) of a uniform sample.

Sources: published measurements for EKS and Karpenter where they exist (node registration, image pulls), else a guess,
marked so. ``Settings.speed`` divides them all.
"""

from __future__ import annotations

import random

STEPS: dict[str, tuple[float, float]] = {
    "instance_running": (2, 3),  # RunInstances to state running
    "node_register_cpu": (28, 31),  # running to Node object, CPU instance types
    "node_register_gpu": (90, 110),  # the same for GPU types; guess
    "node_ready": (4, 6),  # Node object to Ready=True; guess
    "plugin_register": (15, 25),  # device-plugin pod running to allocatable GPUs; guess
    "image_pull_small": (3, 5),  # below 300 MB, first pull per node
    "image_pull_medium": (20, 25),  # about 0.5-1 GB, first pull per node
    "container_start": (1, 2),
    "karpenter_start": (4, 6),  # controller pod started to leader
    "vectoradd": (4, 6),  # run time of the sample; guess
    "instance_terminate": (20, 30),  # TerminateInstances to terminated; guess
    "instance_stop": (20, 30),  # StopInstances to stopped; guess
    "group_replaces": (20, 60),  # an Auto Scaling group loses an instance to the launch of the next; guess
    "cluster_create": (540, 970),  # CreateCluster to ACTIVE
    "crd_establish": (0.5, 1.5),  # CustomResourceDefinition created to Established; measured with one API server
    "crd_cache": (0.05, 0.1),  # first request for a custom resource to its cache being filled; guess
    "crd_finalize": (0.2, 0.5),  # definition deleted to its objects being deleted; guess
    "cluster_delete": (120, 240),  # DeleteCluster to gone; guess
    "pod_terminate": (1, 2),  # a container that handles SIGTERM
}


class Latencies:
    """Seeded samples: the n-th sample of a step is the same for the same seed, independent of the other steps."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def sample(self, step: str) -> float:
        """Simulated seconds for one occurrence of a step."""
        low, high = STEPS[step]
        stream = self._streams.setdefault(step, random.Random(f"{self._seed}:{step}"))
        return stream.uniform(low, high)
