"""Requests GPU nodes: one placeholder pod per node that a pool lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_fleet.core.capacity import placeholders as rules
from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import PLACEHOLDER_PRIORITY_CLASS, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import deleting, pool_nodes
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.nodes.pool_template import PoolTemplate
from gpu_fleet.core.nodes.replacement import Replacement, cordoned_by
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity.placeholder_label import keep_placeholders_off
from gpu_fleet.operators.capacity.replacement import REPLACEMENT, asked_replacement, plan_replacement
from gpu_fleet.operators.capacity.rungs import begin_ladder
from gpu_fleet.operators.manifests import as_yaml, ensure_objects
from gpu_fleet.operators.nodes import protect_nodes, take_back_cordons
from gpu_fleet.operators.pods import create_pod, placeholders
from gpu_fleet.operators.pool import PoolOperator, hardware, reported_failure, upstream_tasks
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, SelectedPool

if TYPE_CHECKING:
    from gpu_fleet.core.aws.hardware import Hardware
    from gpu_fleet.core.capacity.ladder import Step


class RequestCapacityOperator(PoolOperator):
    """Creates one placeholder pod per node that the pool lacks, so that Karpenter launches it.

    If all wanted nodes are present or being launched, nothing is created. A retry after a kill creates what is missing.
    Nodes that a drain of ours left cordoned are uncordoned, except those that this run has cordoned. Nodes that are
    there already are protected from disruption until validation has cleaned up: without a placeholder an idle one would
    be consolidated while the others launch.

    :param surge_task_id: a task whose result says what is replaced in each pool (``{"replace": {pool: {"nodes",
        "surge"}}}``): a drain by hand. Without it the Param ``replaceDrifted`` decides.
    :returns: ``{"wanted", "standing", "asked", "created": [pod names], "gpus": per placeholder, "physical", "drifted":
        {node: how it differs from the pool's present template}}``.
    :raises SpecError: if EC2 contradicts the pool's instance types.
    :raises GateRefused: ``DriftedNodesHoldTheCap``: nodes of an older template, which are not removed by themselves,
        leave no room under ``limits.nodes`` for the wanted nodes. Nothing has been requested then.

    The created pods are shown among the task's rendered fields.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    template_fields = ("manifests",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"manifests": "yaml"}
    #: Airflow renders fields before execute(); this makes it store them again afterwards, with the manifests.
    overwrite_rtif_after_execution = True
    ui_color = "#e9f0fb"

    def __init__(self, *, surge_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.surge_task_id = surge_task_id
        self.manifests = ""

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.hooks.cluster.drifted import remember_class

        if self.this_pool.manage:
            remember_class(self.kube, self.spec.name, self.node_pool)
        if self.surge_task_id is None:
            replacement = plan_replacement(self, context)
        else:
            replacement = asked_replacement(context, self.surge_task_id, self.node_pool)
        context["ti"].xcom_push(REPLACEMENT, replacement.to_json())
        gpus = hardware(self.spec, self.this_pool)
        with reported_failure(context):
            step = begin_ladder(self, context)
            found = request_capacity(self, context, gpus, surge=replacement.surge, step=step)
        self.manifests = as_yaml(found.pop("manifests"))
        return found


def planned_replacement(operator: PoolOperator, context: Mapping[str, Any]) -> Replacement:
    """What the pool's task that requests capacity has decided to replace in this run."""
    for task_id in upstream_tasks(operator, RequestCapacityOperator):
        value = context["ti"].xcom_pull(task_ids=task_id, key=REPLACEMENT)
        if isinstance(value, Mapping):
            return Replacement.from_json(value)
    return Replacement()


def request_capacity(
    operator: PoolOperator,
    context: Mapping[str, Any],
    gpus: Hardware,
    *,
    surge: int = 0,
    step: Step | None = None,
) -> dict[str, Any]:
    """Create the placeholders that are missing; idempotent.

    :param surge: nodes beyond ``wantedNodes``, which are launched before drifted ones are removed.
    :param step: the rung of the pool's ladder of which the nodes are to be.
    """
    kube, spec, pool = operator.kube, operator.spec, operator.this_pool
    claims = kube.list(NODE_CLAIM, label_selector=operator.of_pool())
    # Karpenter deletes a node some time after its NodeClaim (kubernetes-sigs/karpenter v1.14.1
    # pkg/controllers/nodeclaim/lifecycle/controller.go, finalize): until then it looks like any other node, and
    # must neither be uncordoned nor counted.
    leaving = {str((claim.get("status") or {}).get("nodeName") or "") for claim in claims if deleting(claim)}
    found = kube.list(NODE, label_selector=operator.of_pool())
    run = run_name(context)
    staying = [node for node in found if node["metadata"]["name"] not in leaving]
    # This run's own cordons: it is about to drain those nodes, and asks for what is to replace them.
    drained = [node for node in staying if cordoned_by(node, run)]
    nodes = drained + take_back_cordons(kube, [node for node in staying if node not in drained])
    pending = placeholders(kube, pool.name)
    wanted = pool.wanted_nodes + surge
    plan = rules.plan_placeholders(pool.name, wanted, claims, nodes, pending, PoolTemplate.of(pool))
    _look_at_drifted(operator, plan, claims)
    if wanted:
        # Karpenter may remove an idle node without a placeholder while the run waits for the missing ones.
        mine = [node for node in pool_nodes(nodes, pool.name) if node.name not in plan.drifted]
        protect_nodes(kube, filter(rules.counts_as_capacity, mine), run)
    for name in plan.remove:
        # Grace period 0: a finished pod has nothing to shut down, and its name is needed now.
        kube.delete(ObjectRef(POD, name, SYSTEM_NAMESPACE), grace_seconds=0)
        operator.log.info("deleted placeholder %s: it had ended, or its node is gone", name)
    each = rules.placeholder_gpus(pool, gpus.count)
    manifests = [
        rules.placeholder_pod(
            spec.name,
            pool,
            index,
            gpus=each,
            lifetime_s=rules.placeholder_lifetime_s(spec.deadlines),
            image=spec.validation.images.placeholder,
            run=run,
            run_label=operator.run_label(context),
            step=step,
        )
        for index in plan.create
    ]
    if manifests:
        ensure_objects(kube, spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(kube, spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
    keep_placeholders_off(kube, plan.mark)
    for manifest in manifests:
        create_pod(kube, manifest)
    operator.log.info(
        "pool %s: %d of %d wanted node(s) present, %d requested before, %d placeholder(s) created",
        pool.name,
        plan.existing,
        wanted,
        plan.asked,
        len(manifests),
    )
    return {
        "wanted": pool.wanted_nodes,
        "standing": plan.existing,
        "asked": plan.asked,
        "created": [manifest["metadata"]["name"] for manifest in manifests],
        "gpus": each,
        "physical": gpus.count,
        "manifests": manifests,
        "drifted": {name: list(why) for name, why in plan.drifted.items()},
    }


def _look_at_drifted(operator: PoolOperator, plan: rules.PlaceholderPlan, claims: list[dict[str, Any]]) -> None:
    """Name the nodes of an older template, and refuse to request nodes for which they leave no room.

    :raises GateRefused: ``DriftedNodesHoldTheCap``.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.nodes.cap_held import cap_is_held, goes_when_empty, old_nodes, stays
    from gpu_fleet.hooks.cluster.pods import pods_on

    if not plan.drifted:
        return
    spec, pool = operator.spec, operator.this_pool
    old = old_nodes(plan.drifted, claims, pods_on(operator.kube, plan.drifted))
    for node in old:
        operator.log.warning("pool %s: %s: does not count as capacity", pool.name, node)
    if not plan.create:
        return
    (manifest,) = build("node_pool", spec, pool=pool.name)
    within = float(spec.deadlines.capacity)
    held = cap_is_held(
        pool,
        needed=plan.existing + plan.asked + len(plan.create) + plan.idle_places,
        staying=[node for node in old if stays(pool, manifest, within_s=within, empty=node.empty)],
        go_when_empty=goes_when_empty(pool, manifest, within_s=within),
    )
    if held:
        raise GateRefused(held, reason="DriftedNodesHoldTheCap")
