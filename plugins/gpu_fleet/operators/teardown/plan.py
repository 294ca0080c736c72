"""Plan and delete: what a teardown removes. The waits between its steps are gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from gpu_fleet.core.errors import Conflict, NotFound, PermanentError
from gpu_fleet.operators.base import bare_pods_go, wait_started
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, Approved
from gpu_fleet.operators.teardown.approved import approved_plan, pools_of, refuse_more
from gpu_fleet.operators.teardown.karpenter_wait import AwaitsKarpenter
from gpu_fleet.operators.teardown.looks import instances_of, keeps_of, observe
from gpu_fleet.triggers.looking import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.core.teardown.plan import TeardownPlan

#: The finalizer of EC2NodeClasses (aws/karpenter-provider-aws v1.14 pkg/apis/v1/labels.go).
FINALIZER_NODE_CLASS = "karpenter.k8s.aws/termination"


def karpenter_dead(spec: ClusterSpec, plan: TeardownPlan) -> PermanentError:
    """Why nothing is removed while no controller serves the finalizers."""
    return PermanentError(
        f"no pod of Karpenter's controller is ready in namespace {spec.karpenter.namespace}, so nothing would "
        f"terminate the instances behind NodePools {', '.join(plan.pools) or '(none)'}; bring it back and run the task "
        "again, or set teardown.whenKarpenterIsDead: emergency",
        reason="KarpenterDead",
    )


def karpenter_needed(spec: ClusterSpec, needed: Mapping[str, Iterable[str]]) -> PermanentError:
    """Why Karpenter must not be uninstalled."""
    shown = " and ".join(f"{kind} {', '.join(names)}" for kind, names in needed.items())
    return PermanentError(
        f"{shown} are not of cluster spec {spec.name} and live on, and without Karpenter nobody would manage them or "
        "their nodes; set teardown.uninstallKarpenter: false, or delete them first",
        reason="KarpenterStillNeeded",
    )


def others_remain(spec: ClusterSpec, left: Iterable[Mapping[str, Any]]) -> PermanentError:
    """Why a teardown does not go on to wait for the instances that an emergency has spared.

    :param left: their rows of the plan.
    """
    shown = ", ".join(f"{row['id']} ({row['type']}, NodePool {row['pool'] or 'none'})" for row in left)
    return PermanentError(
        f"what is ours of cluster {spec.name} is terminated, and {shown} live on: their NodePools are going or gone, "
        "their tags name no managed pool of this cluster file, and without Karpenter nobody terminates them; bring it "
        "back, or have their owners terminate them, then clear this task and what follows it",
        reason="OthersRemain",
    )


class PlanTeardownOperator(AwaitsKarpenter):
    """Says what a teardown will remove, whom that hurts, what stays, and what it costs per hour. Changes nothing.

    :param approved_task_id: task whose plan a person has approved; this one must not go beyond it.
    :returns: ``{"plan": {…}, "markdown": "…", "id": "…"}``; the Markdown is the approval's text, and the id, which
        is another one each time, is what the answer names.
    :raises PermanentError: ``KarpenterStillNeeded`` if Karpenter is to go while NodePools, EC2NodeClasses or
        NodeOverlays of others live on: nobody would serve them any more. ``KarpenterDead`` under the policy ``fail``:
        nobody's pods are evicted for a teardown that cannot go on. ``DrainRefused`` if a pod there must not be
        evicted: nobody is asked, and nothing frozen or cordoned, for a drain that would not start.
        ``KarpenterTooOld`` if the freeze would not hold. ``PlanGrew`` if something would be removed that was not
        approved, ``WayNotApproved`` if Karpenter has died since.
    """

    preconditions = (Approved(),)

    def __init__(self, *, approved_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved_task_id = approved_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.teardown.approval import PLAN_ID
        from gpu_fleet.core.teardown.karpenter import Way
        from gpu_fleet.core.teardown.markdown import to_markdown
        from gpu_fleet.core.teardown.plan import make_plan
        from gpu_fleet.core.teardown.scope import needs_karpenter
        from gpu_fleet.hooks.files.prices import load_prices

        self.await_karpenter(context)
        observed = observe(self.spec, self.kube)
        if needed := needs_karpenter(self.spec, observed):
            raise karpenter_needed(self.spec, needed)
        approved = approved_plan(context, self.approved_task_id)
        plan = make_plan(
            self.spec,
            observed,
            load_prices(self.spec.aws.region),
            bare_pods_go=bare_pods_go(context),
            approved=keeps_of(approved),
            approved_pools=pools_of(approved),
        )
        markdown = to_markdown(plan, self.spec)
        self.log.info("%s", markdown)
        if plan.way is Way.REFUSED:
            raise karpenter_dead(self.spec, plan)
        if plan.judged.drain.refuse:
            raise PermanentError(
                f"the teardown of {plan.cluster} cannot begin, nothing was frozen, cordoned or evicted: "
                f"{plan.judged.drain.refusal()}\nOnce they have ended, clear {self.task_id} and what follows it",
                reason="DrainRefused",
            )
        if plan.way is Way.BY_KARPENTER and plan.pools:
            self._refuse_without_freeze()
        if self.approved_task_id is not None:
            refuse_more(approved, self.approved_task_id, plan)
        return {"plan": plan.to_json(), "markdown": markdown, PLAN_ID: uuid4().hex}

    def _refuse_without_freeze(self) -> None:
        """The version in the file is checked with the file; the controller that runs may be another, above all where
        somebody else has installed it."""
        from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT
        from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR
        from gpu_fleet.core.spec import version_tuple
        from gpu_fleet.core.spec.rules import FIRST_WITH_NODE_LIMITS
        from gpu_fleet.core.teardown.karpenter import karpenter_versions

        namespace = self.spec.karpenter.namespace
        versions = karpenter_versions(self.kube.list(DEPLOYMENT, namespace, label_selector=KARPENTER_SELECTOR))
        if not versions:
            self.log.warning(
                "the version of Karpenter in namespace %s is not known: before %s a freeze does not hold it",
                namespace,
                FIRST_WITH_NODE_LIMITS,
            )
        elif version_tuple(versions[0]) < version_tuple(FIRST_WITH_NODE_LIMITS):
            raise PermanentError(
                f"Karpenter {versions[0]} in namespace {namespace} does not heed limits.nodes, and so not the freeze "
                "of a teardown: each evicted pod would buy a new node; upgrade it to "
                f"{FIRST_WITH_NODE_LIMITS} or later and run the task again",
                reason="KarpenterTooOld",
            )


class DeleteNodePoolsOperator(AwaitsKarpenter):
    """Deletes the NodePools in the foreground while Karpenter lives, so that its finalizers terminate the instances.

    With Karpenter dead it follows ``teardown.whenKarpenterIsDead``: ``fail`` changes nothing; ``emergency`` terminates
    the instances through EC2, waits until they are gone, and only then removes pools, claims, nodes and finalizers: the
    other way round an instance would live on that nothing in the cluster knows of. It terminates only instances whose
    tags name a pool of ours and this cluster file (``core/teardown/emergency.py``).

    :param approved_task_id: task whose plan a person has approved; what has come since is refused, also when this task
        is cleared alone, long after the plan was compared.
    :returns: ``{"way", "pools", "nodeClaims", "nodes", "instances", "spared"}``; the last are those that an emergency
        leaves to their owners.
    :raises PermanentError: ``KarpenterDead`` under the policy ``fail``; ``PlanGrew`` and ``WayNotApproved`` if more, or
        worse, than was approved would be done; ``OthersRemain`` after an emergency that has removed what is ours, and
        beside which instances live that nobody ends.
    """

    preconditions = CHANGES_CLUSTER

    def __init__(self, *, approved_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved_task_id = approved_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.teardown.karpenter import Karpenter, Way

        self.await_karpenter(context)
        approved = approved_plan(context, self.approved_task_id)
        plan = self._plan(pools_of(approved))
        if plan.way is Way.REFUSED:
            raise karpenter_dead(self.spec, plan)
        if self.approved_task_id is not None:
            refuse_more(approved, self.approved_task_id, plan)
        self._delete_overlays()
        if plan.way is Way.NOTHING_LEFT:
            self.log.info("no NodePool, NodeClaim or instance of ours is left")
            if plan.karpenter is Karpenter.DEAD and self.spec.teardown.when_karpenter_is_dead == "emergency":
                # An earlier try may have ended between the instances and the finalizers of nodes and node classes.
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
        """After the triggerer saw that the instances are gone: once more from here, before anything is stripped."""
        self.prepare(context)
        conclude(event)
        return self._strip_when_gone(context, plan)

    # --- by Karpenter ------------------------------------------------------------------------------------------

    def _plan(self, approved_pools: list[str]) -> TeardownPlan:
        from gpu_fleet.core.teardown.plan import make_plan
        from gpu_fleet.hooks.files.prices import load_prices

        prices = load_prices(self.spec.aws.region)
        return make_plan(self.spec, observe(self.spec, self.kube), prices, approved_pools=approved_pools)

    def _delete_overlays(self) -> None:
        """Ours, first of all: they go with the pools, which buy nothing any more, and while the CRD is there."""
        from gpu_fleet.core.kubernetes.kinds import NODE_OVERLAY, ObjectRef
        from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER

        for item in self.kube.list(NODE_OVERLAY, label_selector=f"{LABEL_CLUSTER}={self.spec.name}"):
            ref = ObjectRef(NODE_OVERLAY, item["metadata"]["name"])
            if self.kube.delete(ref, uid=item["metadata"]["uid"]):
                self.log.info("deleted %s", ref)

    def _delete_pools(self, names: Iterable[str], *, propagation: str) -> None:
        from gpu_fleet.core.kubernetes.kinds import NODE_POOL, ObjectRef

        for name in names:
            if self.kube.delete(ObjectRef(NODE_POOL, name), propagation=propagation):
                self.log.info("deleting NodePool %s (%s)", name, propagation)

    def _delete_claims(self, names: Iterable[str]) -> None:
        from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, ObjectRef

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
            self.log.warning("not ours, and left alone: %s", spared)
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
        """Remove what only a controller would finish: the instances behind it are gone.

        Looked at once more, and only of our pools: what has an instance that lives keeps its finalizer, whosever it is.
        """
        from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL
        from gpu_fleet.core.kubernetes.names import FINALIZER_TERMINATION, LABEL_CLUSTER, LABEL_NODE_POOL
        from gpu_fleet.core.teardown.emergency import finishable, our_pools
        from gpu_fleet.core.teardown.remains import left_classes

        pools = our_pools(self.spec, self.kube.list(NODE_POOL), plan["pools"])
        alive = instances_of(self.spec)
        nodes = self.kube.list(NODE, label_selector=LABEL_NODE_POOL)
        for item in finishable([*self.kube.list(NODE_CLAIM), *nodes], pools, alive):
            self._finish(item, FINALIZER_TERMINATION)
        kept = [pool.name for pool in self.spec.node_pools if not pool.manage]
        classes = self.kube.list(EC2_NODE_CLASS, label_selector=f"{LABEL_CLUSTER}={self.spec.name}")
        for item in left_classes(classes, self.spec.name, kept):
            self._finish(item, FINALIZER_NODE_CLASS)
        self.log.warning("emergency: launch templates and instance profiles may be left; the leak check names them")
        ids = {str(instance["InstanceId"]) for instance in alive}
        # A task that deferred in an earlier version of this package has noted none.
        if left := [row for row in plan.get("spared") or () if row["id"] in ids]:
            raise others_remain(self.spec, left)
        return plan

    def _finish(self, item: Mapping[str, Any], finalizer: str) -> None:
        """Delete an object, then take off the one finalizer that nobody serves any more."""
        ref = self.kube.ref(item["apiVersion"], item["kind"], item["metadata"]["name"])
        if not self.kube.delete(ref):
            return
        current = self.kube.get(ref)
        finalizers = list((current or {}).get("metadata", {}).get("finalizers") or [])
        if current is None or finalizer not in finalizers:
            return
        kept = [name for name in finalizers if name != finalizer]
        # With the version that was read: another controller's finalizer must not be lost to a race.
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
    """:param also: pools that an earlier try has deleted, whose nodes and NodeClaims it may have left."""
    return {
        "way": plan.way.value,
        "pools": sorted({*plan.pools, *also}),
        "nodeClaims": plan.node_claims,
        "nodes": plan.nodes,
        "instances": [str(row["id"]) for row in plan.instances],
        "spared": [{key: row[key] for key in ("id", "type", "pool")} for row in plan.spared],
    }
