"""Opens a pool's headroom: one Job per node that is to be kept free; they end by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity import headroom as rules
from gpu_fleet.core.errors import AlreadyExists, TransientError
from gpu_fleet.core.kubernetes.kinds import JOB, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_HEADROOM,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_POOL,
    PLACEHOLDER_PRIORITY_CLASS,
    SYSTEM_NAMESPACE,
    run_label,
)
from gpu_fleet.core.kubernetes.objects import deleting, labels_of, name_of
from gpu_fleet.core.nodes.freeze import is_frozen
from gpu_fleet.operators.base import FleetOperator, run_name
from gpu_fleet.operators.manifests import ensure_objects
from gpu_fleet.operators.pods import delete_job
from gpu_fleet.operators.pool import hardware
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool


class OpenHeadroomOperator(FleetOperator):
    """Creates the placeholders of the windows that are open now, for all pools; harmless to repeat.

    Nodes that exist and have free GPUs count: Karpenter buys only what is missing, within the pool's limits. It waits
    for no node. Jobs of windows that are over, of windows and pools that are no longer in the file, and beyond their
    number of nodes are deleted. A placeholder that had to go within its window is not replaced.

    :returns: ``{pool: {"open": placeholders, "created": [names], "extended": [names], "removed": [names], "displaced":
        [names], "until": RFC 3339 or None}}``.
    """

    preconditions = CHANGES_CLUSTER
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.hooks.cluster.prices import prices_of_pools

        pools = [pool for pool in self.spec.node_pools if pool.capacity.headroom]
        for sentence in rules.cost_sentences(pools, prices_of_pools(self.spec, pools)):
            self.log.info("%s", sentence)
        done = {pool.name: open_headroom(self, context, pool) for pool in pools}
        mine = f"{LABEL_COMPONENT}={COMPONENT_HEADROOM},{LABEL_CLUSTER}={self.spec.name}"
        for job in self.kube.list(JOB, SYSTEM_NAMESPACE, label_selector=mine):
            if labels_of(job).get(LABEL_POOL) not in done and delete_job(self.kube, name_of(job)):
                self.log.info("deleted Job %s: its pool has no headroom in the cluster file", name_of(job))
        return done


def open_headroom(operator: FleetOperator, context: Mapping[str, Any], pool: NodePool) -> dict[str, Any]:
    """Give the pool the placeholders of the windows that are open now, and no others; idempotent.

    :raises TransientError: ``JobStays``: an old Job of the same name does not go.
    """
    kube, spec = operator.kube, operator.spec
    jobs = kube.list(JOB, SYSTEM_NAMESPACE, label_selector=of_pool(pool.name))
    now = kube.now()
    node_pool = kube.get(ObjectRef(NODE_POOL, pool.name))
    wanted = rules.wanted_now(pool.capacity.headroom, now) if spec.state == "present" else {}
    if wanted and (node_pool is None or deleting(node_pool) or is_frozen(node_pool)):
        operator.log.warning("no headroom in pool %s: its NodePool is absent, or frozen by a teardown", pool.name)
        wanted = {}
    plan = rules.plan_headroom(pool.name, wanted, jobs, now)
    for name in plan.remove:
        delete_job(kube, name)
    by_name = {name_of(job): job for job in jobs}
    for name, until in plan.extend.items():
        change = {
            "metadata": {"annotations": {rules.UNTIL: rules.stamp(until)}},
            "spec": {"activeDeadlineSeconds": rules.deadline_s(by_name[name], until, now)},
        }
        kube.patch(ObjectRef(JOB, name, SYSTEM_NAMESPACE), change)
    created = _create(operator, context, pool, plan.create, now)
    for name in plan.displaced:
        operator.log.info("%s had to go for a user's pod, a drain or an interruption; it is not replaced", name)
    count = len(created) + len(plan.extend) + len(plan.kept)
    operator.log.info("pool %s: headroom of %d node(s), %d placeholder(s) created", pool.name, count, len(created))
    return {
        "open": count,
        "created": created,
        "extended": sorted(plan.extend),
        "removed": list(plan.remove),
        "displaced": list(plan.displaced),
        "until": rules.stamp(max(wanted.values())) if wanted else None,
    }


def _create(
    operator: FleetOperator, context: Mapping[str, Any], pool: NodePool, wanted: Mapping[int, float], now: float
) -> list[str]:
    if not wanted:
        return []
    kube, spec, ti = operator.kube, operator.spec, context["ti"]
    physical = hardware(spec, pool).count
    ensure_objects(kube, spec, "system_namespaces", {SYSTEM_NAMESPACE})
    ensure_objects(kube, spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
    names = []
    for index, until in wanted.items():
        job = rules.headroom_job(
            spec.name,
            pool,
            index,
            until=until,
            now=now,
            physical=physical,
            image=spec.validation.images.placeholder,
            run=run_name(context),
            run_label=run_label(ti.dag_id, ti.run_id),
        )
        try:
            kube.create(job)
        except AlreadyExists as error:
            raise TransientError(
                f"Job {name_of(job)} of an earlier window is still being deleted; the next try creates it anew",
                reason="JobStays",
            ) from error
        names.append(name_of(job))
    return names


def of_pool(pool: str) -> str:
    """Label selector of the pool's Jobs and their pods."""
    return f"{LABEL_COMPONENT}={COMPONENT_HEADROOM},{LABEL_POOL}={pool}"
