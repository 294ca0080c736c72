"""What a reason is: the CamelCase word of a verdict, check or error, with what it means and what helps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What a reason does to the task, or to the node that is judged; the values are the words of the reference."""

    WAITS = "waits"
    WAITS_THEN_RETRIED = "waits; if it lasts, fails, tried again"
    WAITS_THEN_PERSON = "waits; if it lasts, fails, needs a person"
    RETRIED = "fails, tried again"
    PERSON = "fails, needs a person"
    GOES_ON = "continues"
    SKIPPED = "is skipped"
    NODE_FAILS = "the node fails"
    DOUBT = "the node is in doubt; tried again"
    BUSY = "the node is Busy"
    CHECK_SKIPPED = "the check is skipped"
    PASSES = "the check passes"
    NODE_LEFT = "the node is left as it is"
    POD_LEFT = "the pod is left"
    POD_EVICTED = "the pod is evicted"
    POD_REFUSED = "the drain is refused"


@dataclass(frozen=True)
class Reason:
    """One reason.

    :ivar name: CamelCase, as in logs, XComs, reports and taints.
    :ivar effect: what it does.
    :ivar found: what was found, without a full stop.
    :ivar remedy: what to do, as whole sentences; empty if there is nothing to do.
    :ivar in_node: whether the cause lies in the node, so that another node of the pool would do better; only such
        nodes may be quarantined or replaced.
    :ivar guide: where the guides say more, relative to ``docs/guides``.
    """

    name: str
    effect: Effect
    found: str
    remedy: str = ""
    in_node: bool = False
    guide: str = ""


@dataclass(frozen=True)
class Section:
    """Reasons of one subject.

    :ivar where: in which tasks, gates or checks they appear.
    """

    title: str
    where: str
    reasons: tuple[Reason, ...]
