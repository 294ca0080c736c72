"""Asks for GPU nodes, waits until they have the GPUs that were promised, and lets go of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_fleet.core import capacity as rules
from gpu_fleet.core.errors import AlreadyExists, Forbidden, GateRefused, GpuFleetError, NotFound
from gpu_fleet.core.kinds import DAEMON_SET, NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.names import (
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    LABEL_COMPONENT,
    LABEL_NODE_POOL,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
    run_label,
)
from gpu_fleet.core.pool_template import PoolTemplate, older_nodes
from gpu_fleet.operators.apply import as_yaml
from gpu_fleet.operators.base import FleetOperator, run_name, wait_started
from gpu_fleet.operators.cordons import take_back_cordons
from gpu_fleet.operators.standing import mark_standing, unmark_standing
from gpu_fleet.triggers.looking import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.capacity_objects import PoolNode
    from gpu_fleet.core.physical import Hardware
    from gpu_fleet.core.spec import ClusterSpec, NodePool
    from gpu_fleet.hooks.kubernetes import KubeClient

#: XCom key under which a failed wait leaves ``{"reason", "message"}``; reasons that blame the device plugin begin with
#: ``core.capacity_plugin.PLUGIN_CAUSE``.
FAILURE = "failure"

#: How often, and with which pause in seconds, a pod is created again while its namespace is too young to have its
#: ServiceAccount; the controller needs well under a second.
YOUNG_NAMESPACE_TRIES, YOUNG_NAMESPACE_PAUSE_S = 40, 0.25


def hardware(spec: ClusterSpec, pool: NodePool) -> Hardware:
    """The pool's physical GPUs, asked of EC2.

    :raises SpecError: instance types that EC2 does not know, without NVIDIA GPU, or with different numbers of GPUs.
    """
    from gpu_fleet.hooks import pool_facts

    return pool_facts.hardware(spec, pool)


def ensure_objects(kube: KubeClient, spec: ClusterSpec, builder: str, names: set[str]) -> None:
    """Apply those of a builder's manifests that have one of these names; a no-op if they are as they should be."""
    from gpu_fleet.core.manifests import build

    for manifest in build(builder, spec):
        if manifest["metadata"]["name"] in names:
            kube.apply(manifest)


def create_pod(kube: KubeClient, manifest: dict[str, Any]) -> bool:
    """Create a pod; ``False`` if it exists.

    :raises Forbidden: quota, admission, a missing RuntimeClass or PriorityClass.
    """
    for attempt in range(YOUNG_NAMESPACE_TRIES):
        try:
            kube.create(manifest)
        except AlreadyExists:
            return False
        except Forbidden as error:
            young = "serviceaccount" in error.message.lower() and "not found" in error.message
            if not young or attempt == YOUNG_NAMESPACE_TRIES - 1:
                raise
            time.sleep(YOUNG_NAMESPACE_PAUSE_S)
        else:
            return True
    raise AssertionError("unreachable")


def protect_nodes(kube: KubeClient, nodes: Iterable[PoolNode], run: str) -> list[str]:
    """Keep Karpenter from removing nodes; returns the names of those that this run now protects.

    Nodes that somebody else protects already are left as they are, and stay so when ours is taken back.
    """
    protected = []
    for node in nodes:
        if ANNOTATION_DO_NOT_DISRUPT in node.annotations and ANNOTATION_PROTECTED_BY not in node.annotations:
            continue
        if node.annotations.get(ANNOTATION_PROTECTED_BY) != run:
            annotations = {ANNOTATION_DO_NOT_DISRUPT: "true", ANNOTATION_PROTECTED_BY: run}
            try:
                kube.patch(ObjectRef(NODE, node.name), {"metadata": {"annotations": annotations}})
            except NotFound:
                continue
        protected.append(node.name)
    return protected


def delete_pods(kube: KubeClient, pods: list[dict[str, Any]]) -> list[str]:
    """Ask for the deletion of exactly these pods; returns the names of those that were there."""
    deleted = []
    for pod in pods:
        metadata = pod["metadata"]
        ref = ObjectRef(POD, metadata["name"], metadata["namespace"])
        if kube.delete(ref, grace_seconds=1):
            deleted.append(metadata["name"])
    return deleted


