"""Disruption budgets: how many nodes of a pool may be disrupted now, by reason.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/apis/v1/nodepool.go`` (GetAllowedDisruptionsByReason, IsActive) and
``pkg/controllers/disruption/helpers.go`` (BuildDisruptionBudgetMapping).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.karpenter.conditions import is_true
from sandbox.karpenter.durations import seconds
from sandbox.karpenter.objects import INITIALIZED, deleting, labels, uid

Object = dict[str, Any]

_DEFAULT = [{"nodes": "10%"}]
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def allowed(pool: Object, nodes: int, reason: str, moment: datetime | None = None) -> float:
    """
    :param nodes: nodes of the pool in all.
    :param reason: ``Empty``, ``Drifted`` or ``Underutilized``.
    :param moment: the time that schedules are compared with; now unless given.
    :return: how many may be disrupted at a time; infinite if no budget counts now.
    """
    moment = moment or datetime.now(UTC)
    budgets = (pool["spec"].get("disruption") or {}).get("budgets")
    limit = math.inf
    for budget in _DEFAULT if budgets is None else budgets:
        if budget.get("reasons") is not None and reason not in budget["reasons"]:
            continue
        if not active(budget, moment):
            continue
        value = str(budget.get("nodes", "10%"))
        limit = min(limit, -(-int(value[:-1]) * nodes // 100) if value.endswith("%") else int(value))
    return limit


def counted(found: Iterable[tuple[Object, Object | None]], busy: Container[str]) -> tuple[int, int]:
    """How many nodes a pool's budgets are computed from, and how many of them use the budgets up: those that are going
    or not ready.

    A node counts once it is initialized, and no more when its instance is being terminated.

    :param found: the pool's claims, each with its node.
    :param busy: uids of the claims that are being disrupted.
    """
    total = disrupting = 0
    for claim, node in found:
        if node is None or labels(node).get(INITIALIZED) != "true" or is_true(claim, "InstanceTerminating"):
            continue
        total += 1
        disrupting += deleting(claim) or uid(claim) in busy or not is_true(node, "Ready")
    return total, disrupting


def active(budget: Object, moment: datetime) -> bool:
    """A budget without a schedule always counts, one with a schedule for ``duration`` after each of its times (UTC)."""
    if not budget.get("schedule"):
        return True
    begin = moment - timedelta(seconds=seconds(budget.get("duration")) or 0)
    struck = moment.replace(second=0, microsecond=0)
    while struck > begin:
        if _strikes(budget["schedule"], struck):
            return True
        struck -= timedelta(minutes=1)
    return False


def _strikes(schedule: str, moment: datetime) -> bool:
    fields = _NAMED.get(schedule, schedule).split()
    minute, hour, day, month, weekday = fields
    days = (_holds(day, moment.day, 1, 31), _holds(weekday, moment.isoweekday() % 7, 0, 7))
    # Both restricted: either counts (crontab(5)).
    on_day = any(days) if day != "*" and weekday != "*" else all(days)
    return on_day and _holds(minute, moment.minute, 0, 59) and _holds(hour, moment.hour, 0, 23) and _holds(
        month, moment.month, 1, 12
    )  # fmt: skip


_NAMES = {
    **{each: index for index, each in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))},
    **{
        each: index + 1
        for index, each in enumerate(
            ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
        )
    },
}


def _holds(field: str, value: int, low: int, high: int) -> bool:
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            left, _, right = span.partition("-")
            first = _NAMES.get(left) if left in _NAMES else int(left)  # type: ignore[assignment]
            last = (_NAMES[right] if right in _NAMES else int(right)) if right else (high if step else first)
        numbers = range(first, last + 1, int(step) if step else 1)
        if value in numbers or (value == 0 and high == 7 and 7 in numbers):
            return True
    return False
