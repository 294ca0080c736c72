"""Whether the capacity reservations of the pools exist and hold what the pools would launch. Pure.

Karpenter passes over a reservation that it cannot use without a word: it looks for active ones only, and an offering of
another instance type or zone fits no node of the pool (aws/karpenter-provider-aws v1.14.1
pkg/providers/instancetype/offering/reserved_capacity_resolver.go).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL, LABEL_RESERVATION_ID
from gpu_fleet.core.kubernetes.objects import labels_of
from gpu_fleet.core.preflight.facts import Object, Prerequisite, State, Unseen, met, unknown
from gpu_fleet.core.reservations.calendar import RECLAIM_S, ending, reclaimed_at, usable, waited_for
from gpu_fleet.core.reservations.reservation import Reservation, ReservationState, shown
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.spec.capacity import CapacityBlock, ReservationTerm

#: The platform of Amazon Linux and Bottlerocket (Amazon EC2 API, ``InstancePlatform``). An AMI of another platform
#: cannot be launched into the reservation (Amazon EC2 User Guide, 'Launch instances using Capacity Blocks').
PLATFORM = "Linux/UNIX"


@dataclass(frozen=True)
class Found:
    """What was found for the reservations of the pools.

    :ivar by_pool: pool -> for each of its terms, in order, the reservations, or why they could not be looked up.
    :ivar zones: of the subnets; ``None`` if they are unknown.
    :ivar nodes: all nodes of the cluster; ``None`` if they are unknown.
    :ivar account: of the identity that looked; empty if it is unknown.
    """

    by_pool: Mapping[str, Sequence[Sequence[Reservation] | Unseen]] = field(default_factory=dict)
    zones: Set[str] | None = None
    nodes: Sequence[Object] | None = None
    account: str = ""


@dataclass(frozen=True)
class Asked:
    """For what a reservation is judged."""

    spec: ClusterSpec
    pool: NodePool
    found: Found
    now: float
    reclaim_s: float


#: What is wrong and what helps; ``None`` if nothing is.
Complaint = tuple[str, str] | None


def judge_reservations(
    spec: ClusterSpec, found: Found, selected: Collection[str], *, now: float, reclaim_s: float = RECLAIM_S
) -> list[Prerequisite]:
    """One judgement per term, and one per pool on the number of instances.

    :param selected: names of the pools that the run is about; problems of others are reported and fail no run.
    :param now: epoch seconds.
    :param reclaim_s: seconds before the end of a block at which EC2 begins to terminate.
    """
    judged: list[Prerequisite] = []
    for pool in spec.node_pools:
        if not (pool.manage and spec.reservations(pool)):
            continue
        asked = Asked(spec, pool, found, now, reclaim_s)
        mine = list(_of_pool(asked, spec.reservations(pool), found.by_pool.get(pool.name) or ()))
        concerns = pool.name in selected and pool.wanted_nodes
        judged += mine if concerns else [_for_later(each) for each in mine]
    return judged


def _for_later(found: Prerequisite) -> Prerequisite:
    if found.state is not State.MISSING:
        return found
    return replace(found, state=State.UNKNOWN, message=f"{found.message}; this run asks for no node of the pool")


def _of_pool(
    asked: Asked, terms: Sequence[ReservationTerm], answers: Sequence[Sequence[Reservation] | Unseen]
) -> Iterator[Prerequisite]:
    good: dict[str, Reservation] = {}
    blind = False
    for number, term in enumerate(terms):
        name = f"capacity reservation {_words(term)} of pool {asked.pool.name}"
        answer = answers[number] if number < len(answers) else Unseen("there was no answer")
        if isinstance(answer, Unseen):
            blind = True
            yield unknown(name, answer)
            continue
        if not answer:
            yield _absent(name, term, asked)
        for reservation in answer:
            each = name if term.id else f"{name}: {reservation.id}"
            complaint = next(filter(None, (rule(reservation, asked) for rule in _RULES)), None)
            if complaint is not None:
                # With tags, reservations of the past and for other pools may be among those found.
                state = State.MISSING if term.id else State.UNKNOWN
                yield Prerequisite(each, state, *complaint)
                continue
            good[reservation.id] = reservation
            yield met(each, _describe(reservation, asked))
    if not blind:
        yield from _enough(asked, list(good.values()))


def _words(term: ReservationTerm) -> str:
    if term.id is not None:
        return term.id
    tags = ", ".join(f"{key}={value}" for key, value in term.tags.items())
    return f"with the tags {tags}" + (f" of account {term.owner}" if term.owner else "")


def _absent(name: str, term: ReservationTerm, asked: Asked) -> Prerequisite:
    account = f"account {asked.found.account}" if asked.found.account else "the account of this identity"
    where = f"{account} has none in {asked.spec.region}, and none is shared with it"
    if term.id is None:
        remedy = "correct the tags or the owner, or tag the reservation; the tags of a shared one belong to its owner"
    else:
        remedy = (
            f"correct the id; or let the owner share {term.id} with the account (AWS Resource Access Manager), if it "
            "is another account's"
        )
    return Prerequisite(name, State.MISSING, where, remedy)


# --- rules: each is about one reservation -----------------------------------------------------------------------------


def _state(reservation: Reservation, asked: Asked) -> Complaint:
    if reservation.over:
        when = f" since {shown(reservation.end)}" if reservation.state == ReservationState.EXPIRED else ""
        return f"it is {reservation.state}{when}", "reserve capacity anew, and name the new reservation"
    if reservation.end is not None and reservation.end <= asked.now:
        return f"it ended at {shown(reservation.end)}", "reserve capacity anew, and name the new reservation"
    if not reservation.coming and reservation.state != ReservationState.ACTIVE:
        return f"its state is {reservation.state!r}, which is not known here", "look at it in EC2's console"
    if reservation.coming and not reservation.block:
        return (
            f"it is {reservation.state}, and begins at {shown(reservation.start)}",
            "run again when it is active; only for Capacity Blocks (capacityBlock) a run waits",
        )
    return None


def _kind(reservation: Reservation, asked: Asked) -> Complaint:
    if reservation.block and asked.pool.capacity_block is None:
        return (
            f"it is a Capacity Block, which ends at {shown(reservation.end)} with all its instances, and pool "
            f"{asked.pool.name} does not say what happens before",
            "write capacityBlock: {} for the defaults, with capacityTypes: [reserved]",
        )
    if not reservation.block and asked.pool.capacity_block is not None:
        return (
            "it is no Capacity Block, so its instances do not end",
            f"remove capacityBlock from pool {asked.pool.name}, or name a Capacity Block",
        )
    return None


def _instance_type(reservation: Reservation, asked: Asked) -> Complaint:
    if reservation.instance_type in asked.pool.instance_types:
        return None
    return (
        f"it holds {reservation.instance_type}, and pool {asked.pool.name} launches "
        f"{', '.join(asked.pool.instance_types)}",
        f"write instanceTypes: [{reservation.instance_type}], or name another reservation",
    )


def _zone(reservation: Reservation, asked: Asked) -> Complaint:
    zones = asked.found.zones
    if not zones or reservation.zone in zones:
        return None
    return (
        f"it is in {reservation.zone}, and the subnets are in {', '.join(sorted(zones))}",
        f"tag a subnet of {reservation.zone} for discovery "
        f"(karpenter.sh/discovery={asked.spec.node_class.discovery_tag}), or name a reservation in their zones",
    )


def _platform(reservation: Reservation, asked: Asked) -> Complaint:
    del asked
    if reservation.platform in ("", PLATFORM):
        return None
    return (
        f"it is for the platform {reservation.platform}, and the nodes run {PLATFORM}",
        f"reserve capacity for {PLATFORM}",
    )


def _tenancy(reservation: Reservation, asked: Asked) -> Complaint:
    del asked
    if reservation.tenancy == "default":
        return None
    return f"its tenancy is {reservation.tenancy}, and the nodes' is default", "reserve capacity of the default tenancy"


def _ends_in_time(reservation: Reservation, asked: Asked) -> Complaint:
    block, end = asked.pool.capacity_block, reservation.end
    if block is None or end is None:
        return None
    if ending(block, end).stops <= asked.now:
        return (
            f"it ends at {shown(end)}, and {block.margin.text} before that nothing begins there any more",
            "extend it (aws ec2 purchase-capacity-block-extension), name another one, or shorten capacityBlock.margin",
        )
    reclaimed = reclaimed_at(reservation, asked.reclaim_s)
    if reclaimed is not None and ending(block, end).empty >= reclaimed:
        least = (end - reclaimed) / 60
        return (
            f"EC2 begins to terminate its instances {least:.0f} minutes before the end, and capacityBlock.emptyBefore "
            f"is {block.empty_before.text}",
            f"write emptyBefore: {least + 15:.0f}m and margin: {least + 45:.0f}m, for example",
        )
    return None


_RULES: tuple[Callable[[Reservation, Asked], Complaint], ...] = (
    _state,
    _kind,
    _instance_type,
    _zone,
    _platform,
    _tenancy,
    _ends_in_time,
)


# --- all of a pool -------------------------------------------------------------------------------------------------


def _enough(asked: Asked, good: Sequence[Reservation]) -> Iterator[Prerequisite]:
    """Whether the reservations that fit have room for the nodes that the pool lacks."""
    pool = asked.pool
    name = f"reserved instances of pool {pool.name}"
    wanted = max(1, pool.wanted_nodes)
    alone = pool.capacity_types == ("reserved",)
    if not good:
        message = f"no reservation of pool {pool.name} can be used"
        yield _lack(name, message, "see the reservations above; or allow other capacityTypes", alone=alone)
        return
    if not alone:
        usable_now = sum(each.available for each in good if each.state == ReservationState.ACTIVE)
        yield met(name, f"{usable_now} available; beyond that Karpenter uses {_others(pool)}")
        return
    ids = {each.id for each in good}
    mine = _standing(pool, ids, asked.found.nodes)
    room = sum(_room(each, pool.capacity_block, asked.now) for each in good)
    if asked.found.nodes is None and room < wanted:
        yield Prerequisite(
            name, State.UNKNOWN, f"{room} available, {wanted} wanted, and how many nodes exist is not known"
        )
    elif mine + room < wanted:
        yield _lack(
            name,
            f"{wanted} node(s) are wanted; {mine} run there and {room} more can be launched "
            f"({'; '.join(f'{each.id}: {each.available} of {each.total} available' for each in good)})",
            "end the other instances in them, enlarge them, lower wantedNodes, or allow other capacityTypes",
            alone=True,
        )
    else:
        yield met(name, f"{mine} run there, {room} more can be launched")


def _others(pool: NodePool) -> str:
    return " or ".join(kind for kind in pool.capacity_types if kind != "reserved")


def _lack(name: str, message: str, remedy: str, *, alone: bool) -> Prerequisite:
    return Prerequisite(name, State.MISSING if alone else State.UNKNOWN, message, remedy)


def _room(reservation: Reservation, block: CapacityBlock | None, now: float) -> int:
    """Instances that can be launched; of a block that has yet to begin, all."""
    if block is not None and waited_for(reservation, now):
        return reservation.total
    if block is not None and not usable(reservation, block, now):
        return 0
    return reservation.available if reservation.launchable else 0


def _standing(pool: NodePool, ids: Collection[str], nodes: Sequence[Object] | None) -> int:
    return sum(
        labels_of(dict(node)).get(LABEL_NODE_POOL) == pool.name
        and labels_of(dict(node)).get(LABEL_RESERVATION_ID, "") in ids
        for node in nodes or ()
    )


def _describe(reservation: Reservation, asked: Asked) -> str:
    held = f"{reservation.total} x {reservation.instance_type} in {reservation.zone}"
    if reservation.coming:
        parts = [reservation.state, held, f"begins at {shown(reservation.start)}"]
    else:
        parts = [reservation.state, held, f"{reservation.available} of them available"]
    if reservation.end is not None:
        parts.append(f"ends at {shown(reservation.end)}")
    if asked.found.account and reservation.owner and reservation.owner != asked.found.account:
        parts.append(f"shared by account {reservation.owner}")
    if reservation.interruptible:
        parts.append("interruptible: EC2 may take its instances back with two minutes' notice (interruptions.queue)")
    if reservation.match == "open":
        parts.append("open: other instances of the account may use it, too")
    return ", ".join(parts)
