"""Splitting a run's time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from demo.timeline import TaskSpan, critical_path, nearest_that_ran, overlap, read_spans, timeline, union


def span(task_id: str, started: float, ended: float, *upstream: str, **more: object) -> TaskSpan:
    return TaskSpan(task_id, started, ended, upstream, **more)  # type: ignore[arg-type]


def test_path_follows_the_upstream_that_ended_last() -> None:
    spans = [
        span("start", 0, 1),
        span("short", 1, 2, "start"),
        span("long", 1, 9, "start"),
        span("join", 9.5, 10, "short", "long"),
    ]
    assert [each.task_id for each in critical_path(spans)] == ["start", "long", "join"]


def test_upstream_that_ended_after_the_start_did_not_hold_it_up() -> None:
    """Trigger rule one_failed starts a task while other upstreams still run."""
    spans = [span("failed", 0, 2), span("slow", 0, 8), span("remediate", 2.2, 9, "failed", "slow")]
    assert [each.task_id for each in critical_path(spans)] == ["failed", "remediate"]


def test_nothing_ran() -> None:
    assert critical_path([]) == []
    split = timeline([], [], started=0, ended=3)
    assert (split.total, split.injected, split.tasks) == (3, 0, 0)
    assert split.ratio == float("inf")


def test_overlapping_waits_count_once() -> None:
    assert union([(5, 7), (0, 2), (1, 3)]) == [(0, 3), (5, 7)]
    assert overlap(1, 6, [(0, 3), (5, 7)]) == 3


def test_time_is_split_into_person_injected_work_and_airflow() -> None:
    spans = [
        span("work", 1, 3),
        span("gate", 3.5, 13.5, "work", waited=True, deferrals=1),
        span("approve", 14, 20, "gate", person=True),
        span("end", 20.5, 21, "approve"),
    ]
    split = timeline(spans, [(4, 8), (6, 11), (100, 200)], started=0, ended=21.5)
    assert split.total == 21.5
    assert split.person == 6
    assert split.injected == 7
    assert split.work == pytest.approx(2.5)
    assert split.airflow == pytest.approx(21.5 - 6 - 7 - 2.5)
    assert (split.deferrals, split.tasks) == (1, 4)
    assert split.allowed == pytest.approx(2.5 + 4 * 0.4)
    assert split.ratio == pytest.approx(15.5 / 7)


def test_waits_of_the_world_do_not_excuse_a_task_that_did_not_wait() -> None:
    split = timeline([span("slow_work", 0, 10)], [(0, 10)], started=0, ended=10)
    assert split.injected == 0
    assert split.work == 10


def test_wait_until_a_failure_is_certain_is_neither_airflows_nor_the_worlds() -> None:
    """A gate gives a broken image a minute before it fails: nobody's overhead, and no latency of the world."""
    spans = [
        span("install", 1, 3),
        span("prove", 3.5, 73.5, "install", waited=True, deferrals=1, failed=True),
        span("remediate", 74, 84, "prove", waited=True, deferrals=1),
    ]
    split = timeline(spans, [(4, 9), (75, 81)], started=0, ended=85)
    assert split.injected == 5 + 6
    assert split.patience == pytest.approx(70 - 5 - 2.5)
    assert split.airflow == pytest.approx(85 - 11 - 62.5 - 2)
    assert split.ratio == pytest.approx((85 - 62.5) / 11)


def test_failed_task_that_did_not_wait_and_a_wait_that_succeeded_have_no_patience() -> None:
    spans = [span("work", 0, 9, failed=True), span("gate", 9, 30, "work", waited=True, deferrals=1)]
    assert timeline(spans, [], started=0, ended=30).patience == 0


def test_short_wait_that_fails_is_left_to_airflow() -> None:
    assert timeline([span("gate", 0, 2, waited=True, deferrals=1, failed=True)], [], started=0, ended=2).patience == 0


def test_failed_task_is_read_from_the_database(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "airflow.db")) as database:
        database.execute("CREATE TABLE task_instance (dag_id, run_id, task_id, start_date, end_date, state, operator)")
        database.execute("CREATE TABLE serialized_dag (dag_id, data, created_at)")
        database.execute("CREATE TABLE xcom (dag_id, run_id, task_id, key, value)")
        rows = [("d", "r", name, "2026-01-01 00:00:00", "2026-01-01 00:00:09", state, "Gate") for name, state in STATES]
        database.executemany("INSERT INTO task_instance VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        database.execute("INSERT INTO xcom VALUES ('d', 'r', 'broken', 'waiting_for', '{}')")
        database.commit()
    found = {each.task_id: (each.failed, each.waited) for each in read_spans(tmp_path / "airflow.db", "d", "r")}
    assert found == {"broken": (True, True), "fine": (False, False)}


STATES = [("broken", "failed"), ("fine", "success"), ("left out", "upstream_failed")]


def test_path_leads_through_tasks_that_were_skipped() -> None:
    upstream = {"release": ["drain", "plan"], "drain": ["plan"], "plan": ["requested"], "requested": ["validate"]}
    assert nearest_that_ran("release", upstream, {"release", "validate"}) == {"validate"}
    assert nearest_that_ran("release", upstream, {"release", "plan", "validate"}) == {"plan"}
    assert nearest_that_ran("validate", upstream, {"validate"}) == set()
