"""Decides which drifted nodes a run replaces, before it asks for capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.objects import pool_nodes
from gpu_fleet.core.nodes import replacement as rules
from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes
from gpu_fleet.core.nodes.replacement import Mode, Replacement
from gpu_fleet.operators.base import attempt
from gpu_fleet.operators.pool import PoolOperator
from gpu_fleet.triggers.looking import look

if TYPE_CHECKING:
    from gpu_fleet.core.verdict import Verdict

#: The run's Param.
PARAM = "replaceDrifted"
#: XCom and task-state key of the nodes that a run replaces.
REPLACEMENT = "replacement"


def mode_of(context: Mapping[str, Any]) -> Mode:
    """The run's Param; DAGs without it replace nothing."""
    return Mode(context["params"].get(PARAM) or Mode.NONE)


def plan_replacement(operator: PoolOperator, context: Mapping[str, Any]) -> Replacement:
    """Which nodes of the pool this run replaces; decided once, and kept over the task's retries."""
    mode, store = mode_of(context), context["task_state_store"]
    if mode is Mode.NONE:
        return Replacement()
    kept = store.get(REPLACEMENT)
    if isinstance(kept, Mapping) and kept.get("attempt") == attempt(context):
        return Replacement.from_json(kept["plan"])
    from gpu_fleet.hooks.cluster.drifted import look_at_nodes

    pool = operator.this_pool
    if not pool.manage:
        return Replacement()
    seen = look_at_nodes(operator.kube, [pool.name])
    nodes = operator.kube.list(NODE, label_selector=operator.of_pool())
    template = PoolTemplate.of(pool)
    older = older_nodes(template, pool.name, nodes, seen.claims)
    joined = {node["metadata"]["name"] for node in nodes}
    coming = [
        claim
        for claim in of_template(seen.claims, template)
        if (claim.get("status") or {}).get("nodeName") not in joined and not claim["metadata"].get("deletionTimestamp")
    ]
    found = rules.choose(
        mode,
        seen.drifted(),
        pool_nodes(nodes, pool.name),
        wanted=pool.wanted_nodes,
        at_once=pool.disruption.replace_at_once,
        cap=pool.node_limit,
        present=len(seen.claims),
        coming=len(coming),
        counts=lambda node: counts_as_capacity(node) and node.name not in older,
    )
    if found.chosen:
        operator.log.info(
            "pool %s: drifted nodes %s are to be replaced; %d node(s) beyond those wanted are requested first",
            *(pool.name, ", ".join(found.chosen), found.surge),
        )
    for item in found.left:
        operator.log.warning("drifted node %s stays: %s: %s", item.node, item.reason, item.message)
    store.set(REPLACEMENT, {"attempt": attempt(context), "plan": found.to_json()})
    return found


def asked_replacement(context: Mapping[str, Any], task_id: str, pool: str) -> Replacement:
    """What a task has decided to replace in a pool, by whatever choice.

    :param task_id: its result is ``{"replace": {pool: {"nodes", "surge"}}}``.
    """
    found = ((context["ti"].xcom_pull(task_ids=task_id) or {}).get("replace") or {}).get(pool) or {}
    return Replacement(tuple(map(str, found.get("nodes") or ())), int(found.get("surge") or 0))


def without_surge(operator: PoolOperator, error: GpuFleetError, args: Mapping[str, Any], surge: int) -> Verdict:
    """The verdict without the nodes that were to replace drifted ones: without them nothing is replaced, and the wanted
    nodes may still be complete.

    :param error: how the wait for all of them ended.
    :param args: of the gate, with ``surge`` among the wanted nodes.
    :raises GpuFleetError: the error, if wanted nodes are missing, too.
    """
    if not surge:
        raise error
    verdict = look("pool_capacity", {**args, "wanted": args["wanted"] - surge}, operator.access())
    if not verdict.ready:
        raise error
    operator.log.warning(
        "the node that was to replace a drifted one was not launched, so the drifted node stays: %s", error.message
    )
    return verdict
