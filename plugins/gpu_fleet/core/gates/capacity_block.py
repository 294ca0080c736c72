"""Gate ``capacity_blocks``: the Capacity Blocks of some pools have begun.

Arguments: ``pools``: by name ``{"terms": [terms of the cluster file], "block": {the field capacityBlock}}``; ``until``:
epoch seconds after which nobody waits any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.queries import Query
from gpu_fleet.core.reservations.calendar import ending, usable, waited_for
from gpu_fleet.core.reservations.reservation import Reservation, each_once, queries, shown
from gpu_fleet.core.spec.capacity import CapacityBlock, ReservationTerm
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready


def _queries(args: Args) -> tuple[Query, ...]:
    return tuple(query for pool, each in _pools(args).items() for query in queries(pool, _terms(each)))


def _pools(args: Args) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = args["pools"]
    return found


def _terms(pool: Mapping[str, Any]) -> list[ReservationTerm]:
    return [ReservationTerm.model_validate(term) for term in pool["terms"]]


def _judge(snapshot: Snapshot, args: Args) -> Verdict:
    verdicts = {pool: _of_pool(pool, each, snapshot, args) for pool, each in _pools(args).items()}
    # A pool whose block never comes fails the wait at once; the others would only wait longer for the same end.
    for verdict in verdicts.values():
        if verdict.failed:
            return verdict
    for verdict in verdicts.values():
        if not verdict.ready:
            return verdict
    if not verdicts:
        return failed("NoCapacityBlock", "no pool with a Capacity Block was named")
    begun = {pool: (verdict.data or {}).get("block") for pool, verdict in verdicts.items()}
    return ready("CapacityBlockBegun", "; ".join(verdict.message for verdict in verdicts.values()), blocks=begun)


def _of_pool(pool: str, args: Mapping[str, Any], snapshot: Snapshot, times: Args) -> Verdict:
    now, until = float(times["now"]), float(times["until"])
    block, terms = CapacityBlock.model_validate(args["block"]), _terms(args)
    found = each_once(item for query in queries(pool, terms) for item in snapshot[query.key])
    blocks = [each for each in found if each.block]
    if not blocks:
        named = ", ".join(sorted({term.id or str(dict(term.tags)) for term in terms}))
        return failed(
            "CapacityBlockNotFound",
            f"pool {pool}: {named} is no Capacity Block of this account and region, or shared with it; correct "
            "capacityReservations",
        )
    if in_use := [each for each in blocks if usable(each, block, now)]:
        first = min(in_use, key=lambda each: (each.end or 0.0, each.id))
        return ready("CapacityBlockBegun", f"pool {pool}: {first} has begun{_until(first)}", block=first.to_json())
    coming = [each for each in blocks if waited_for(each, now)]
    if coming:
        return _waits(pool, min(coming, key=lambda each: (each.start or float("inf"), each.id)), now, until)
    last = max(blocks, key=lambda each: (each.end or 0.0, each.id))
    if not last.over and last.end is not None and ending(block, last.end).stops <= now:
        return failed(
            "CapacityBlockEnding",
            f"pool {pool}: {last} ends at {shown(last.end)}, and {block.margin.text} before that nothing begins there "
            "any more; extend it, or name the next one in capacityReservations",
        )
    return failed(
        "CapacityBlockOver",
        f"pool {pool}: {last} is {last.state}, and none of the pool's blocks is to come; name the next one in "
        "capacityReservations",
    )


def _waits(pool: str, reservation: Reservation, now: float, until: float) -> Verdict:
    words = f"pool {pool}: {reservation} begins at {shown(reservation.start)} (state {reservation.state})"
    if reservation.start is not None and reservation.start > until:
        return failed(
            "CapacityBlockTooFar",
            f"{words}, later than this run waits (capacityBlock.wait, until {shown(until)}); start a run nearer to "
            "that time, or raise capacityBlock.wait",
        )
    late = " by now; EC2 has yet to deliver it" if reservation.start is not None and reservation.start <= now else ""
    return progressing("CapacityBlockNotStarted", f"{words}{late}")


def _until(reservation: Reservation) -> str:
    return f", and ends at {shown(reservation.end)}" if reservation.end is not None else ""


CAPACITY_BLOCKS = Gate("capacity_blocks", _queries, _judge)
