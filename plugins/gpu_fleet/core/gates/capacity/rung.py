"""When a rung of the ladder is given up, as a part of the gate ``pool_capacity``.

Its argument ``rung``: ``number``, ``until`` (epoch seconds by our own clock; ``None``: no time box), ``heard`` (UIDs of
events from before it) and ``again_s`` (after how long Karpenter asks EC2 again).

A rung has done its part once EC2 has launched every missing instance: joining takes as long on each. Until then it is
given up

- at the end of its time box;
- at once for a cause that waiting does not cure (a quota, a zone without the type, a policy);
- at once for a lack of capacity if Karpenter would not ask EC2 again in time: it leaves an offering that was refused
  alone for three minutes (aws/karpenter-provider-aws at 1d92708, ``pkg/cache/cache.go``, ``UnavailableOfferingsTTL``;
  ``unfulfillableCapacityErrorCodes`` in ``pkg/errors/errors.go`` are treated alike).

While a NodeClaim still waits for EC2's answer nothing is known, and the rung lasts. Causes that lie in the node class
or the account are the same on every rung: they fail the gate as they do without a ladder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.aws.launch_errors import Hope, causes_of_shortage, main_cause
from gpu_fleet.core.capacity.launch import claim_verdict, shortages
from gpu_fleet.core.gates.gate import Args, Snapshot
from gpu_fleet.core.kubernetes.objects import Object, PoolClaim, event_time, newest
from gpu_fleet.core.verdict import Verdict, failed

#: The reason with which the gate fails; ``data["cause"]`` and ``data["said"]`` have Karpenter's and EC2's.
GIVEN_UP = "RungGivenUp"
#: The cause of a rung whose time is over while nothing was refused.
TIME_BOX_OVER = "TimeBoxOver"
#: Seconds for which Karpenter leaves a refused offering alone.
AGAIN_S = 180.0
#: Seconds without a NodeClaim after which no other offering of the rung is being tried: Karpenter batches for 10 s.
QUIET_S = 15.0
#: Reasons of a launch that is refused for its instance type, capacity type or zone; another rung may not be.
_OF_RUNG = frozenset(
    {
        "SpotSLRCreationFailed",
        "Unauthorized",
        "FreeTierIneligible",
        "SpotQuotaExceeded",
        "VCPULimitExceeded",
        "InsufficientFreeAddressesInSubnet",
        "InstanceTypeUnsupported",
        "ReservationCapacityExceeded",
        "LaunchFailed",
    }
)
#: Karpenter knows no offering that it may ask for (core at 2266468 ``pkg/controllers/provisioning/scheduling/
#: nodeclaim.go``, ``InstanceTypeFilterError``).
_NO_OFFERING = ("has the required offering", "had a required offering")
#: None ever will do: a zone without subnet, for example.
_NEVER = ("no instance type met all requirements", "no instance type met the scheduling requirements")


def rung_given_up(
    pool: str,
    missing: int,
    arriving: Sequence[PoolClaim],
    pending: Sequence[Object],
    snapshot: Snapshot,
    args: Args,
) -> Verdict | None:
    """Why the rung is given up; ``None`` while it is not, or without a ladder.

    :param missing: wanted nodes that have not joined.
    """
    rung = args.get("rung")
    if not isinstance(rung, Mapping):
        return None
    waiting = [claim for claim in arriving if claim.waiting is not None and claim.waiting[0] == "Launched"]
    if missing - (len(arriving) - len(waiting)) <= 0:
        return None
    now, here = float(args.get("now") or 0.0), float(args.get("here") or 0.0)
    until = None if rung.get("until") is None else float(rung["until"])
    heard = set(rung.get("heard") or ())
    refused = [
        event
        for event in shortages(pool, snapshot.get("claim_events", []), now)
        if (event.get("metadata") or {}).get("uid") not in heard
    ]
    messages = [str(event.get("message", "")) for event in refused]
    if until is not None and here >= until:
        return _over(rung, messages, waiting)
    for claim in waiting:
        verdict = claim_verdict(claim, now)
        if verdict.failed and verdict.reason in _OF_RUNG:
            return _given_up(rung, verdict.reason, verdict.message)
    if waiting or not pending:
        return None
    objection = _objection(pending, snapshot)
    if refused:
        latest = max(map(event_time, refused))
        final = objection is not None and _says(objection, _NO_OFFERING) and event_time(objection) >= latest - 1.0
        if not final and now - latest < QUIET_S:
            return None
        cause = main_cause(messages)
        again = latest + float(rung.get("again_s") or AGAIN_S)
        if cause.hope is Hope.WAIT and (until is None or here + (again - now) < until):
            return None
        later = "" if cause.hope is not Hope.WAIT else "; Karpenter would not ask EC2 again before the rung's time ends"
        return _given_up(rung, cause.reason, f"{_telling(messages)}{later}")
    if objection is not None and _says(objection, _NEVER):
        return _given_up(rung, "NoInstanceTypeFits", f"Karpenter: {objection.get('message', '')}")
    return None


def _over(rung: Mapping[str, Any], messages: Sequence[str], waiting: Sequence[PoolClaim]) -> Verdict:
    """The time box has passed: with the cause that was heard, if there was one."""
    if messages:
        return _given_up(rung, main_cause(messages).reason, _telling(messages))
    if waiting and waiting[0].waiting is not None:
        _, reason, message = waiting[0].waiting
        return _given_up(rung, TIME_BOX_OVER, f"NodeClaim {waiting[0].name} not launched: {reason} {message}".rstrip())
    return _given_up(rung, TIME_BOX_OVER, "Karpenter has launched no instance, and EC2 has refused none")


def _telling(messages: Sequence[str]) -> str:
    """The message that names the deciding cause."""
    cause = main_cause(messages)
    return next((text for text in messages if cause in causes_of_shortage(text)), messages[0])


def _objection(pending: Sequence[Object], snapshot: Snapshot) -> Object | None:
    uids = [str((pod.get("metadata") or {}).get("uid", "")) for pod in pending]
    events = [
        event
        for event in snapshot.get("pod_events", [])
        if ((event.get("source") or {}).get("component") or event.get("reportingComponent")) == "karpenter"
    ]
    return newest(events, "FailedScheduling", uids)


def _says(event: Object, words: Sequence[str]) -> bool:
    return any(text in str(event.get("message", "")) for text in words)


def _given_up(rung: Mapping[str, Any], cause: str, said: str) -> Verdict:
    number = int(rung["number"])
    return failed(
        GIVEN_UP, f"rung {number} is given up: {cause}: {said}", permanent=False, rung=number, cause=cause, said=said
    )
