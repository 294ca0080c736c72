"""One rung of a pool's ladder at a time: whatever would still buy for another one is removed first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, TransientError
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import PoolClaim, created_at, deleting, name_of
from gpu_fleet.operators.base import attempt
from gpu_fleet.operators.pods import placeholders

if TYPE_CHECKING:
    from gpu_fleet.core.capacity.ladder import Step
    from gpu_fleet.operators.pool import PoolOperator

#: XCom and task-state key of what a pool's cluster looked like before its first rung.
LADDER_START = "ladder_start"
#: Seconds after the last placeholder of a rung is gone within which Karpenter may still make a NodeClaim for it: a
#: scheduling pass works with the pods of its beginning.
PASS_S = 2.0
#: Seconds in which EC2 answers a launch. Before, a NodeClaim is not deleted: Karpenter, which has just asked EC2, would
#: lose sight of the instance and remove it minutes later (aws/karpenter-provider-aws at 1d92708
#: ``pkg/controllers/nodeclaim/garbagecollection``).
ANSWERED_S = 30.0
#: Seconds that NodeClaims of another rung may take to be gone, and the pause between two looks.
GONE_S, PAUSE_S = 90.0, 0.5
#: The reason of a task that has to look again.
CLAIM_STAYS = "ClaimStays"


def begin_ladder(operator: PoolOperator, context: Mapping[str, Any]) -> Step | None:
    """The first rung of the pool's ladder, for the task that requests capacity; ``None`` without a ladder.

    The XCom ``ladder_start`` has what was there before: a retry does not change it.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.capacity.ladder import steps

    ladder, store = steps(operator.this_pool), context["task_state_store"]
    if not ladder:
        return None
    settle(operator, ladder[0])
    kept = store.get(LADDER_START)
    if not isinstance(kept, Mapping) or kept.get("attempt") != attempt(context):
        claims = operator.kube.list(NODE_CLAIM, label_selector=operator.of_pool())
        kept = {"before": sorted(map(name_of, claims)), "heard": heard(operator), "attempt": attempt(context)}
        store.set(LADDER_START, kept)
    context["ti"].xcom_push(LADDER_START, {"before": list(kept["before"]), "heard": list(kept["heard"])})
    operator.log.info("rung 1 of %d: %s", len(ladder), ladder[0])
    return ladder[0]


def heard(operator: PoolOperator) -> list[str]:
    """The UIDs of Karpenter's events about a lack of capacity for the pool; they say nothing of a rung that begins."""
    from gpu_fleet.core.capacity.launch import shortages

    events = operator.kube.list(EVENT, "default", field_selector="involvedObject.kind=NodeClaim")
    found = shortages(operator.node_pool, events, operator.kube.now())
    return sorted(str((event.get("metadata") or {}).get("uid", "")) for event in found)


def settle(operator: PoolOperator, step: Step | None) -> None:
    """Nothing but this rung buys afterwards (``None``: nothing at all); harmless to repeat.

    Only placeholders and NodeClaims that were made for them are removed, and no NodeClaim with an instance: its node
    counts. Instances that EC2 gives while this waits count as well.

    :raises TransientError: ``ClaimStays``: a NodeClaim does not go; another try continues here.
    """
    from gpu_fleet.core.capacity.ladder import surplus

    kube, pool = operator.kube, operator.node_pool
    claims = kube.list(NODE_CLAIM, label_selector=operator.of_pool())
    removed = False
    for pod in surplus(step, placeholders(kube, pool), claims):
        metadata = pod["metadata"]
        # Grace period 0: no kubelet has it, and its name is needed now.
        removed |= kube.delete(ObjectRef(POD, metadata["name"], SYSTEM_NAMESPACE), grace_seconds=0)
        operator.log.info("deleted placeholder %s: it asked for another rung", metadata["name"])
    if removed:
        time.sleep(PASS_S)
    end = time.monotonic() + GONE_S
    while left := _remove_strays(operator, step):
        if time.monotonic() > end:
            raise TransientError(
                f"NodeClaims that were made for another rung of pool {pool} do not go: {', '.join(left)}; is "
                "Karpenter running? The next rung begins only when they are gone",
                reason=CLAIM_STAYS,
            )
        time.sleep(PAUSE_S)


def _remove_strays(operator: PoolOperator, step: Step | None) -> list[str]:
    """Delete NodeClaims of other rungs that EC2 has not answered for long; the names of all that are still there."""
    from gpu_fleet.core.aws.launch_errors import NOT_TRIED
    from gpu_fleet.core.capacity.ladder import strays

    kube = operator.kube
    left = strays(step, kube.list(NODE_CLAIM, label_selector=operator.of_pool()))
    for claim in left:
        metadata, waiting = claim["metadata"], PoolClaim.of(claim).waiting
        age = kube.now() - (created_at(claim) or 0.0)
        if deleting(claim) or (waiting is not None and waiting[1] == NOT_TRIED and age < ANSWERED_S):
            continue
        ref = ObjectRef(NODE_CLAIM, metadata["name"])
        try:
            # This version: one that has an instance by now is looked at again.
            if kube.delete(ref, uid=metadata["uid"], version=metadata["resourceVersion"]):
                operator.log.info("deleted NodeClaim %s: another rung asked for it, and it has no instance", ref.name)
        except Conflict:
            continue
    return [name_of(claim) for claim in left]
