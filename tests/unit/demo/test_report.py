"""What the report says about a run's time."""

from __future__ import annotations

from typing import Any

from demo.report import render, timeline_json
from demo.timeline import TaskSpan, timeline


def report(*, failed: bool) -> str:
    spans = [TaskSpan("prove.await_plugin", 1.0, 61.0, (), deferrals=1, waited=True, failed=failed)]
    split = timeline(spans, [(2.0, 12.0)], started=0.0, ended=62.0)
    found: dict[str, Any] = {"timelines": {"run-1": timeline_json(split, 0.0)}, "outcome": "as it should be"}
    return render(found)


def test_waiting_until_a_failure_was_certain_is_named_and_not_in_the_ratio() -> None:
    told = report(failed=True)
    assert "waiting until a failure was certain 47.5 + own work 0.0 + Airflow 4.5" in told
    assert "run without that wait / injected waits = 1.45" in told
    assert "prove.await_plugin (deferred) (failed after 47.5 s of patience)" in told


def test_run_without_a_failure_does_not_mention_one() -> None:
    told = report(failed=False)
    assert "failure" not in told
    assert "run 62.0 s = injected waits 10.0 + own work 0.0 + Airflow 52.0; run / injected waits = 6.20" in told
