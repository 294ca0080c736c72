"""How a pool's capacity came: every rung of its ladder that was tried, and what EC2 said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_fleet.core.aws.costs import Price
from gpu_fleet.core.markup.blocks import Block, Heading, Inline, Note, Table, clean, instant, text

#: Result of an attempt -> the words of the report.
_RESULTS = {
    "Trying": "being tried",
    "GivenUp": "given up",
    "Partly": "some nodes, then given up",
    "Capacity": "capacity",
}


def ladder_blocks(ladder: Mapping[str, Any] | None, lower: str) -> Iterator[Block]:
    """
    :param ladder: what the wait for capacity has tried, as its XCom has it.
    :param lower: that nodes stand on a lower rung, in a run that only looked.
    """
    attempts = [each for each in (ladder or {}).get("attempts") or () if isinstance(each, Mapping)]
    if attempts:
        yield Heading(3, "How the capacity came")
        yield Table(
            "Rungs of the ladder, in the order in which they were tried",
            ("rung", "asked for", "from", "seconds", "result", "instances", "EC2's answer", "price", "difference"),
            tuple(_row(each) for each in attempts),
        )
    for told in ((ladder or {}).get("sentence"), (ladder or {}).get("short"), lower):
        if told:
            yield Note(clean(f"{str(told)[:1].upper()}{str(told)[1:]}."))


def _row(attempt: Mapping[str, Any]) -> tuple[Inline, ...]:
    began, ended = attempt.get("began"), attempt.get("ended")
    took = f"{ended - began:.0f}" if isinstance(began, int | float) and isinstance(ended, int | float) else "–"
    bought = [each for each in attempt.get("bought") or () if isinstance(each, Mapping)]
    instances = ", ".join(
        f"{each.get('nodeClaim')} ({each.get('instanceType')}, {each.get('zone')})" for each in bought
    )
    reason, said = str(attempt.get("reason") or ""), str(attempt.get("said") or "")
    usd = attempt.get("usdPerHour")
    price = Price(float(usd) if isinstance(usd, int | float) else None, bool(attempt.get("usdPerHourIsAtMost")))
    result = str(attempt.get("result") or "")
    return (
        text(str(attempt.get("rung", ""))),
        text(str(attempt.get("what", ""))),
        text(instant(attempt.get("from"))),
        text(took),
        text(_RESULTS.get(result, result)),
        text(instances or "–"),
        text(f"{reason}: {said}" if reason else "–"),
        text(str(price)),
        text(str(attempt.get("difference") or "–")),
    )
