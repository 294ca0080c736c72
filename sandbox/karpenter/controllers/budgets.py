"""Disruption budgets: how many nodes of a pool may be disrupted now, by reason (``pkg/apis/v1/nodepool.go``)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.karpenter.durations import seconds

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


def allowed(pool: Object, nodes: int, disrupting: int, reason: str, moment: datetime | None = None) -> int:
    """
    :param nodes: nodes of the pool in all.
    :param disrupting: of them, those that are going or not ready.
    :param reason: ``Empty``, ``Drifted`` or ``Underutilized``.
    :param moment: the time that schedules are compared with; now unless given.
    """
    moment = moment or datetime.now(UTC)
    budgets = (pool["spec"].get("disruption") or {}).get("budgets") or _DEFAULT
    limit = nodes
    for budget in budgets:
        if budget.get("reasons") and reason not in budget["reasons"]:
            continue
        if not active(budget, moment):
            continue
        value = str(budget.get("nodes", "10%"))
        count = -(-int(value[:-1]) * nodes // 100) if value.endswith("%") else int(value)
        limit = min(limit, count)
    return max(0, limit - disrupting)


def active(budget: Object, moment: datetime) -> bool:
    """A budget without a schedule always counts, one with a schedule for ``duration`` after each of its times (UTC)."""
    if not budget.get("schedule"):
        return True
    minutes = int((seconds(budget.get("duration")) or 0) // 60)
    start = moment.replace(second=0, microsecond=0)
    return any(_strikes(budget["schedule"], start - timedelta(minutes=back)) for back in range(minutes + 1))


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
