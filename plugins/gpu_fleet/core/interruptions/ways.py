"""Who acts on an interrupted node, and how: from what EC2 announced, from who owns the node, and from the spec. Pure.

Two loops may look at the same node, Karpenter's and ours. They never contradict each other:

==================  ==========================================  ====================================================
                    Karpenter handles its nodes                 gpu-fleet handles them, and those of node groups
==================  ==========================================  ====================================================
cordon              both (Karpenter by a taint of its own)      gpu-fleet
evictions           Karpenter; gpu-fleet if it does not begin   gpu-fleet
forced deletion     gpu-fleet, before the deadline              gpu-fleet, before the deadline
the node's end      Karpenter                                   gpu-fleet deletes the NodeClaim, or ends the instance
replacement         Karpenter, for the evicted pods             Karpenter, or the node group
==================  ==========================================  ====================================================

A scheduled change is another matter: Karpenter looks for those itself, whoever handles interruptions, and drains the
node at once (``Karpenter.may_poll_ec2`` of the spec). So the package waits whether it begins, and plans a drain of its
own only if not.

Source for Karpenter: aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/controller.go`` (what it does
for which message), ``instancestatus_controller.go`` there (what it does without one), kubernetes-sigs/karpenter v1.14.1
``pkg/controllers/node/termination`` (taint, evictions).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpu_fleet.core.interruptions.messages import URGENCY, Kind, Notice
from gpu_fleet.core.spec import ClusterSpec

#: Seconds that Karpenter is given to begin: it reads its queue by long polls and deletes a NodeClaim within 50 ms of
#: reading the message (aws/karpenter-provider-aws#4028). After that, whatever keeps it, the evictions are ours.
KARPENTER_PATIENCE_S = 10.0
#: Seconds after the message of a scheduled change that Karpenter is given to begin: it asks EC2 once a minute
#: (aws/karpenter-provider-aws v1.14.1 ``instancestatus_controller.go``, InstanceStatusInterval).
KARPENTER_POLL_S = 75.0


class Owner(StrEnum):
    """Who launches a node, and so who replaces it."""

    KARPENTER = "Karpenter"
    NODE_GROUP = "NodeGroup"


class Way(StrEnum):
    """What is done about one node."""

    WATCH = "Watch"  # Karpenter evicts; what is left is forced in time
    DRAIN = "Drain"  # we evict now, and force what is left in time
    PLAN = "Plan"  # a run of gpu_drain replaces it, or drains it in the maintenance window
    SIGNAL = "Signal"  # its pods get what they asked for
    NOTE = "Note"  # it is only reported
    ENDING = "Ending"  # the instance ends already: what ran there is counted


#: The ways in which a run drains a node, or accounts for its drain by others.
ACTED = frozenset({Way.DRAIN, Way.WATCH, Way.ENDING})


@dataclass(frozen=True)
class Decision:
    """
    :ivar why: a clause for the report.
    """

    way: Way
    why: str


def may_act_first(notice: Notice, owner: Owner, spec: ClusterSpec) -> bool:
    """Whether Karpenter may drain the node of a planned drain before that begins."""
    acts = spec.interruption_handler == "karpenter" or spec.karpenter.may_poll_ec2
    return notice.kind is Kind.SCHEDULED and owner is Owner.KARPENTER and acts


def decide(notice: Notice, owner: Owner, spec: ClusterSpec, *, leaving: bool = False) -> Decision:
    """What is done about the node of a notice.

    :param leaving: the node is being removed, by somebody else than this package.
    :raises ValueError: for an unknown kind.
    """
    policy = spec.interruptions
    karpenters = owner is Owner.KARPENTER and spec.interruption_handler == "karpenter"
    match notice.kind:
        case Kind.SPOT | Kind.RESERVATION:
            if karpenters:
                return Decision(Way.WATCH, "Karpenter evicts its pods, and what is left is deleted in time")
            who = "its node group does not drain it" if owner is Owner.NODE_GROUP else "Karpenter has no queue"
            return Decision(Way.DRAIN, f"gpu-fleet evicts its pods: {who}")
        case Kind.STOPPING | Kind.TERMINATING:
            return Decision(Way.ENDING, f"its instance is {notice.action or 'ending'} already")
        case Kind.SCHEDULED:
            if leaving and owner is Owner.KARPENTER:
                return Decision(Way.WATCH, "Karpenter removes it already, ahead of the scheduled change")
            when = "at once" if policy.maintenance is None else "in the maintenance window"
            return Decision(Way.PLAN, f"it is replaced and drained {when}")
        case Kind.REBALANCE:
            if policy.rebalance == "replace":
                return Decision(Way.PLAN, "a new node is validated before this one is drained")
            if policy.rebalance == "signal":
                return Decision(Way.SIGNAL, "each pod gets what its annotation asks for")
            return Decision(Way.NOTE, "rebalance recommendations are ignored (interruptions.rebalance)")
    raise ValueError(f"unknown kind {notice.kind!r} of a notice")


def more_urgent(first: Notice, second: Notice) -> Notice:
    """Of two notices about an instance the one that counts: the more urgent kind, and of equal ones the earlier end.

    The same for either order, so that messages may come in any.
    """
    return min(first, second, key=_urgency)


def _urgency(notice: Notice) -> tuple[int, float, float, str]:
    end = notice.deadline if notice.deadline is not None else float("inf")
    return URGENCY.index(notice.kind), end, notice.at, notice.event


def newest_per_instance(notices: list[Notice]) -> dict[str, Notice]:
    """Instance id to the notice that counts; duplicates and disorder do not matter."""
    found: dict[str, Notice] = {}
    for notice in notices:
        known = found.get(notice.instance)
        found[notice.instance] = notice if known is None else more_urgent(known, notice)
    return found
