"""What a run under way was pinned to, as the DAG processor and the workers find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_fleet.hooks.files import runs as under_way
from gpu_fleet.hooks.files.runs import LINGERS_S, note_begin, note_end, pinned, pinned_dags, run_of, state_dir
from tests.unit.core.specs import demo_spec

DAG = "gpu_lifecycle.demo"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPU_FLEET_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(under_way.time, "time", lambda: now[0])
    return now


def test_a_run_is_pinned_until_it_is_over(clock: list[float]) -> None:
    assert pinned(DAG) is None
    assert note_begin(DAG, "one", demo_spec().to_json(), 500)
    assert pinned(DAG) == pinned(DAG, lingers=False) == demo_spec()
    assert (run_of(DAG), run_of("gpu_teardown.demo")) == ("one", "")
    assert pinned_dags("gpu_lifecycle") == [DAG]
    assert pinned_dags("gpu") == pinned_dags("gpu_teardown") == []
    assert pinned("gpu_teardown.demo") is None
    clock[0] = 1500.0
    assert run_of(DAG) == ""
    assert pinned(DAG) is None, "a run that never came to its verdict is over when Airflow has ended it"


def test_the_dag_stays_until_the_scheduler_has_ended_the_run(clock: list[float]) -> None:
    note_begin(DAG, "one", demo_spec().to_json(), 10_000)
    assert note_end(DAG, "one")
    clock[0] += LINGERS_S - 1
    assert pinned(DAG) is not None
    assert pinned(DAG, lingers=False) is None, "the next run has begun, and with it the cluster file counts"
    assert run_of(DAG) == ""
    assert note_end(DAG, "one"), "a retry of the verdict"
    clock[0] += LINGERS_S
    assert pinned(DAG) is None


def test_the_end_of_a_run_says_nothing_of_the_next() -> None:
    note_begin(DAG, "one", demo_spec().to_json(), 500)
    note_begin(DAG, "two", demo_spec(state="absent").to_json(), 500)
    assert not note_end(DAG, "one")
    found = pinned(DAG)
    assert found is not None
    assert found.state == "absent"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"run": "one"}',
        '{"run": "one", "until": 9e12}',
        '{"run": "one", "until": 9e12, "spec": {"a": 1}}',
    ],
)
def test_a_damaged_record_leaves_the_dag_to_its_file(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / f"{DAG}.json").write_text(content)
    assert pinned(DAG) is None
    assert run_of(DAG) == ""
    assert not note_end("gpu_lifecycle.other", "one")


def test_a_record_of_another_cluster_is_not_taken(folder: Path) -> None:
    note_begin("gpu_lifecycle.other", "one", demo_spec().to_json(), 500)
    assert pinned("gpu_lifecycle.other") is None


@pytest.mark.parametrize("dag_id", ["../gpu_lifecycle.demo", "gpu_lifecycle.a/b", f"{DAG}\n", ""])
def test_no_id_leads_out_of_the_folder(folder: Path, dag_id: str) -> None:
    assert not note_begin(dag_id, "one", demo_spec().to_json(), 500)
    assert pinned(dag_id) is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_costs_the_safeguard_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPU_FLEET_STATE_DIR", str(tmp_path / "file"))
    assert not note_begin(DAG, "one", demo_spec().to_json(), 500)
    assert pinned_dags("gpu_lifecycle") == []


def test_without_a_shared_folder_no_worker_keeps_a_record_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the run may be noted on another worker: the record here would stay in force for days."""
    monkeypatch.delenv("GPU_FLEET_STATE_DIR")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert state_dir() is None
    assert not note_begin(DAG, "one", demo_spec().to_json(), 500)
    assert not note_end(DAG, "one")
    assert pinned(DAG) is None
    assert pinned_dags("gpu_lifecycle") == []
    assert list(tmp_path.iterdir()) == []
