"""Karpenter's scheduling simulation: which pods fit on existing or planned nodes, and which nodes are missing.

After kubernetes-sigs/karpenter ``pkg/controllers/provisioning/scheduling``; pure. Pods are placed one by one, largest
first: on an existing node, on a node already planned, on a new one of the first pool that can take them. A planned node
keeps all instance types that fit what it holds, which is why many small pods end on one large instance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import InstanceType, Offering
from sandbox.karpenter.objects import intolerable, repelled, uid
from sandbox.karpenter.requirements import (
    Incompatible,
    Requirements,
    alternatives_of,
    requirement,
)
from sandbox.karpenter.scheduling.reserving import PutOff, Reserving
from sandbox.kube.quantities import Resources, add, fits, pod_requests, render

Object = dict[str, Any]
Available = Callable[[str, Offering], bool]

HOSTNAME = "kubernetes.io/hostname"
NODES = "nodes"


@dataclass
class Room:
    """An existing node, or one that is being launched.

    :ivar name: of the node, or of the claim while there is no node.
    :ivar free: what pods and missing DaemonSet pods leave.
    :ivar initialized: it is certain to take pods; a node that is being launched may never do so.
    """

    name: str
    claim: str | None
    has_node: bool
    labels: Requirements
    taints: list[Object]
    free: Resources
    pods: list[Object] = field(default_factory=list)
    initialized: bool = True

    def take(self, pod: Object) -> bool:
        """Put the pod here if it fits."""
        requests = pod_requests(pod)
        if intolerable(pod["spec"].get("tolerations"), self.taints) or not fits(requests, self.free):
            return False
        if not any(self.labels.compatible(wanted, frozenset()) for wanted in alternatives_of(pod)):
            return False
        if repelled(pod, self.pods):
            return False
        self.free = {key: value - requests.get(key, 0) for key, value in self.free.items()}
        self.pods.append(pod)
        return True


@dataclass(frozen=True)
class Template:
    """A pool from which nodes can be made.

    :ivar daemons: requests of the DaemonSet pods that will land on its nodes.
    :ivar remaining: what the pool's limits leave; None without limits.
    """

    pool: Object
    requirements: Requirements
    taints: list[Object]
    types: list[InstanceType]
    daemons: Resources
    remaining: Resources | None


@dataclass
class Planned:
    """A node to be made.

    :ivar number: of the planned node within its pass.
    :ivar reserved: ids of the capacity reservations in which it has taken a place.
    """

    template: Template
    requirements: Requirements
    types: list[InstanceType]
    requests: Resources
    pods: list[Object] = field(default_factory=list)
    number: int = 0
    reserved: tuple[str, ...] = ()


@dataclass
class Plan:
    """
    :ivar placed: pod and the room it found.
    :ivar errors: Karpenter's complaint by pod uid.
    """

    new: list[Planned] = field(default_factory=list)
    placed: list[tuple[Object, Room]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


class _NoFit(Exception):
    pass


class Simulation:
    """
    :param available: whether an offering had capacity when EC2 was last asked.
    :param left: free places of a capacity reservation by its id.
    """

    def __init__(
        self,
        rooms: list[Room],
        templates: list[Template],
        available: Available,
        left: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._rooms = rooms
        self._templates = templates
        self._available = available
        self._remaining = [None if each.remaining is None else dict(each.remaining) for each in templates]
        self._hostnames = 0
        self._reserving = Reserving(left)

    def run(self, pods: Iterable[Object]) -> Plan:
        plan = Plan()
        for pod in sorted(pods, key=_largest_first):
            room = next((each for each in self._rooms if each.take(pod)), None)
            if room is not None:
                plan.placed.append((pod, room))
            elif not self._onto_planned(pod, plan):
                try:
                    plan.new.append(self._planned_for(pod))
                except PutOff:
                    continue  # no complaint: the next pass decides
                except _NoFit as error:
                    plan.errors[uid(pod)] = str(error)
        return plan

    def _onto_planned(self, pod: Object, plan: Plan) -> bool:
        for planned in sorted(plan.new, key=lambda each: len(each.pods)):
            try:
                self._add(planned, pod)
                return True
            except (_NoFit, PutOff):
                continue
        return False

    def _planned_for(self, pod: Object) -> Planned:
        errors = []
        for index, template in enumerate(self._templates):
            remaining = self._remaining[index]
            try:
                types = _within(template, remaining)
                self._hostnames += 1
                hostname = requirement(HOSTNAME, "In", [f"hostname-placeholder-{self._hostnames:04d}"])
                planned = Planned(
                    template, Requirements(template.requirements).add(hostname), types, dict(template.daemons)
                )
                planned.number = self._hostnames
                self._add(planned, pod)
            except _NoFit as error:
                errors.append(str(error))
                continue
            if remaining is not None:
                self._remaining[index] = _less_the_largest(remaining, planned.types)
            return planned
        raise _NoFit("; ".join(errors))

    def _add(self, planned: Planned, pod: Object) -> None:
        if (complaint := intolerable(pod["spec"].get("tolerations"), planned.template.taints)) is not None:
            raise _NoFit(complaint)
        if repelled(pod, planned.pods):
            raise _NoFit("unsatisfiable topology constraint for pod anti-affinity, key=kubernetes.io/hostname")
        requests = add(planned.requests, pod_requests(pod))
        first: _NoFit | None = None
        for wanted in alternatives_of(pod):
            try:
                planned.requirements.check(wanted)
            except Incompatible as error:
                first = first or _NoFit(f"incompatible requirements, {error}")
                continue
            merged = planned.requirements.merged(wanted)
            try:
                types = self._filtered(planned.types, merged, requests)
            except _NoFit as error:
                first = first or error
                continue
            planned.reserved = self._reserving.take(planned.number, types, merged)
            planned.requirements, planned.types, planned.requests = merged, types, requests
            planned.pods.append(pod)
            return
        raise first or _NoFit("no requirement alternative")

    def _filtered(self, types: list[InstanceType], wanted: Requirements, requests: Resources) -> list[InstanceType]:
        """
        :raises _NoFit: naming the criteria that exclude everything (``InstanceTypeFilterError``).
        """
        of_types = Requirements({key: item for key, item in wanted.items() if key != HOSTNAME})
        kept = []
        seen = {"requirements": False, "fits": False, "offering": False}
        pairs = {"requirements+fits": False, "requirements+offering": False, "fits+offering": False}
        for each in types:
            meets = all(
                key not in each.requirements or each.requirements.compatible(Requirements({key: item}))
                for key, item in of_types.items()
            )
            room = fits(requests, each.allocatable)
            offered = any(self._available(each.name, offering) for offering in each.offered(wanted))
            seen["requirements"] |= meets
            seen["fits"] |= room
            seen["offering"] |= offered
            pairs["requirements+fits"] |= meets and room and not offered
            pairs["requirements+offering"] |= meets and offered and not room
            pairs["fits+offering"] |= room and offered and not meets
            if meets and room and offered:
                kept.append(each)
        if not kept:
            raise _NoFit(f"{_why(seen, pairs)}, requirements={of_types.shown()}, resources={show_resources(requests)}")
        return kept


def _why(seen: dict[str, bool], pairs: dict[str, bool]) -> str:
    texts = {
        "requirements": "met the scheduling requirements",
        "fits": "had enough resources",
        "offering": "had a required offering",
    }
    missing = [text for name, text in texts.items() if not seen[name]]
    if len(missing) > 1:
        return f"no instance type {' or '.join(missing)}"
    if not seen["requirements"]:
        return "no instance type met all requirements"
    if not seen["fits"]:
        return "no instance type has enough resources"
    if not seen["offering"]:
        return "no instance type has the required offering"
    if pairs["requirements+fits"]:
        return (
            "no instance type which met the scheduling requirements and had enough resources, had a required offering"
        )
    if pairs["fits+offering"]:
        return "no instance type which had enough resources and the required offering met the scheduling requirements"
    if pairs["requirements+offering"]:
        return (
            "no instance type which met the scheduling requirements and the required offering had the required "
            "resources"
        )
    return "no instance type met the requirements/resources/offering tuple"


def _within(template: Template, remaining: Resources | None) -> list[InstanceType]:
    pool = f"(NodePool={template.pool['metadata']['name']})"
    if remaining is None:
        return template.types
    if remaining.get(NODES) == 0:
        raise _NoFit(f"node limits have been exhausted for nodepool {pool}")
    # No type has a capacity of nodes, so a limit on them excludes types only once it has been exceeded.
    types = [
        each for each in template.types if all(each.capacity.get(key, 0) <= left for key, left in remaining.items())
    ]
    if not types:
        raise _NoFit(f"all available instance types exceed limits for nodepool {pool}")
    return types


def _less_the_largest(remaining: Resources, types: list[InstanceType]) -> Resources:
    """The new node's type is not known yet: the largest that it may be counts.

    Not as a node, though: what is taken off is the types' capacity, and none has any of ``nodes``. So ``limits.nodes``
    holds between passes and not within one (core v1.14.1 ``scheduler.go``, ``subtractMax``;
    kubernetes-sigs/karpenter#2915).
    """
    return {
        key: value - max((each.capacity.get(key, 0) for each in types), default=0) for key, value in remaining.items()
    }


def _largest_first(pod: Object) -> tuple[int, int, str, str]:
    requests = pod_requests(pod)
    meta = pod["metadata"]
    created = meta.get("creationTimestamp") or ""
    return -requests.get("cpu", 0), -requests.get("memory", 0), created, meta.get("uid", "")


def show_resources(resources: Resources) -> str:
    """Compact JSON, keys sorted, as Karpenter prints it."""
    shown = {key: render(key, value) for key, value in sorted(resources.items()) if value}
    return json.dumps(shown, separators=(",", ":"))