class PoolOperator(FleetOperator):
    """Base of the operators that act on one pool of the cluster.

    :param node_pool: name of the pool (``pool`` is Airflow's word for something else).
    """

    skips_unselected_pools = True

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.node_pool = node_pool

    @property
    def this_pool(self) -> NodePool:
        return self.spec.pool(self.node_pool)

    def of_pool(self) -> str:
        """Label selector of the pool's Nodes and NodeClaims."""
        return f"{LABEL_NODE_POOL}={self.node_pool}"

    def run_label(self, context: Mapping[str, Any]) -> str:
        ti = context["ti"]
        return run_label(ti.dag_id, ti.run_id)


class RequestCapacityOperator(PoolOperator):
    """Creates one placeholder pod per node that the pool lacks, and thereby makes Karpenter launch it.

    With all wanted nodes present, or on their way, nothing is created. Run again after a kill it creates what is
    missing. Nodes that a drain of ours left cordoned take jobs again. Nodes that stand already are protected from
    disruption until validation has cleaned up: without a placeholder an idle one would go while the others come.

    :returns: ``{"wanted", "standing", "asked", "created": [pod names], "gpus": per placeholder, "physical", "drifted":
        {node: in what it is not of the pool's present template}}``.
    :raises SpecError: if EC2 contradicts the pool's instance types.
    :raises GateRefused: ``DriftedNodesHoldTheCap``: nodes of an older template, which do not go by themselves, leave no
        room under ``limits.nodes`` for those that are wanted. Nothing has been asked for then.

    The created pods are shown among the task's rendered fields.
    """

    changes_cluster = True
    template_fields = ("manifests",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"manifests": "yaml"}
    #: Airflow renders fields before execute(); this makes it store them again afterwards, with the manifests.
    overwrite_rtif_after_execution = True
    ui_color = "#e9f0fb"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.manifests = ""

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.hooks.drifted import remember_class
        from gpu_fleet.operators.replacement import REPLACEMENT, plan_replacement

        if self.this_pool.manage:
            remember_class(self.kube, self.spec.name, self.node_pool)
        replacement = plan_replacement(self, context)
        context["ti"].xcom_push(REPLACEMENT, replacement.to_json())
        gpus = hardware(self.spec, self.this_pool)
        with reported_failure(context):
            found = request_capacity(self, context, gpus, surge=replacement.surge)
        self.manifests = as_yaml(found.pop("manifests"))
        return found


