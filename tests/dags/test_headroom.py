"""The DAG of headroom: which clusters have one, when it runs, and what it may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dags.conftest import Parse
from tests.unit.core.specs import demo_mapping

WEEKDAYS = {"schedule": "0 8 * * 1-5", "duration": "10h", "timeZone": "Europe/Berlin", "nodes": 1}


@pytest.fixture(scope="module")
def parsed(parse: Parse, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cluster with windows in both pools, one without, one that is to go, and one whose file is broken."""
    folder: Path = tmp_path_factory.mktemp("clusters")
    windows = [WEEKDAYS, WEEKDAYS | {"schedule": "30 6 * * 6"}]
    headroom = {
        "nodePools__0__capacity": {"headroom": windows},
        "nodePools__1__capacity": {"headroom": [WEEKDAYS]},
    }
    files = {
        "with": demo_mapping(name="with", **headroom),
        "without": demo_mapping(name="without", cluster__name="second"),
        "going": demo_mapping(name="going", cluster__name="third", state="absent", **headroom),
        "broken": {"name": "broken"},
    }
    for name, value in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value))
    return parse(folder)


def test_only_clusters_with_windows_have_one(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert {name for name in parsed["dags"] if name.startswith("gpu_headroom.")} == {
        "gpu_headroom.with",
        "gpu_headroom.going",
    }
    assert "gpu_lifecycle.broken" in parsed["dags"]


def test_it_runs_whenever_a_window_opens_on_the_clock_of_its_time_zone(parsed: dict[str, Any]) -> None:
    timetable = parsed["dags"]["gpu_headroom.with"]["serialized"]["dag"]["timetable"]
    assert timetable["__type"].endswith("MultipleCronTriggerTimetable")
    [*each] = timetable["__var"]["expressions"]
    assert (each, timetable["__var"]["timezone"]) == (["0 8 * * 1-5", "30 6 * * 6"], "Europe/Berlin")
    assert parsed["dags"]["gpu_headroom.with"]["catchup"] is False
    assert "NullTimetable" in parsed["dags"]["gpu_headroom.going"]["serialized"]["dag"]["timetable"]["__type"]


def test_it_opens_under_the_cluster_lock_and_waits_for_no_node(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["gpu_headroom.with"]["tasks"]
    assert set(tasks) == {
        *("freeze_spec", "preflight.cluster_active", "preflight.acquire_turn", "open_headroom"),
        *("release_turn", "reached_end", "run_verdict"),
    }
    assert tasks["open_headroom"]["upstream"] == ["preflight.acquire_turn"]
    assert tasks["open_headroom"]["changes_cluster"]
    assert [name for name, task in tasks.items() if task["gate"]] == ["preflight.cluster_active"]
    assert [name for name, task in tasks.items() if not task["downstream"]] == ["run_verdict"]
    assert all(task["retries"] >= 1 and task["retry_policy"] for task in tasks.values())
