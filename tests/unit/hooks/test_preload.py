from __future__ import annotations

import sys
from typing import Any

import pytest

from gpu_fleet.hooks import preload


class Job:
    """What a starting scheduler announces."""


class TaskRunnerMarker:
    """What a starting task announces."""


@pytest.mark.parametrize(
    ("component", "argv", "expected"),
    [
        (Job(), ["airflow", "scheduler"], True),
        (Job(), ["airflow", "triggerer"], False),
        (TaskRunnerMarker(), ["airflow", "scheduler"], False),
        (Job(), ["airflow"], False),
    ],
)
def test_only_the_scheduler_itself_preloads(component: Any, argv: list[str], expected: bool) -> None:
    assert preload.is_scheduler(component, argv) is expected


def test_every_module_of_the_list_exists() -> None:
    assert preload.preload() == []
    assert all(name in sys.modules for name in preload.MODULES)


def test_a_module_that_is_missing_does_not_stop_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "MODULES", ("json", "no_such_module_anywhere"))
    assert preload.preload() == ["no_such_module_anywhere"]