def request_capacity(
    operator: PoolOperator, context: Mapping[str, Any], gpus: Hardware, *, surge: int = 0
) -> dict[str, Any]:
    """Create the placeholders that are missing; idempotent.

    :param surge: nodes beyond ``wantedNodes``, which come before drifted ones go.
    """
    from gpu_fleet.core.capacity_objects import pool_nodes

    kube, spec, pool = operator.kube, operator.spec, operator.this_pool
    nodes = take_back_cordons(kube, kube.list(NODE, label_selector=operator.of_pool()))
    claims = kube.list(NODE_CLAIM, label_selector=operator.of_pool())
    waiting = placeholders(kube, pool.name)
    wanted = pool.wanted_nodes + surge
    plan = rules.plan_placeholders(pool.name, wanted, claims, nodes, waiting, PoolTemplate.of(pool))
    _look_at_drifted(operator, plan)
    if pool.wanted_nodes:
        # An idle node without a placeholder is one that Karpenter may remove while the missing ones are waited for.
        mine = [node for node in pool_nodes(nodes, pool.name) if node.name not in plan.drifted]
        protect_nodes(kube, filter(rules.counts_as_capacity, mine), run_name(context))
    for name in plan.remove:
        # Grace 0: a finished pod has nothing to end, and its name is needed now.
        kube.delete(ObjectRef(POD, name, SYSTEM_NAMESPACE), grace_seconds=0)
        operator.log.info("removed placeholder %s: it had ended, or its node is gone", name)
    each = rules.placeholder_gpus(pool, gpus.count)
    manifests = [
        rules.placeholder_pod(
            spec.name,
            pool,
            index,
            gpus=each,
            lifetime_s=rules.placeholder_lifetime_s(spec.deadlines),
            image=spec.validation.images.placeholder,
            run=run_name(context),
            run_label=operator.run_label(context),
        )
        for index in plan.create
    ]
    if manifests:
        from gpu_fleet.core.names import PLACEHOLDER_PRIORITY_CLASS

        ensure_objects(kube, spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(kube, spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
    mark_standing(kube, plan.mark)
    for manifest in manifests:
        create_pod(kube, manifest)
    operator.log.info(
        "pool %s: %d of %d wanted node(s) stand, %d are asked for, %d placeholder(s) created",
        pool.name,
        plan.standing,
        pool.wanted_nodes + surge,
        plan.asked,
        len(manifests),
    )
    return {
        "wanted": pool.wanted_nodes,
        "standing": plan.standing,
        "asked": plan.asked,
        "created": [manifest["metadata"]["name"] for manifest in manifests],
        "gpus": each,
        "physical": gpus.count,
        "manifests": manifests,
        "drifted": {name: list(why) for name, why in plan.drifted.items()},
    }


def _look_at_drifted(operator: PoolOperator, plan: rules.PlaceholderPlan) -> None:
    """Name the nodes of an older template, and stop before anything is bought that they leave no room for.

    :raises GateRefused: ``DriftedNodesHoldTheCap``.
    """
    from gpu_fleet.core.manifests import build
    from gpu_fleet.core.pool_template import cap_is_held, sentence, stays, users_gpu_pods

    if not plan.drifted:
        return
    spec, pool = operator.spec, operator.this_pool
    holders = users_gpu_pods(operator.kube.list(POD))
    for name, why in plan.drifted.items():
        operator.log.warning("pool %s: %s: no capacity", pool.name, sentence(name, why, holders.get(name, [])))
    if not plan.create:
        return
    (manifest,) = build("node_pool", spec, pool=pool.name)
    within = float(spec.deadlines.capacity)
    held = cap_is_held(
        pool,
        needed=plan.standing + plan.asked + len(plan.create) + plan.idle_places,
        drifted=plan.drifted,
        staying=[name for name in plan.drifted if stays(pool, manifest, within_s=within, held=name in holders)],
        holders=holders,
    )
    if held:
        raise GateRefused(held, reason="DriftedNodesHoldTheCap")


def placeholders(kube: KubeClient, pool: str, component: str = rules.COMPONENT_PLACEHOLDER) -> list[dict[str, Any]]:
    """The pool's placeholder pods."""
    selector = f"{LABEL_COMPONENT}={component},{LABEL_POOL}={pool}"
    return kube.list(POD, SYSTEM_NAMESPACE, label_selector=selector)


class AwaitCapacityOperator(PoolOperator):
    """Waits until every wanted node has exactly physical × replicas GPUs.

    A retry asks again first: a spot node that was taken away took its placeholder with it.

    :returns: ``{"nodes", "nodeClaims", "physical", "replicas", "allocatable": {node: GPUs}, "instances": {node: …}}``.
    :raises GateRefused: the device plugin is broken (reason ``DevicePlugin…``), a node has the wrong number of GPUs
        (``AllocatableMismatch``, ``SharingNotApplied``) or broken hardware (``GpuLost``, ``XidError``), or Karpenter
        cannot place the placeholders.
    :raises GateFailed: a launch failed, or nodes were lost; retried.
    :raises DeadlinePassed: naming what was missing and why, after the spec's ``deadlines.capacity``, counted
        from the first try.

    A failure also leaves its reason in the XCom ``failure``, for the task that decides about a roll-back.
    """

    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.capacity_plugin import plugin_daemon_set
        from gpu_fleet.core.device_plugins import Ours, plugins_of_others
        from gpu_fleet.operators.replacement import planned_replacement, without_surge

        pool = self.this_pool
        gpus = hardware(self.spec, pool)
        if not pool.wanted_nodes:
            self.log.info("pool %s wants no nodes", pool.name)
            return {"nodes": [], "nodeClaims": [], "physical": gpus.count, "replicas": pool.replicas} | {
                "allocatable": {},
                "instances": {},
            }
        surge = planned_replacement(self, context).surge
        if context["ti"].try_number > 1:
            with reported_failure(context):
                request_capacity(self, context, gpus, surge=surge)
        ours = Ours.of(self.spec)
        args = {
            "pool": pool.name,
            "wanted": pool.wanted_nodes + surge,
            "physical": gpus.count,
            "replicas": pool.replicas,
            "plugin_namespace": self.spec.device_plugin.namespace,
            "plugin_daemon_set": plugin_daemon_set(self.spec.device_plugin),
            "plugin_patience_s": self.spec.deadlines.prove.seconds,
            "template": template.to_json() if (template := PoolTemplate.of(pool)) is not None else None,
            "ours": ours.to_json(),
            "plugins_of_others": [plugin.ref for plugin in plugins_of_others(self.kube.list(DAEMON_SET), ours)],
        }
        seconds = float(self.spec.deadlines.capacity)
        until = wait_started(context) + seconds
        with reported_failure(context):
            try:
                verdict = await_gate(
                    self, context, "pool_capacity", args, seconds, deadline=until, kwargs={"surge": surge, "args": args}
                )
            except GpuFleetError as error:
                verdict = without_surge(self, error, args, surge)
        return self._found(verdict.message, verdict.data)

    def execute_complete(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        surge: int = 0,
        args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        from gpu_fleet.operators.replacement import without_surge

        with reported_failure(context):
            try:
                verdict = conclude(event)
            except GpuFleetError as error:
                self.prepare(context)
                verdict = without_surge(self, error, args or {}, surge)
        return self._found(verdict.message, verdict.data)

    def _found(self, message: str, data: dict[str, Any] | None) -> dict[str, Any]:
        self.log.info("%s", message)
        return dict(data or {})


class reported_failure:
    """Leaves the reason of a failed wait in the XCom ``failure``, where other tasks can read it."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, GpuFleetError):
            self._context["ti"].xcom_push(FAILURE, {"reason": error.reason, "message": error.message[:2000]})


class ReleasePlaceholdersOperator(PoolOperator):
    """Deletes the pool's placeholders, so that their GPUs can be used; harmless to repeat.

    So are pods that hold capacity: all of them where this DAG holds the pool's nodes anew afterwards, else only those
    of the nodes that are about to be probed.

    :returns: names of the pods that were deleted.
    """

    changes_cluster = True
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.core.probes import pinned_to

        pods = placeholders(self.kube, self.node_pool)
        holds = placeholders(self.kube, self.node_pool, rules.COMPONENT_HOLD)
        if holds and not self._held_anew():
            from gpu_fleet.operators.validation_nodes import protected_nodes

            probed = set(protected_nodes(self, context)["nodes"])
            holds = [pod for pod in holds if pinned_to(pod) in probed]
        pods += holds
        deleted = delete_pods(self.kube, pods)
        unmark_standing(self.kube, self.of_pool())
        self.log.info("released %d placeholder(s) of pool %s", len(deleted), self.node_pool)
        return deleted

    def _held_anew(self) -> bool:
        after = self.get_flat_relatives(upstream=False)
        return any(isinstance(task, HoldCapacityOperator) and task.node_pool == self.node_pool for task in after)


class HoldCapacityOperator(PoolOperator):
    """Keeps the pool's nodes for ``capacity.hold`` minutes although no job uses them yet; 0 does nothing.

    One pod per node holds it with the lowest priority: a user's pod takes its place at once, and it ends by itself.

    :returns: names of the pods.
    """

    changes_cluster = True
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.core.capacity_objects import pool_nodes
        from gpu_fleet.core.names import PLACEHOLDER_PRIORITY_CLASS
        from gpu_fleet.core.validation_others import NOBODY, others_by_node

        pool, minutes = self.this_pool, self.this_pool.capacity.hold
        if not minutes:
            return []
        ensure_objects(self.kube, self.spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
        # Without our own: probes that are just ending keep no node.
        others, names = others_by_node(self.kube.list(POD)), []
        nodes = self.kube.list(NODE, label_selector=self.of_pool())
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        drifted = older_nodes(PoolTemplate.of(pool), pool.name, nodes, claims)
        for node in pool_nodes(nodes, pool.name):
            if node.name in drifted:
                continue  # of an older template: none of the nodes that were validated
            if others.get(node.name, NOBODY).gpus or not rules.counts_as_capacity(node) or not node.gpus:
                continue  # in use: nobody will consolidate it
            manifest = rules.hold_pod(
                self.spec.name,
                pool,
                node.name,
                gpus=1,
                minutes=minutes,
                image=self.spec.validation.images.placeholder,
                run=run_name(context),
                run_label=self.run_label(context),
            )
            create_pod(self.kube, manifest)
            names.append(manifest["metadata"]["name"])
        self.log.info("pool %s: %d node(s) held for %d minutes", pool.name, len(names), minutes)
        return names
