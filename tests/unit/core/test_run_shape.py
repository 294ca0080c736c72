"""Whether a run has the tasks of its spec."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.run_shape import difference

TASKS = ["freeze_spec", "probe", "run_verdict"]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"freeze_spec": "running", "probe": None, "run_verdict": None}, ""),
        ({"freeze_spec": "running", "probe_0": None, "probe_1": "success", "run_verdict": None}, ""),
        ({"freeze_spec": "running", "probe": None}, "it lacks run_verdict"),
        (
            {"freeze_spec": "running", "probe": None, "run_verdict": None, "old": None},
            "it has old, which the spec does not make",
        ),
        ({"freeze_spec": "running", "probe": None, "run_verdict": None, "old": "removed"}, ""),
        ({"freeze_spec": "running", "run_verdict": None, "probe": "removed"}, "it lacks probe"),
    ],
    ids=["the same", "expanded", "new", "gone", "gone and marked so", "back again"],
)
def test_tasks_of_a_run(states: dict[str, Any], said: str) -> None:
    assert difference(TASKS, states) == said


def test_many_are_counted() -> None:
    assert difference([f"t{number}" for number in range(9)], {}) == "it lacks t0, t1, t2 and 6 more"
