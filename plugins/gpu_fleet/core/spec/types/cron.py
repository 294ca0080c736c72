"""Cron expressions: of a DAG's schedule, as Airflow reads them, and of a disruption budget, as Karpenter does.

What is accepted here must never be refused later: a schedule that Airflow cannot read breaks the whole DAG file.
"""

from __future__ import annotations

import re
from datetime import datetime

_CRON_FIELD = r"[0-9A-Za-z*/,#?LW-]+"
_CRON = re.compile(rf"{_CRON_FIELD}( {_CRON_FIELD}){{4}}|@(hourly|daily|weekly|monthly)")
#: Longest expression: a list of every minute of an hour fits into it.
_LONGEST = 256
#: The five fields in order, each with its lowest and highest number.
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
#: Where the search for the next date begins: any date will do, because croniter looks 50 years ahead.
_SOME_DATE = datetime(2025, 1, 1)  # noqa: DTZ001  (an expression has no time zone)

_BUDGET_MACRO = re.compile(r"@(annually|yearly|monthly|weekly|daily|midnight|hourly)")
_BUDGET_PART = re.compile(r"(?P<first>[*?]|\w+)(-(?P<last>\w+))?(/(?P<step>[0-9]+))?", re.ASCII)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = {
    "month": {name: number for number, name in enumerate(_MONTHS, start=1)},
    "day of week": {name: number for number, name in enumerate(_DAYS)},
}


def _bounded(value: str) -> None:
    if len(value) > _LONGEST:
        raise ValueError(f"{value[:40]!r}… has {len(value)} characters; write at most {_LONGEST}")


def check_schedule(value: str) -> str:
    """A schedule for Airflow, which reads cron expressions with croniter.

    :raises ValueError: naming the part that is wrong and what to write.
    """
    _bounded(value)
    if not _CRON.fullmatch(value):
        raise ValueError(f"{value!r} is not a cron expression; write five fields such as '0 6 * * 1', or @daily")
    # Imported late, because it takes longer than the rest of the spec together.
    from croniter import CroniterError, croniter

    parts = [] if value.startswith("@") else value.split(" ")
    for position, (part, (name, low, high)) in enumerate(zip(parts, _FIELDS, strict=False)):
        alone = " ".join("*" if other != position else part for other in range(len(_FIELDS)))
        if not croniter.is_valid(alone):
            raise ValueError(f"{value!r}: {part!r} is not a cron {name}; write numbers from {low} to {high}, or *")
    try:
        croniter(value, start_time=_SOME_DATE).get_next(datetime)
    except CroniterError as error:
        raise ValueError(f"{value!r} names no date that ever comes ({error}); correct its days and months") from error
    return value


def check_budget_schedule(value: str) -> str:
    """A disruption budget's schedule: five fields or a macro (kubernetes-sigs/karpenter v1.14 pkg/apis/v1/nodepool.go;
    it is read with robfig/cron v3 ``ParseStandard``, which knows neither ``L``, ``#`` and ``W`` nor Sunday as 7).

    :raises ValueError: naming the part that is wrong and what to write.
    """
    _bounded(value)
    if _BUDGET_MACRO.fullmatch(value):
        return value
    parts = value.split(" ")
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"{value!r} is not a cron expression; write five fields in UTC such as '0 22 * * 1-5', or @daily"
        )
    for part, (name, low, high) in zip(parts, _FIELDS, strict=True):
        high = 6 if name == "day of week" else high
        if not all(_budget_part(piece, name, low, high) for piece in part.split(",")):
            raise ValueError(
                f"{value!r}: Karpenter reads {part!r} as no {name}; write numbers from {low} to {high}, or *"
            )
    return value


def _budget_part(piece: str, name: str, low: int, high: int) -> bool:
    """Whether one entry of a field's list is ``*``, a number or name, or a range of them, each perhaps with a step."""
    match = _BUDGET_PART.fullmatch(piece)
    if match is None or (match["step"] is not None and int(match["step"]) == 0):
        return False
    if match["first"] in "*?":
        return match["last"] is None
    first = _number(match["first"], name)
    last = first if match["last"] is None else _number(match["last"], name)
    return first is not None and last is not None and low <= first <= last <= high


def _number(text: str, name: str) -> int | None:
    return int(text) if text.isdecimal() else _NAMES.get(name, {}).get(text.lower())
