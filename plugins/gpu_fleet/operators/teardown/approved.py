"""What a person has approved, and the refusal to remove more than that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import PermanentError

if TYPE_CHECKING:
    from gpu_fleet.core.teardown.plan import TeardownPlan

#: How many things that were not approved an error message names.
MOST_GROWTH = 10


def approved_plan(context: Mapping[str, Any], task_id: str | None) -> Mapping[str, Any]:
    """The result of the task whose plan was approved; empty without one."""
    return {} if task_id is None else context["ti"].xcom_pull(task_ids=task_id) or {}


def pools_of(approved: Mapping[str, Any]) -> list[str]:
    """The NodePools of an approved plan."""
    return [str(name) for name in (approved.get("plan") or {}).get("pools") or []]


def refuse_more(approved: Mapping[str, Any], task_id: str, plan: TeardownPlan) -> None:
    """Compare a plan with the approved one.

    :param approved: see :func:`approved_plan`.
    :param task_id: the task that made it.
    :raises PermanentError: ``PlanGrew`` if more would be removed; ``WayNotApproved`` if Karpenter has died since, and
        instances would be terminated through EC2 instead.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.teardown.emergency import is_worse
    from gpu_fleet.core.teardown.plan import growth

    seen = approved.get("plan") or {}
    again = f"clear {task_id} and what follows it, or start another run, and approve the new plan"
    if grown := growth(seen, plan.to_json()):
        more = f" and {len(grown) - MOST_GROWTH} more" if len(grown) > MOST_GROWTH else ""
        raise PermanentError(
            f"the teardown of {plan.cluster} would also remove {', '.join(grown[:MOST_GROWTH])}{more}, which is not in "
            f"the plan that was approved; nothing was removed: {again}",
            reason="PlanGrew",
        )
    if is_worse(seen.get("way"), plan.way):
        raise PermanentError(
            f"Karpenter has died since the plan was approved: the teardown of {plan.cluster} would terminate instances "
            "through EC2 and respect no PodDisruptionBudget; nothing was removed: restore Karpenter and clear this "
            f"task, or {again}",
            reason="WayNotApproved",
        )
