"""The conditions Consolidatable and Drifted of NodeClaims (``pkg/controllers/nodeclaim/disruption``)."""

from __future__ import annotations

from typing import Any

from sandbox.karpenter.cloudprovider.catalog import INSTANCE_TYPE, instance_type
from sandbox.karpenter.cloudprovider.cloud import image_for
from sandbox.karpenter.conditions import Conditions, condition
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers import nodeclass
from sandbox.karpenter.controllers.lifecycle import DEPENDENTS
from sandbox.karpenter.controllers.podevents import PodEvents
from sandbox.karpenter.durations import seconds
from sandbox.karpenter.objects import HASH, HASH_VERSION_KEY, POOL, annotations_of, deleting, labels, ours
from sandbox.karpenter.requirements import from_entries, from_labels

Object = dict[str, Any]

#: Simulated seconds between two checks of a claim.
RECHECK = 300.0
AMI_DRIFT = "AMIDrift"


class ClaimConditions:
    """Keeps the conditions ``Consolidatable`` and ``Drifted`` of claims."""

    def __init__(self, context: Context, pod_events: PodEvents) -> None:
        self._context = context
        self._pod_events = pod_events

    async def reconcile(self, claim_name: str) -> None:
        context = self._context
        claim = context.claims.get(claim_name)
        if claim is None or deleting(claim) or not ours(claim["spec"]["nodeClassRef"]):
            return
        pool = context.pools.get(labels(claim).get(POOL, ""))
        if pool is None or not condition(claim, "Launched"):
            return
        conditions = Conditions(claim, DEPENDENTS)
        # Claims of a pool with a fixed number of nodes are never consolidated (``runReconcilers``).
        again = float("inf")
        if pool["spec"].get("replicas") is None:
            again = self._consolidatable(pool, claim, conditions)
        await self._drifted(pool, claim, conditions)
        if conditions.changed:
            await context.write_status(claim, {**claim["status"], "conditions": conditions.shown()})
        context.condition_queue.add_after(claim_name, min(again, context.clock.real(RECHECK)))

    def _consolidatable(self, pool: Object, claim: Object, conditions: Conditions) -> float:
        """Real seconds until the next look."""
        after = seconds((pool["spec"].get("disruption") or {}).get("consolidateAfter"))
        if after is None or not conditions.is_true("Initialized"):
            conditions.clear("Consolidatable")
            return float("inf")
        left = self._pod_events.left(pool, claim)
        if left > 0:
            conditions.clear("Consolidatable")
            return left
        conditions.set_true("Consolidatable")
        return float("inf")

    async def _drifted(self, pool: Object, claim: Object, conditions: Conditions) -> None:
        if not conditions.is_true("Launched"):
            conditions.clear("Drifted")
            return
        node_class = self._context.node_classes.get(claim["spec"]["nodeClassRef"]["name"])
        reason = drift_of(pool, node_class, claim) or await self._ami_drift(node_class, claim)
        if reason is None:
            conditions.clear("Drifted")
        elif condition(claim, "Drifted").get("reason") != reason:
            conditions.set_true("Drifted", reason, reason)

    async def _ami_drift(self, node_class: Object | None, claim: Object) -> str | None:
        """Whether the class would give this instance type another AMI today (aws ``pkg/cloudprovider/drift.go``)."""
        images = ((node_class or {}).get("status") or {}).get("amis") or []
        image = (claim.get("status") or {}).get("imageID")
        shape = await self._context.catalog.shape(labels(claim).get(INSTANCE_TYPE, ""))
        if not images or not image or shape is None:
            return None
        return (
            None if image_for(images, instance_type(shape, (), self._context.settings.region)) == image else AMI_DRIFT
        )


def drift_of(pool: Object, node_class: Object | None, claim: Object) -> str | None:
    """Why a claim is not what its pool and class would make today, AMIs aside, or None."""
    known, made = annotations_of(pool), annotations_of(claim)
    if _differ(known, made, HASH, HASH_VERSION_KEY):
        return "NodePoolDrifted"
    wanted = from_entries(pool["spec"]["template"]["spec"].get("requirements"))
    if not from_labels(labels(claim)).compatible(wanted, frozenset()):
        return "RequirementsDrifted"
    if node_class is None:
        return None
    if _differ(annotations_of(node_class), made, nodeclass.HASH, nodeclass.HASH_VERSION_KEY):
        return "NodeClassDrift"
    return None


def _differ(known: dict[str, str], made: dict[str, str], digest: str, version: str) -> bool:
    if any(key not in each for key in (digest, version) for each in (known, made)):
        return False
    return known[version] == made[version] and known[digest] != made[digest]
