"""Deletes the NodePools: by Karpenter's finalizers while its controller lives, by hand in an emergency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, NotFound, PermanentError
from gpu_fleet.core.kubernetes.kinds import (
    EC2_NODE_CLASS,
    NODE,
    NODE_CLAIM,
    NODE_OVERLAY,
    NODE_POOL,
    ObjectRef,
)
from gpu_fleet.core.kubernetes.names import FINALIZER_TERMINATION, LABEL_CLUSTER, LABEL_NODE_POOL
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.karpenter import Karpenter, Way
from gpu_fleet.core.teardown.remains import left_classes
from gpu_fleet.operators.base import wait_started
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from gpu_fleet.operators.teardown.approved import approved_plan, pools_of, refuse_more
from gpu_fleet.operators.teardown.karpenter_wait import AwaitsKarpenter, karpenter_dead
from gpu_fleet.operators.teardown.looks import instances_of, observe
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.teardown.plan import TeardownPlan

#: The finalizer of EC2NodeClasses (aws/karpenter-provider-aws v1.14 pkg/apis/v1/labels.go).
FINALIZER_NODE_CLASS = "karpenter.k8s.aws/termination"


def others_remain(spec: ClusterSpec, left: Iterable[Mapping[str, Any]]) -> PermanentError:
    """Why a teardown stops before it waits for instances that an emergency has spared.

    :param left: their rows of the plan.
    """
    shown = ", ".join(f"{row['id']} ({row['type']}, NodePool {row['pool'] or 'none'})" for row in left)
    return PermanentError(
        f"the instances of ours in cluster {spec.name} are terminated, but {shown} remain: their NodePools are gone or "
        "being deleted, their tags name no managed pool of this cluster file, and without Karpenter nothing "
        "terminates them; restore Karpenter, or have their owners terminate them, then clear this task and what "
        "follows it",
        reason="OthersRemain",
    )


class DeleteNodePoolsOperator(AwaitsKarpenter):
    """Deletes the NodePools in the foreground while Karpenter lives, so that its finalizers terminate the instances.

    With Karpenter dead it follows ``teardown.whenKarpenterIsDead``: ``fail`` changes nothing; ``emergency`` terminates
    the instances through EC2, waits until they are gone, and only then removes pools, NodeClaims, nodes and
    finalizers. In the opposite order an instance could remain that no object in the cluster names. It terminates only
    instances whose tags name a pool of ours and this cluster file (``core/teardown/emergency.py``).

    :param approved_task_id: task whose plan a person has approved. The task refuses to remove more, also when it is
        cleared alone, long after the plans were compared.
    :returns: ``{"way", "pools", "nodeClaims", "nodes", "instances", "spared"}``; the last are the instances that an
        emergency leaves to their owners. After an emergency also ``waitsFor``, the NodePools whose NodeClaims and nodes
        the tasks that follow wait for, and ``others``, the NodeClaims and nodes of others that they do not wait for.
    :raises PermanentError: ``KarpenterDead`` under the policy ``fail``; ``PlanGrew`` and ``WayNotApproved`` if it would
        remove more than was approved, or in a worse way; ``OthersRemain`` after an emergency that has removed what is
        ours while instances of others remain that nothing terminates.
    """

    preconditions = CHANGES_CLUSTER

    def __init__(self, *, approved_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved_task_id = approved_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        self.await_karpenter(context)
        approved = approved_plan(context, self.approved_task_id)
        plan = self._plan(pools_of(approved))
        if plan.way is Way.REFUSED:
            raise karpenter_dead(self.spec, plan.pools)
        if self.approved_task_id is not None:
            refuse_more(approved, self.approved_task_id, plan)
        self._delete_overlays()
        if plan.way is Way.NOTHING_LEFT:
            self.log.info("no NodePool, NodeClaim or instance of ours is left")
            if plan.karpenter is Karpenter.DEAD and self.spec.teardown.when_karpenter_is_dead == "emergency":
                # An earlier try may have ended after the instances and before the finalizers of nodes and classes.
                return self._strip(_result(plan, pools_of(approved)))
            return _result(plan)
        if plan.way is Way.BY_KARPENTER:
            self._delete_pools(plan.pools, propagation="Foreground")
            self._delete_claims(plan.node_claims)
            return _result(plan)
        if plan.way is Way.EMERGENCY:
            return self._emergency(context, plan, pools_of(approved))
        raise ValueError(f"unknown way {plan.way!r}")

    def resume(self, context: Mapping[str, Any], event: Mapping[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        """Called when the triggerer saw that the instances are gone; looks once more before it strips finalizers."""
        self.prepare(context)
        conclude(event)
        return self._strip_when_gone(context, plan)

    # --- by Karpenter ------------------------------------------------------------------------------------------

    def _plan(self, approved_pools: list[str]) -> TeardownPlan:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.teardown.plan import make_plan
        from gpu_fleet.hooks.cluster.prices import prices_of_instances

        observed = observe(self.spec, self.kube)
        prices = prices_of_instances(self.spec, observed.instances)
        return make_plan(self.spec, observed, prices, approved_pools=approved_pools)

    def _delete_overlays(self) -> None:
        """Delete our NodeOverlays first, while their CRD exists: the pools are frozen and buy nothing any more."""
        for item in self.kube.list(NODE_OVERLAY, label_selector=f"{LABEL_CLUSTER}={self.spec.name}"):
            ref = ObjectRef(NODE_OVERLAY, item["metadata"]["name"])
            if self.kube.delete(ref, uid=item["metadata"]["uid"]):
                self.log.info("deleted %s", ref)

    def _delete_pools(self, names: Iterable[str], *, propagation: str) -> None:
        for name in names:
            if self.kube.delete(ObjectRef(NODE_POOL, name), propagation=propagation):
                self.log.info("deleting NodePool %s (%s)", name, propagation)

    def _delete_claims(self, names: Iterable[str]) -> None:
        for name in names:
            if self.kube.delete(ObjectRef(NODE_CLAIM, name)):
                self.log.info("deleting NodeClaim %s", name)

    # --- emergency ---------------------------------------------------------------------------------------------

    def _emergency(self, context: Mapping[str, Any], plan: TeardownPlan, approved_pools: list[str]) -> dict[str, Any]:
        from gpu_fleet.hooks.aws import aws_session

        ids = [str(row["id"]) for row in plan.instances]
        if ids:
            self.log.warning("Karpenter is dead: terminating %s through EC2", ", ".join(ids))
            session = aws_session(self.spec.aws.connection, self.spec.aws.region)
            session.call("ec2", "terminate_instances", InstanceIds=ids)
        if plan.spared:
            spared = ", ".join(f"{row['id']} (NodePool {row['pool'] or 'none'})" for row in plan.spared)
            self.log.warning("not ours, left alone: %s", spared)
        result = _result(plan, approved_pools)
        self._delete_pools(plan.pools, propagation="Background")
        return self._strip_when_gone(context, result)

    def _strip_when_gone(self, context: Mapping[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        seconds = float(self.spec.deadlines.teardown)
        await_gate(
            self,
            context,
            "instances_gone",
            {"cluster": self.spec.cluster.name, "only": plan["instances"]},
            seconds,
            deadline=wait_started(context) + seconds,
            method_name="resume",
            kwargs={"plan": plan},
        )
        return self._strip(plan)

    def _strip(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Remove the objects of our pools that only a controller could finish, once their instances are gone.

        It looks again: an object with a living instance keeps its finalizer, whoever owns the instance.
        """
        from gpu_fleet.core.teardown.emergency import finishable, others_left, our_pools

        node_pools, alive = self.kube.list(NODE_POOL), instances_of(self.spec)
        pools = our_pools(self.spec, node_pools, plan["pools"])
        claims, nodes = self.kube.list(NODE_CLAIM), self.kube.list(NODE, label_selector=LABEL_NODE_POOL)
        for item in finishable([*claims, *nodes], pools, alive):
            self._finish(item, FINALIZER_TERMINATION)
        others = others_left(self.spec, claims, nodes, node_pools, pools, alive)
        if others:
            self.log.warning("neither removed nor waited for, as no controller serves it: %s", ", ".join(others))
        kept = [pool.name for pool in self.spec.node_pools if not pool.manage]
        classes = self.kube.list(EC2_NODE_CLASS, label_selector=f"{LABEL_CLUSTER}={self.spec.name}")
        for item in left_classes(classes, self.spec.name, kept):
            self._finish(item, FINALIZER_NODE_CLASS)
        self.log.warning("emergency: launch templates and instance profiles may remain; the leak check reports them")
        ids = {str(instance["InstanceId"]) for instance in alive}
        # A task that deferred in an earlier version of this package has recorded none.
        if left := [row for row in plan.get("spared") or () if row["id"] in ids]:
            raise others_remain(self.spec, left)
        return {**plan, "waitsFor": sorted(pools), "others": others}

    def _finish(self, item: Mapping[str, Any], finalizer: str) -> None:
        """Delete an object, then remove the one finalizer that no controller serves any more."""
        ref = self.kube.ref(item["apiVersion"], item["kind"], item["metadata"]["name"])
        if not self.kube.delete(ref):
            return
        current = self.kube.get(ref)
        finalizers = list((current or {}).get("metadata", {}).get("finalizers") or [])
        if current is None or finalizer not in finalizers:
            return
        kept = [name for name in finalizers if name != finalizer]
        # With the resourceVersion that was read: a race must not remove another controller's finalizer.
        body = {"metadata": {"finalizers": kept, "resourceVersion": current["metadata"]["resourceVersion"]}}
        try:
            self.kube.patch(ref, body)
        except NotFound:
            return
        except Conflict:
            self._finish(item, finalizer)
            return
        self.log.warning("stripped finalizer %s from %s", finalizer, ref)


def _result(plan: TeardownPlan, also: Iterable[str] = ()) -> dict[str, Any]:
    """:param also: pools that an earlier try has deleted, and whose nodes and NodeClaims it may have left."""
    return {
        "way": plan.way.value,
        "pools": sorted({*plan.pools, *also}),
        "nodeClaims": plan.node_claims,
        "nodes": plan.nodes,
        "instances": [str(row["id"]) for row in plan.instances],
        "spared": [{key: row[key] for key in ("id", "type", "pool")} for row in plan.spared],
    }
