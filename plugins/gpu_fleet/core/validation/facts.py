"""What is known of a node before anything is run on it: the facts, and what the cluster spec promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.device_plugin.causes import MPS_DAEMON, container_started, initialized_at, plugin_pods
from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin
from gpu_fleet.core.device_plugin.gpu_count import vouched_for
from gpu_fleet.core.device_plugin.second import OnNode, plugins_on
from gpu_fleet.core.kubernetes.injected import Injected, injected_trouble
from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_DEVICE_PLUGIN, SERVED
from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolNode,
    condition,
    deleting,
    labels_of,
    name_of,
    node_of,
    quantity,
)
from gpu_fleet.core.manifests.build import pool_labels

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool


@dataclass(frozen=True)
class DaemonPod:
    """A DaemonSet's pod on the node.

    :ivar trouble: why it is not Ready, empty if it is.
    :ivar started: epoch seconds at which its newest container started.
    :ivar injected: if it is not Ready only because of a container that a webhook has added: that one.
    """

    name: str
    trouble: str
    started: float | None
    injected: Injected | None = None


@dataclass(frozen=True)
class Promise:
    """What the cluster spec promises of every node of the pool.

    :ivar labels: of the node; with ``manage: false`` only the one that our device plugin needs.
    :ivar taints: as (key, effect); none with ``manage: false``.
    :ivar plugin: whether the package manages the device plugin; else it is a DaemonSet of others, or part of the AMI.
    :ivar built_in: whether it is part of the AMI.
    """

    labels: Mapping[str, str]
    taints: Sequence[tuple[str, str]]
    mps: bool
    plugin: bool
    minimum_driver: str | None = None
    minimum_total: float = 0.7
    tolerance: float = 0.25
    built_in: bool = False

    @property
    def no_other(self) -> bool:
        """Whether every plugin of others is one too many; else the first of them serves the node."""
        return self.plugin or self.built_in

    @classmethod
    def of(cls, spec: ClusterSpec, pool: NodePool) -> Promise:
        validation, served = spec.validation, {LABEL_DEVICE_PLUGIN: SERVED}
        return cls(
            labels=pool_labels(pool) if pool.manage else served if spec.device_plugin.manage else {},
            taints=[(taint.key, taint.effect) for taint in pool.taints] if pool.manage else [],
            mps=pool.mps,
            plugin=spec.device_plugin.manage and not spec.brings_plugin(pool),
            built_in=spec.brings_plugin(pool),
            minimum_driver=validation.minimum_driver,
            minimum_total=validation.throughput.minimum_total,
            tolerance=validation.throughput.tolerance,
        )


@dataclass(frozen=True)
class NodeFacts:
    """One node and what belongs to it, at one moment.

    :ivar view: the node; ``None`` if it is gone or leaving.
    :ivar capacity: ``nvidia.com/gpu`` in the capacity, which counts unhealthy devices too; allocatable does not.
    :ivar hardware: status, reason and message of the EKS node monitoring agent's condition; ``None`` without the agent.
    :ivar runtime_class: whether the RuntimeClass exists.
    :ivar initialized_at: epoch seconds at which Karpenter saw the GPUs registered.
    :ivar others: device plugins on the node that others manage, the one that started first before the rest.
    """

    name: str
    view: PoolNode | None
    labels: Mapping[str, str]
    taints: frozenset[tuple[str, str]]
    capacity: int | None
    hardware: tuple[str, str, str] | None
    runtime_class: bool
    plugin: DaemonPod | None
    mps_daemon: DaemonPod | None
    initialized_at: float | None = None
    others: tuple[OnNode, ...] = ()


def node_facts(
    name: str,
    node: Object | None,
    *,
    pods: Iterable[Object],
    runtime_class: bool,
    claims: Iterable[Object] = (),
    daemon_set: str = "",
    plugins: Iterable[DaemonSetPlugin] = (),
    pods_of_others: Iterable[Object] = (),
    ours: bool = True,
) -> NodeFacts:
    """The facts about a node.

    :param node: the Node object, ``None`` if there is none.
    :param pods: all pods of the device plugin's namespace.
    :param claims: NodeClaims, of any node.
    :param daemon_set: the plugin's, see :func:`gpu_fleet.core.device_plugin.causes.plugin_pods`.
    :param plugins: DaemonSets with a device plugin that others manage.
    :param pods_of_others: all pods of their namespaces.
    :param ours: whether the package's own plugin is to serve the node; else the first of the others does.
    """
    item: Object = node or {}
    view = PoolNode.of(item) if node is not None else None
    spec, status = item.get("spec") or {}, item.get("status") or {}
    here = [pod for pod in pods if node_of(pod) == name and not deleting(pod)]
    theirs = [pod for pod in pods_of_others if node_of(pod) == name and not deleting(pod)]
    others = tuple(plugins_on(item, plugins, theirs)) if node is not None else ()
    served_by = plugin_pods(here, daemon_set) if ours else [each.pod for each in others[:1] if each.pod is not None]
    return NodeFacts(
        name=name,
        view=None if view is None or view.leaving else view,
        labels=labels_of(item),
        taints=frozenset((str(t.get("key", "")), str(t.get("effect", ""))) for t in spec.get("taints") or []),
        capacity=quantity((status.get("capacity") or {}).get(GPU_RESOURCE)),
        hardware=None if view is None else view.hardware,
        runtime_class=runtime_class,
        plugin=_newest(served_by),
        mps_daemon=_newest(pod for pod in (here if ours else theirs) if MPS_DAEMON in _owner(pod)),
        initialized_at=initialized_at(name, claims),
        others=others,
    )


def _owner(pod: Object) -> str:
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    return next((str(owner.get("name", "")) for owner in owners if owner.get("kind") == "DaemonSet"), "")


def _newest(pods: Iterable[Object]) -> DaemonPod | None:
    found = max(pods, key=lambda pod: str((pod.get("metadata") or {}).get("creationTimestamp", "")), default=None)
    return None if found is None else _daemon_pod(found)


def _daemon_pod(pod: Object) -> DaemonPod:
    status = pod.get("status") or {}
    containers: list[dict[str, Any]] = list(status.get("containerStatuses") or [])
    states = [dict(container.get("state") or {}) for container in containers]
    trouble = ""
    if (condition(pod, "Ready") or {}).get("status") != "True":
        waiting: dict[str, Any] = next((state["waiting"] for state in states if state.get("waiting")), {})
        words = f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
        trouble = words or f"not Ready, phase {status.get('phase', 'unknown')}"
    return DaemonPod(name_of(pod), trouble, container_started(pod), injected_trouble(pod))


@dataclass(frozen=True)
class Looked:
    """What the rules look at: facts, promise, and the numbers.

    :ivar physical: GPUs according to EC2.
    :ivar replicas: how often each is promised.
    """

    facts: NodeFacts
    promise: Promise
    physical: int
    replicas: int

    @property
    def slots(self) -> int:
        return self.physical * self.replicas

    @property
    def whose(self) -> str:
        """Where the plugin's config is, if others manage it; appended to a message."""
        if self.promise.built_in:
            return "; the plugin there is part of the AMI, and configured by the EC2NodeClass's userData"
        if self.promise.plugin or not self.facts.others:
            return ""
        plugin = self.facts.others[0].plugin
        config = (
            f"ConfigMap {plugin.namespace}/{plugin.found.config_map}" if plugin.found.config_map else "no ConfigMap"
        )
        return f"; the plugin there is {plugin}, which others manage, with {config}"

    @property
    def gpus(self) -> int:
        """Allocatable; 0 where the node does not have the resource."""
        return (self.facts.view.gpus if self.facts.view is not None else None) or 0

    @property
    def vouched(self) -> bool:
        """Whether the plugin's pod has been running since the GPUs were first seen."""
        started = self.facts.plugin.started if self.facts.plugin is not None else None
        return vouched_for(started, self.facts.initialized_at, now=None)
