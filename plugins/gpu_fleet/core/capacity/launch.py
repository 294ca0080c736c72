"""Why a pool's nodes are not launched or do not join, from its NodeClaims and Karpenter's events about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_fleet.core.aws.launch_errors import (
    NOT_TRIED,
    Hope,
    cause_of_reason,
    causes_of_shortage,
    main_cause,
    other_remedies,
)
from gpu_fleet.core.kubernetes.objects import Object, PoolClaim, event_time
from gpu_fleet.core.verdict import Verdict, failed, progressing

#: Karpenter deletes a claim whose launch fails after 5 minutes and stalls all provisioning until then. Until then it
#: retries, and changes in IAM and EC2 take some time to become effective.
LAUNCH_PATIENCE_S = 120.0
#: Karpenter repeats an event at least every few minutes while its cause lasts; an older event no longer counts.
EVENT_AGE_S = 300.0
_NAME_BASE, _NAME_RANDOM = 58, 5

_AFTER_LAUNCH = {
    "Launched": "waits for EC2",
    "Registered": "launched, waits for its node to join",
    "Initialized": "joined, not initialized",
}


NODE_DOES_NOT_JOIN = "NodeDoesNotJoin"


def claim_verdict(claim: PoolClaim, now: float, join_patience_s: float | None = None) -> Verdict:
    """What a NodeClaim without a node waits for.

    :param join_patience_s: seconds after which a launched instance without a node is a failure; ``None``: never.
    """
    if claim.waiting is None:
        return progressing("NodeVanished", f"NodeClaim {claim.name} is complete, but its node {claim.node} is gone")
    kind, reason, message = claim.waiting
    text = f"NodeClaim {claim.name} {_AFTER_LAUNCH[kind]}: {reason} {message}".rstrip()
    waited = 0.0 if claim.waiting_since is None else now - claim.waiting_since
    if kind == "Registered" and join_patience_s is not None and waited >= join_patience_s:
        # Karpenter reports no event: it deletes the claim 15 minutes after the launch and creates another
        # (kubernetes-sigs/karpenter v1.14.1 pkg/controllers/nodeclaim/lifecycle/liveness.go).
        return failed(
            NODE_DOES_NOT_JOIN,
            f"{text}; the instance runs but is not authorized, or cannot reach the API server: check the access "
            "entry of its role, the route from its subnet to the cluster's endpoint, and its console output; Karpenter "
            "gives it up 15 minutes after its launch and buys another",
            permanent=False,
        )
    if kind != "Launched":
        return progressing(reason, text)
    if reason == NOT_TRIED:
        return progressing("WaitingForLaunch", text)
    cause = cause_of_reason(reason)
    text = f"{text}; {cause.remedy}"
    stuck = claim.waiting_since is not None and waited >= LAUNCH_PATIENCE_S
    if not stuck or cause.hope is Hope.WAIT:
        return progressing(cause.reason, text)
    return failed(
        cause.reason,
        f"{text}; until Karpenter gives it up (5 minutes) nothing else in the cluster is provisioned",
        permanent=cause.hope is Hope.NONE,
    )


def shortages(pool: str, claim_events: Iterable[Object], now: float) -> list[Object]:
    """Karpenter's fresh events about a lack of capacity for NodeClaims of this pool, newest first.

    The claims are gone by then, so only their names identify the pool: the API server shortens ``POOL-`` to 58
    characters and adds five (kubernetes/kubernetes v1.36
    ``staging/src/k8s.io/apiserver/pkg/storage/names/generate.go``).
    """
    base = f"{pool}-"[:_NAME_BASE]
    found = []
    for event in claim_events:
        name = str((event.get("involvedObject") or {}).get("name", ""))
        ours = name.startswith(base) and len(name) == len(base) + _NAME_RANDOM and name[len(base) :].isalnum()
        if event.get("reason") == "InsufficientCapacityError" and ours and event_time(event) >= now - EVENT_AGE_S:
            found.append(event)
    return sorted(found, key=event_time, reverse=True)


def shortage_verdict(pool: str, events: Sequence[Object], now: float, started: float) -> Verdict:
    """Why EC2 launches no instance for the pool; a real lack of capacity is waited for.

    A cause that waiting does not cure fails the gate only after a while, so that Karpenter can fall back on other
    capacity types. Events from before the gate's start do not count for that: their cause may be cured.
    """
    messages = [str(event.get("message", "")) for event in events]
    cause = main_cause(messages)
    told = next((text for text in messages if cause in causes_of_shortage(text)), messages[0])
    if cause.reason == "InsufficientCapacity":
        others = other_remedies(messages)
        return progressing(
            cause.reason, f"EC2 has no capacity for pool {pool} at the moment: {told}; {cause.remedy}{others}"
        )
    text = f"EC2 gives pool {pool} no instance: {told}; {cause.remedy}"
    since = min((moment for moment in map(event_time, events) if moment >= started), default=now)
    if cause.hope is Hope.WAIT or now - since < LAUNCH_PATIENCE_S:
        return progressing(cause.reason, text)
    return failed(cause.reason, text, permanent=cause.hope is Hope.NONE)
