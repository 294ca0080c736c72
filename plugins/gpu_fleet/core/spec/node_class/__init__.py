"""The node class of the cluster file: what EC2NodeClasses say. Field ``nodeClass``, for all pools and for each."""

from __future__ import annotations

from gpu_fleet.core.spec.node_class.ami import Ami, AmiAlias, Family, check_ami_alias
from gpu_fleet.core.spec.node_class.fields import NodeClass, NodeClassFields, PoolNodeClass, resolved
from gpu_fleet.core.spec.node_class.kubelet import Kubelet
from gpu_fleet.core.spec.node_class.volume import Volume

__all__ = [
    "Ami",
    "AmiAlias",
    "Family",
    "Kubelet",
    "NodeClass",
    "NodeClassFields",
    "PoolNodeClass",
    "Volume",
    "check_ami_alias",
    "resolved",
]
