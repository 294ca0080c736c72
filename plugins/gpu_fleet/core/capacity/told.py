"""What the rest of a run says of a climb: of the XCom that the wait for capacity leaves. Pure, and without chains of
imports: a DAG file that publishes loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BRIEF = ("rung", "what", "from", "to", "result", "reason", "usdPerHour", "usdPerHourIsAtMost", "difference")
#: Characters of the words of EC2 that an asset event has of each attempt; the report has more.
_SAID = 160
#: Attempts that an asset event lists.
_ATTEMPTS = 8


def climb_sentences(told: Mapping[str, Any] | None) -> tuple[str, str]:
    """That the capacity came from a lower rung, and that it is less than wanted; empty where neither is so."""
    return (str((told or {}).get("sentence") or ""), str((told or {}).get("short") or ""))


def climb_brief(told: Mapping[str, Any]) -> dict[str, Any]:
    """A climb, small enough for an asset event."""
    attempts = list(told.get("attempts") or ())
    return {
        "of": told.get("of"),
        "lower": bool(told.get("lower")),
        **({"short": told["short"]} if told.get("short") else {}),
        "attempts": [_brief(each) for each in attempts[-_ATTEMPTS:]],
    }


def _brief(attempt: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: attempt[key] for key in _BRIEF if attempt.get(key) not in (None, "", False)}
    said = str(attempt.get("said") or "")[:_SAID]
    return (
        found | ({"said": said} if said else {}) | {"nodeClaims": [b["nodeClaim"] for b in attempt.get("bought") or ()]}
    )
