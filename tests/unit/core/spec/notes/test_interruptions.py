"""What a spec with a maintenance window has to know about Karpenter."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec.notes import notes_of
from tests.unit.core.specs import demo_spec

WINDOW = {"interruptions__maintenance": {"schedule": "0 2 * * 6", "duration": "4h"}}
OURS = {"karpenter__interruptionQueue": None}
OLD = {"karpenter__chart": {"version": "1.11.1"}}


def notes(**changes: Any) -> list[str]:
    return [note.message for note in notes_of(demo_spec(**changes)) if note.field == "interruptions.maintenance"]


@pytest.mark.parametrize("changes", [OURS, {**OURS, **WINDOW, **OLD}, {}])
def test_there_is_nothing_to_note_without_a_window_or_where_karpenter_does_not_look(changes: dict[str, Any]) -> None:
    assert notes(**changes) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (WINDOW, "as soon as it reads the message"),
        ({**WINDOW, **OLD}, "as soon as it reads the message"),
        ({**WINDOW, **OURS}, "may not call ec2:DescribeInstanceStatus"),
        ({**WINDOW, **OURS, **OLD, "karpenter__manage": False}, "if it is 1.12.0 or later,"),
    ],
)
def test_a_window_that_karpenter_does_not_keep_is_noted_with_what_helps(changes: dict[str, Any], says: str) -> None:
    (message,) = notes(**changes)
    assert says in message
