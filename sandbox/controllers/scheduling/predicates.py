"""Does a pod fit a node? An ordered list of small rules; the first that objects speaks for the node.

Order, words and the difference between 'not now' and 'never by preemption' follow kubernetes/kubernetes
``pkg/scheduler/framework/plugins``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.controllers.matching import node_matches, selects, tolerates, untolerated
from sandbox.controllers.objects import Object, is_deleting, meta
from sandbox.controllers.quantities import pod_requests
from sandbox.controllers.scheduling.snapshot import MAX_PODS, NodeInfo, Snapshot, host_ports, uid

UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Refusal:
    """Why a pod does not fit a node.

    :ivar reasons: one phrase each, as they are counted in the FailedScheduling message.
    :ivar resolvable: whether removing pods from the node could help.
    """

    reasons: tuple[str, ...]
    resolvable: bool


Rule = Callable[[Object, NodeInfo, Snapshot], "Refusal | None"]


def node_unschedulable(pod: Object, info: NodeInfo, _snapshot: Snapshot) -> Refusal | None:
    if not (info.node.get("spec") or {}).get("unschedulable"):
        return None
    if any(tolerates(each, UNSCHEDULABLE_TAINT) for each in pod["spec"].get("tolerations") or []):
        return None
    return Refusal(("node(s) were unschedulable",), resolvable=False)


def taints(pod: Object, info: NodeInfo, _snapshot: Snapshot) -> Refusal | None:
    taint = untolerated(
        (info.node.get("spec") or {}).get("taints"), pod["spec"].get("tolerations"), ("NoSchedule", "NoExecute")
    )
    if taint is None:
        return None
    text = f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}"
    return Refusal((text,), resolvable=False)


def node_affinity(pod: Object, info: NodeInfo, _snapshot: Snapshot) -> Refusal | None:
    if node_matches(pod["spec"], info.node):
        return None
    return Refusal(("node(s) didn't match Pod's node affinity/selector",), resolvable=False)


def ports(pod: Object, info: NodeInfo, _snapshot: Snapshot) -> Refusal | None:
    wanted = host_ports(pod["spec"])
    if wanted and any(wanted & host_ports(other["spec"]) for other in info.pods.values()):
        return Refusal(("node(s) didn't have free ports for the requested pod ports",), resolvable=True)
    return None


def resources(pod: Object, info: NodeInfo, _snapshot: Snapshot) -> Refusal | None:
    reasons = []
    hopeless = False
    allowed = info.allocatable.get(MAX_PODS)
    if allowed is not None and (len(info.pods) + 1) * 1000 > allowed:
        reasons.append("Too many pods")
    used = info.used()
    for name, amount in sorted(pod_requests(pod["spec"]).items()):
        have = info.allocatable.get(name, 0)
        if amount and used.get(name, 0) + amount > have:
            reasons.append(f"Insufficient {name}")
            # More than the whole node offers: no preemption on it can help.
            hopeless = hopeless or amount > have
    return Refusal(tuple(reasons), resolvable=not hopeless) if reasons else None


def topology_spread(pod: Object, info: NodeInfo, snapshot: Snapshot) -> Refusal | None:
    text = "node(s) didn't match pod topology spread constraints"
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            continue
        key = constraint["topologyKey"]
        if key not in info.labels:
            return Refusal((f"{text} (missing required label)",), resolvable=False)
        selector = constraint.get("labelSelector")
        counts: dict[str, int] = {}
        for each in snapshot.nodes.values():
            if key not in each.labels or not node_matches(pod["spec"], each.node):
                continue
            counts.setdefault(each.labels[key], 0)
            counts[each.labels[key]] += sum(
                _same_namespace(pod, other) and not is_deleting(other) and selects(selector, meta(other).get("labels"))
                for other in each.pods.values()
            )
        domains = len(counts)
        least = 0 if domains < (constraint.get("minDomains") or 1) else min(counts.values(), default=0)
        itself = selects(selector, meta(pod).get("labels"))
        if counts.get(info.labels[key], 0) + itself - least > constraint["maxSkew"]:
            return Refusal((text,), resolvable=True)
    return None


def pod_affinity(pod: Object, info: NodeInfo, snapshot: Snapshot) -> Refusal | None:
    affinity = pod["spec"].get("affinity") or {}
    for term in _required(affinity.get("podAffinity")):
        matching = [(where, other) for where, other in snapshot.all_pods() if _term_selects(term, pod, other)]
        if any(_same_domain(term, info, where) for where, _ in matching):
            continue
        # The first pod of a group that wants to be together may go anywhere.
        if not matching and _term_selects(term, pod, pod) and term["topologyKey"] in info.labels:
            continue
        return Refusal(("node(s) didn't match pod affinity rules",), resolvable=False)
    for term in _required(affinity.get("podAntiAffinity")):
        for where, other in snapshot.all_pods():
            if uid(other) != uid(pod) and _same_domain(term, info, where) and _term_selects(term, pod, other):
                return Refusal(("node(s) didn't match pod anti-affinity rules",), resolvable=True)
    for where, other in snapshot.all_pods():
        for term in _required((other["spec"].get("affinity") or {}).get("podAntiAffinity")):
            if uid(other) != uid(pod) and _same_domain(term, info, where) and _term_selects(term, other, pod):
                return Refusal(("node(s) didn't satisfy existing pods anti-affinity rules",), resolvable=True)
    return None


RULES: tuple[Rule, ...] = (
    node_unschedulable,
    taints,
    node_affinity,
    ports,
    resources,
    topology_spread,
    pod_affinity,
)


def refusal(pod: Object, info: NodeInfo, snapshot: Snapshot) -> Refusal | None:
    """The first rule's objection to this pod on this node, or None when it fits."""
    for rule in RULES:
        objection = rule(pod, info, snapshot)
        if objection is not None:
            return objection
    return None


def _required(group: Object | None) -> Iterable[Object]:
    return (group or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _same_domain(term: Object, one: NodeInfo, other: NodeInfo) -> bool:
    key = term["topologyKey"]
    return key in one.labels and one.labels[key] == other.labels.get(key)


def _term_selects(term: Object, owner: Object, other: Object) -> bool:
    """Is ``other`` among the pods that a (anti-)affinity term of ``owner`` speaks about?"""
    namespaces: Any = term.get("namespaces")
    if not namespaces and term.get("namespaceSelector") is None:
        namespaces = [meta(owner)["namespace"]]
    # A non-empty namespaceSelector is taken as 'all namespaces': the sandbox's users write {} or none.
    if namespaces and term.get("namespaceSelector") is None and meta(other)["namespace"] not in namespaces:
        return False
    return selects(term.get("labelSelector"), meta(other).get("labels"))


def _same_namespace(pod: Object, other: Object) -> bool:
    return bool(meta(pod)["namespace"] == meta(other)["namespace"])
