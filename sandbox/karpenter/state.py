"""Karpenter's view of the cluster: nodes with their claims, pods by node, and what DaemonSets will add."""

from __future__ import annotations

from typing import Any

from sandbox.karpenter.conditions import is_true
from sandbox.karpenter.objects import (
    INITIALIZED,
    POOL,
    deleting,
    ephemeral,
    intolerable,
    labels,
    name,
    provider_id,
    same_taint,
    terminal,
)
from sandbox.karpenter.requirements import Requirements, alternatives_of, from_labels
from sandbox.karpenter.scheduling.simulation import Room
from sandbox.kube.informers import Informer
from sandbox.kube.quantities import Resources, add, largest, parse_all, pod_requests

Object = dict[str, Any]


class State:
    """Views over the informers' caches."""

    def __init__(self, pods: Informer, nodes: Informer, claims: Informer, daemon_sets: Informer) -> None:
        self._pods = pods
        self._nodes = nodes
        self._claims = claims
        self._daemon_sets = daemon_sets
        pods.add_index("node", lambda pod: [pod["spec"]["nodeName"]] if pod["spec"].get("nodeName") else [])
        nodes.add_index("provider", lambda node: [node["spec"]["providerID"]] if node["spec"].get("providerID") else [])
        claims.add_index("provider", lambda claim: [provider_id(claim)] if provider_id(claim) else [])

    def pods_on(self, node_name: str) -> list[Object]:
        return self._pods.by_index("node", node_name)

    def node_of(self, claim: Object) -> Object | None:
        found = self._nodes.by_index("provider", provider_id(claim)) if provider_id(claim) else []
        return found[0] if len(found) == 1 else None

    def claim_of(self, node: Object) -> Object | None:
        provider = node["spec"].get("providerID")
        found = self._claims.by_index("provider", provider) if provider else []
        return found[0] if len(found) == 1 else None

    # --- rooms ---------------------------------------------------------------------------------------------------

    def rooms(self, without: set[str] | None = None) -> list[Room]:
        """Nodes and claims (being launched) that may take pods; initialized ones first, then by name.

        :param without: names of claims that are left out (they are about to go).
        """
        left_out = without or set()
        rooms: list[tuple[bool, Room]] = []
        for node in self._nodes.items():
            claim = self.claim_of(node)
            if deleting(node) or (claim is not None and (deleting(claim) or name(claim) in left_out)):
                continue
            rooms.append((labels(node).get(INITIALIZED) != "true" and claim is not None, self._room(node, claim)))
        for claim in self._claims.items():
            if self.node_of(claim) is None and not deleting(claim) and name(claim) not in left_out:
                rooms.append((True, self._room(None, claim)))
        return [room for _, room in sorted(rooms, key=lambda pair: (pair[0], pair[1].name))]

    def _room(self, node: Object | None, claim: Object | None) -> Room:
        settled = claim is None or (node is not None and labels(node).get(INITIALIZED) == "true")
        source = node if node is not None else claim or {}
        free = parse_all((source.get("status") or {}).get("allocatable"))
        taints = list((source.get("spec") or {}).get("taints") or [])
        found = dict(labels(source))
        if not settled and claim is not None:
            # While a node starts, the resources of its instance type count, and its ephemeral taints do not.
            free = largest(free, parse_all((claim.get("status") or {}).get("allocatable")))
            startup = claim["spec"].get("startupTaints") or []
            taints = [
                taint
                for taint in taints
                if not ephemeral(taint) and not any(same_taint(taint, each) for each in startup)
            ]
            found = {**labels(claim), **found}
        node_name = name(node) if node is not None else ""
        found.setdefault("kubernetes.io/hostname", node_name or f"inflight-{name(source)}")
        pods = [pod for pod in (self.pods_on(node_name) if node_name else []) if not terminal(pod)]
        used: Resources = {}
        for pod in pods:
            used = add(used, pod_requests(pod))
        if node is not None and node["spec"].get("unschedulable"):
            taints = [*taints, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
        requirements = from_labels(found)
        missing = self._missing_daemons(requirements, taints, pods)
        used = add(used, missing)
        return Room(
            name=node_name or name(source),
            claim=name(claim) if claim is not None else None,
            has_node=node is not None,
            labels=requirements,
            taints=taints,
            free={key: value - used.get(key, 0) for key, value in free.items()},
            pods=pods,
            initialized=settled,
        )

    def _missing_daemons(self, requirements: Requirements, taints: list[Object], pods: list[Object]) -> Resources:
        there = {
            owner["uid"]
            for pod in pods
            for owner in pod["metadata"].get("ownerReferences") or []
            if owner["kind"] == "DaemonSet"
        }
        total: Resources = {}
        for daemon_set in self._daemon_sets.items():
            if daemon_set["metadata"]["uid"] in there:
                continue
            pod = _daemon_pod(daemon_set)
            if _lands(pod, requirements, taints, frozenset()):
                total = add(total, pod_requests(pod))
        return total

    def daemon_requests(self, requirements: Requirements, taints: list[Object], undefined: frozenset[str]) -> Resources:
        """What the DaemonSets will put on a node of these requirements."""
        total: Resources = {}
        for daemon_set in self._daemon_sets.items():
            pod = _daemon_pod(daemon_set)
            if not deleting(daemon_set) and _lands(pod, requirements, taints, undefined):
                total = add(total, pod_requests(pod))
        return total

    # --- use -----------------------------------------------------------------------------------------------------

    def pool_usage(self, pool_name: str, without: frozenset[str] = frozenset()) -> tuple[Resources, int]:
        """Capacity of a pool's nodes and claims, and how many there are; those that are going do not count
        (core v1.14.1 ``pkg/controllers/state/cluster.go``, ``updateNodePoolResources``, and ``StateNodes.Active``).

        :param without: names of claims that are about to go.
        """
        total: Resources = {}
        count = 0
        for claim in self._claims.items():
            node = self.node_of(claim)
            going = deleting(claim) or (node is not None and deleting(node)) or name(claim) in without
            if labels(claim).get(POOL) != pool_name or going:
                continue
            settled = node is not None and is_true(claim, "Initialized")
            source = node if settled and node is not None else claim
            total = add(total, parse_all((source.get("status") or {}).get("capacity")))
            count += 1
        return total, count

    def deleting_pods(self) -> list[Object]:
        """The pods of nodes that are going."""
        found = []
        for claim in self._claims.items():
            node = self.node_of(claim)
            if node is not None and (deleting(claim) or deleting(node)):
                found += self.pods_on(name(node))
        return found


def _daemon_pod(daemon_set: Object) -> Object:
    template = daemon_set["spec"]["template"]
    meta = {"name": name(daemon_set), "namespace": daemon_set["metadata"]["namespace"], "labels": {}}
    return {"metadata": meta | (template.get("metadata") or {}), "spec": template["spec"]}


def _lands(pod: Object, requirements: Requirements, taints: list[Object], undefined: frozenset[str]) -> bool:
    if intolerable(pod["spec"].get("tolerations"), taints):
        return False
    return any(requirements.compatible(wanted, undefined) for wanted in alternatives_of(pod))
