"""The cluster spec: one YAML file per cluster, checked before anything runs.

:class:`ClusterSpec` is frozen and refuses unknown keys; :func:`parse_cluster` turns a mapping into one or raises
:class:`SpecErrors` with every problem found.
"""

from __future__ import annotations

from gpu_fleet.core.spec.cluster import ClusterSpec, parse_cluster
from gpu_fleet.core.spec.components import DevicePlugin, Karpenter, RuntimeClass
from gpu_fleet.core.spec.instances import physical_gpus
from gpu_fleet.core.spec.interruptions import SPOT_NOTICE_S, Interruptions
from gpu_fleet.core.spec.node_class import NodeClass
from gpu_fleet.core.spec.operations import Deadlines, Drain, Teardown, Validation
from gpu_fleet.core.spec.places import Aws, Cluster, EksAccess, KubeconfigAccess
from gpu_fleet.core.spec.pools import NodePool, Taint
from gpu_fleet.core.spec.problems import Problem, SpecErrors, problems_of
from gpu_fleet.core.spec.sharing import Exclusive, Mps, TimeSlicing
from gpu_fleet.core.spec.types.durations import Duration, DurationOrNever, Seconds
from gpu_fleet.core.spec.types.names import version_tuple

__all__ = [
    "Aws",
    "Cluster",
    "ClusterSpec",
    "Deadlines",
    "DevicePlugin",
    "Drain",
    "Duration",
    "DurationOrNever",
    "EksAccess",
    "Exclusive",
    "Interruptions",
    "Karpenter",
    "KubeconfigAccess",
    "Mps",
    "NodeClass",
    "NodePool",
    "Problem",
    "RuntimeClass",
    "SPOT_NOTICE_S",
    "Seconds",
    "SpecErrors",
    "Taint",
    "Teardown",
    "TimeSlicing",
    "Validation",
    "parse_cluster",
    "physical_gpus",
    "problems_of",
    "version_tuple",
]
