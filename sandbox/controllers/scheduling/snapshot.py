"""The nodes and the pods on them, as the scheduler sees them at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sandbox.controllers.objects import Object, is_finished, meta
from sandbox.controllers.quantities import Resources, add, parse_all, pod_requests

MAX_PODS = "pods"


def priority(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def uid(pod: Object) -> str:
    return str(meta(pod)["uid"])


def host_ports(spec: Object) -> set[tuple[str, int]]:
    ports = set()
    for container in spec.get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                ports.add((port.get("protocol", "TCP"), int(port["hostPort"])))
    return ports


@dataclass
class NodeInfo:
    """A node with the pods that are on it or promised to it."""

    node: Object
    pods: dict[str, Object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(meta(self.node)["name"])

    @cached_property
    def allocatable(self) -> Resources:
        return parse_all((self.node.get("status") or {}).get("allocatable"))

    @property
    def labels(self) -> dict[str, str]:
        return meta(self.node).get("labels") or {}

    def used(self) -> Resources:
        total: Resources = {}
        for pod in self.pods.values():
            add(total, pod_requests(pod["spec"]))
        return total

    def without(self, pods: Iterable[Object]) -> NodeInfo:
        gone = {uid(pod) for pod in pods}
        return NodeInfo(self.node, {key: pod for key, pod in self.pods.items() if key not in gone})

    def plus(self, pods: Iterable[Object]) -> NodeInfo:
        return NodeInfo(self.node, self.pods | {uid(pod): pod for pod in pods})


class Snapshot:
    """All nodes with their pods. ``assumed`` are bindings not yet seen back: uid → (pod, node name)."""

    def __init__(self, nodes: Iterable[Object], pods: Iterable[Object], assumed: dict[str, tuple[Object, str]]) -> None:
        self.nodes: dict[str, NodeInfo] = {
            meta(node)["name"]: NodeInfo(node) for node in sorted(nodes, key=lambda each: str(meta(each)["name"]))
        }
        for pod in pods:
            place = pod["spec"].get("nodeName")
            if place in self.nodes and not is_finished(pod):
                self.nodes[place].pods[uid(pod)] = pod
        for pod, place in assumed.values():
            self.assume(pod, place)

    def assume(self, pod: Object, node: str) -> None:
        """Count a pod on a node before the API server reports it there."""
        if node in self.nodes:
            self.nodes[node].pods[uid(pod)] = pod

    def replaced(self, info: NodeInfo) -> Snapshot:
        """The same picture with one node changed."""
        other = Snapshot((), (), {})
        other.nodes = self.nodes | {info.name: info}
        return other

    def all_pods(self) -> Iterable[tuple[NodeInfo, Any]]:
        for info in self.nodes.values():
            for pod in info.pods.values():
                yield info, pod
