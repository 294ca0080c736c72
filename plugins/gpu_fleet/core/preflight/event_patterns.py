"""Which events a rule of EventBridge delivers, as far as its pattern tells. Pure.

A pattern is applied to sample events of a kind. The samples have what is certain about every event of the kind and
nothing else, so a pattern that asks for more (for one instance, say) is neither a match nor a miss: ``None``.

Semantics: EventBridge User Guide, "Creating Amazon EventBridge event patterns" and "Comparison operators for use in
event patterns". Comparisons that are not in :data:`_COMPARISONS` are not evaluated: ``None``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: ``None``: it cannot be told.
Verdict = bool | None


@dataclass(frozen=True)
class Announcement:
    """One kind of event about instances.

    :ivar detail_type: the event's ``detail-type``.
    :ivar missed: what happens where no rule delivers it.
    :ivar details: what the events' ``detail`` may be; each of them has to be delivered.
    """

    detail_type: str
    missed: str
    source: str = "aws.ec2"
    details: tuple[Mapping[str, str], ...] = ({},)

    def samples(self, account: str, region: str) -> list[dict[str, Any]]:
        known = {"version": "0", "source": self.source, "detail-type": self.detail_type}
        return [{**known, "account": account, "region": region, "detail": dict(each)} for each in self.details]


#: The five kinds that Karpenter reads, too (aws/karpenter-provider-aws v1.14.1
#: ``pkg/controllers/interruption/messages``, and for the rules
#: ``website/content/en/docs/getting-started/getting-started-with-karpenter/cloudformation.yaml``).
ANNOUNCEMENTS = (
    Announcement("EC2 Spot Instance Interruption Warning", "spot nodes would end without a drain"),
    Announcement(
        "EC2 Instance Rebalance Recommendation",
        "a raised risk of interruption would stay unknown, and no job would be told early",
    ),
    Announcement(
        "EC2 Instance State-change Notification",
        "an instance that a person or another system ends would go unnoticed",
        details=tuple({"state": state} for state in ("stopping", "stopped", "shutting-down", "terminated")),
    ),
    Announcement(
        "AWS Health Event",
        "scheduled maintenance and retirement of instances would come without a planned drain",
        source="aws.health",
        details=({"service": "EC2", "eventTypeCategory": "scheduledChange"},),
    ),
    Announcement(
        "EC2 Capacity Reservation Instance Interruption Warning",
        "nodes in interruptible capacity reservations would end without a drain",
    ),
)


def delivers(pattern: str, event: Mapping[str, Any]) -> Verdict:
    """Whether a rule with this pattern delivers such an event.

    :param pattern: JSON, as DescribeRule answers; empty for a rule that is a schedule, which delivers no event.
    """
    if not pattern:
        return False
    try:
        parsed = json.loads(pattern)
    except ValueError:
        return None
    return _fields(parsed, event) if isinstance(parsed, Mapping) else None


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """False if one is; else unknown if one is; else True."""
    found = list(verdicts)
    return False if False in found else None if None in found else True


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """True if one is; else unknown if one is; else False."""
    found = list(verdicts)
    return True if True in found else None if None in found else False


def _fields(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> Verdict:
    return all_of(_field(name, wanted, event) for name, wanted in pattern.items())


def _field(name: str, wanted: Any, event: Mapping[str, Any]) -> Verdict:
    if name == "$or" and isinstance(wanted, list):
        return any_of(_fields(each, event) if isinstance(each, Mapping) else None for each in wanted)
    if name not in event:
        return None
    value = event[name]
    if isinstance(wanted, Mapping):
        return _fields(wanted, value) if isinstance(value, Mapping) else False
    if not isinstance(wanted, list) or isinstance(value, Mapping):
        return None
    return any_of(_value(each, str(value)) for each in wanted)


def _value(wanted: Any, value: str) -> Verdict:
    """One entry of a pattern's list; the samples hold strings alone."""
    if not isinstance(wanted, Mapping):
        return bool(wanted == value)
    if len(wanted) != 1:
        return None
    ((comparison, argument),) = wanted.items()
    compare = _COMPARISONS.get(str(comparison))
    return compare(argument, value) if compare else None


def _text(compare: Callable[[str, str], bool]) -> Callable[[Any, str], Verdict]:
    return lambda argument, value: compare(argument, value) if isinstance(argument, str) else None


def _anything_but(argument: Any, value: str) -> Verdict:
    if isinstance(argument, Mapping):
        return None
    return value not in (argument if isinstance(argument, list) else [argument])


def _wildcard(argument: str, value: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in argument.split("*")), value, re.DOTALL) is not None


_COMPARISONS: dict[str, Callable[[Any, str], Verdict]] = {
    "prefix": _text(lambda argument, value: value.startswith(argument)),
    "suffix": _text(lambda argument, value: value.endswith(argument)),
    "equals-ignore-case": _text(lambda argument, value: argument.lower() == value.lower()),
    "wildcard": _text(_wildcard),
    "exists": lambda argument, _: bool(argument),
    "anything-but": _anything_but,
}
