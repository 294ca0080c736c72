"""What a run of ``gpu_drain`` was asked for: its Params, and which nodes they choose. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gpu_fleet.core.drain.actions import Limits
from gpu_fleet.core.drain.rules import PARAM_BARE_PODS
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.spec import ClusterSpec

#: How the id of an EC2 instance begins; no node of EKS has such a name.
_INSTANCE = "i-"


@dataclass(frozen=True)
class DrainRequest:
    """The Params of a run.

    :ivar nodes: names of nodes, or ids of their EC2 instances.
    :ivar pools: names of pools.
    :ivar zone: availability zone; empty: any.
    :ivar reservation: id of a capacity reservation; empty: any, or none.
    :ivar minutes: until when the pods have to be gone; ``None``: as their PodDisruptionBudgets allow.
    :ivar until: the same as a moment, epoch seconds.
    :ivar replace_first: as many new nodes are validated before the drain.
    :ivar remove: the nodes are removed after the drain, else they stay cordoned.
    :ivar dry_run: only the plan is made.
    :ivar ask_first: a person approves if users' pods that hold GPUs are evicted.
    :ivar bare_pods: pods without a controller are evicted, too.
    :ivar reason: why, in a person's words.
    """

    nodes: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    zone: str = ""
    reservation: str = ""
    minutes: float | None = None
    until: float | None = None
    replace_first: bool = False
    remove: bool = True
    dry_run: bool = False
    ask_first: bool = True
    bare_pods: bool = False
    reason: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> DrainRequest:
        """
        :raises SpecError: nothing is chosen: a run without Params must not drain a whole cluster.
        """
        minutes = params.get("deadline")
        found = cls(
            nodes=tuple(dict.fromkeys(str(name).strip() for name in params.get("nodes") or ())),
            pools=tuple(map(str, params.get("pools") or ())),
            zone=str(params.get("zone") or "").strip(),
            reservation=str(params.get("reservation") or "").strip(),
            minutes=None if minutes is None else float(minutes),
            until=_moment(params.get("until")),
            replace_first=bool(params.get("replaceFirst")),
            remove=bool(params.get("remove", True)),
            dry_run=bool(params.get("dryRun")),
            ask_first=bool(params.get("askFirst", True)),
            bare_pods=bool(params.get(PARAM_BARE_PODS)),
            reason=str(params.get("reason") or "").strip(),
        )
        if not (found.nodes or found.pools or found.zone or found.reservation):
            raise SpecError(
                "no nodes are chosen",
                field="params",
                remedy="name nodes, pools, a zone or a capacity reservation; of several, the nodes that are in all of "
                "them are drained",
            )
        if found.minutes is not None and found.until is not None:
            raise SpecError(
                "deadline and until both say when the nodes are empty", field="params.until", remedy="give one of them"
            )
        return found

    @property
    def has_deadline(self) -> bool:
        """Whether the pods have to be gone by a time, whatever their PodDisruptionBudgets say."""
        return self.minutes is not None or self.until is not None

    @property
    def ends_a_block(self) -> bool:
        """Whether the nodes end with a Capacity Block: no pod may refuse the drain."""
        return bool(self.reservation) and self.until is not None

    def limits(self, spec: ClusterSpec, began: float) -> Limits:
        """How long the drain of each node goes on.

        :param began: epoch seconds, by the cluster's clock.
        """
        if self.until is not None:
            return Limits(deadline=self.until, margin=float(spec.interruptions.margin))
        if self.minutes is not None:
            return Limits(deadline=began + 60 * self.minutes, margin=float(spec.interruptions.margin))
        policy = spec.drain
        return Limits(
            evict_until=began + float(policy.timeout),
            then_delete=policy.when_time_expires == "delete",
            end=began + float(spec.deadlines.drain),
        )


def _moment(text: Any) -> float | None:
    """
    :raises SpecError: if it is no moment with a time zone.
    """
    if text in (None, ""):
        return None
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise SpecError(f"{text!r} is no moment", field="params.until", remedy="write for example 2026-11-30T15:00:00Z")
    return found.timestamp()


@dataclass(frozen=True)
class Selection:
    """
    :ivar chosen: by name.
    :ivar passed_over: name or instance id -> why it is not drained although it was named or would match.
    """

    chosen: tuple[OurNode, ...] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def select(request: DrainRequest, nodes: Iterable[OurNode]) -> Selection:
    """The nodes that all parts of the request choose.

    :param nodes: all that the package answers for.
    :raises SpecError: ``UnknownNode``: a name is no node of the cluster file's pools and node groups. The id of an
        instance may belong to one that is gone by now: it is only passed over.
    """
    present = sorted(nodes, key=lambda node: node.name)
    known = {each for node in present for each in (node.name, node.instance)}
    missing = [name for name in request.nodes if name not in known]
    if unknown := [name for name in missing if not name.startswith(_INSTANCE)]:
        raise SpecError(
            f"{', '.join(unknown)}: no such node in the pools and node groups of the cluster file",
            field="params.nodes",
            remedy="write names as in kubectl get nodes, or ids of EC2 instances; nodes of other teams are not drained",
            reason="UnknownNode",
        )
    passed_over = dict.fromkeys(missing, "no node has this instance (any more)")
    chosen = []
    for node in present:
        named = not request.nodes or node.name in request.nodes or node.instance in request.nodes
        if not named:
            continue
        outside = (
            (request.pools and node.pool not in request.pools)
            or (request.zone and node.zone != request.zone)
            or (request.reservation and node.reservation != request.reservation)
        )
        if outside:
            if request.nodes:
                of = f", capacity reservation {node.reservation or 'none'}" if request.reservation else ""
                passed_over[node.name] = (
                    f"it is in pool {node.pool}, zone {node.zone or 'unknown'}{of}, which was not asked for"
                )
        elif node.leaving:
            passed_over[node.name] = "it is being removed already, and drained by whoever removes it"
        else:
            chosen.append(node)
    return Selection(tuple(chosen), passed_over)
