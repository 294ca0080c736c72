"""A cluster file that is edited while a run is under way takes no task from the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.files.clusters import load_cluster
from tests.dags.conftest import ROOT, Parse

pytestmark = pytest.mark.slow

DEMO = (ROOT / "include" / "clusters" / "demo.yaml").read_text()
FAMILIES = ("gpu_drain", "gpu_lifecycle", "gpu_restore", "gpu_revalidate", "gpu_spot_drain", "gpu_teardown")
#: As Airflow tells a worker what it is about to run (airflow/sdk/definitions/context.py, ``get_parsing_context``).
CONTEXT = "_AIRFLOW_PARSING_CONTEXT_DAG_ID"


def break_it(folder: Path) -> None:
    (folder / "demo.yaml").write_text("name: demo\nnope: [\n")


def remove_a_pool(folder: Path) -> None:
    start = DEMO.index("  - name: whole-a100")
    end = DEMO.index("\n\n", start)
    (folder / "demo.yaml").write_text(DEMO[:start].rstrip() + DEMO[end:])
    assert load_cluster("demo", folder).pool_names == ("shared-a10g",)


def change_what_it_does(folder: Path) -> None:
    text = DEMO.replace("uninstallKarpenter: true", "uninstallKarpenter: false")
    assert text != DEMO
    (folder / "demo.yaml").write_text(text)


def remove_it(folder: Path) -> None:
    (folder / "demo.yaml").unlink()


def describe_it_twice(folder: Path) -> None:
    (folder / "other.yaml").write_text(DEMO.replace("name: demo\n", "name: other\n"))


EDITS: dict[str, Callable[[Path], None]] = {
    "its own file is invalid": break_it,
    "a pool is removed": remove_a_pool,
    "another graph": change_what_it_does,
    "the file is gone": remove_it,
    "another file names the same cluster": describe_it_twice,
}


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    folder = tmp_path / "clusters"
    folder.mkdir()
    (folder / "demo.yaml").write_text(DEMO)
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def begin(state: Path, spec: ClusterSpec, until: float = 9e12) -> None:
    """As the first task of a run of each family notes it."""
    for family in FAMILIES:
        record = {"run": "manual__1", "until": until, "spec": spec.to_json()}
        (state / f"{family}.{spec.name}.json").write_text(json.dumps(record))


def relations(found: dict[str, Any], name: str = "demo") -> dict[str, Any]:
    assert found["errors"] == {}
    return {
        f"{family}.{task_id}": task["upstream"]
        for family in FAMILIES
        for task_id, task in found["dags"].get(f"{family}.{name}", {"tasks": {}})["tasks"].items()
    }


@pytest.mark.parametrize("edit", EDITS)
def test_the_run_keeps_its_tasks_and_their_order(
    parse: Parse, clusters: Path, state: Path, fleet: dict[str, Any], edit: str
) -> None:
    begin(state, load_cluster("demo", clusters))
    EDITS[edit](clusters)
    assert relations(parse(clusters, GPU_FLEET_STATE_DIR=str(state))) == relations(fleet)


@pytest.mark.parametrize("edit", EDITS)
def test_a_worker_finds_the_same_dag(
    parse: Parse, clusters: Path, state: Path, fleet: dict[str, Any], edit: str
) -> None:
    begin(state, load_cluster("demo", clusters))
    EDITS[edit](clusters)
    found = parse(clusters, GPU_FLEET_STATE_DIR=str(state), **{CONTEXT: "gpu_lifecycle.demo"})
    assert set(found["dags"]) == {"gpu_lifecycle.demo"}
    ours = {key: value for key, value in relations(fleet).items() if key.startswith("gpu_lifecycle.")}
    assert relations(found) == ours


def test_what_is_wrong_with_the_file_stands_in_the_dag(parse: Parse, clusters: Path, state: Path) -> None:
    begin(state, load_cluster("demo", clusters))
    break_it(clusters)
    doc = parse(clusters, GPU_FLEET_STATE_DIR=str(state))["dags"]["gpu_lifecycle.demo"]["doc"]
    assert "The cluster file cannot be used any more" in doc
    assert "demo.yaml: 1 problem" in doc


def test_when_the_run_is_over_the_dag_follows_its_file_again(parse: Parse, clusters: Path, state: Path) -> None:
    begin(state, load_cluster("demo", clusters), until=1.0)
    break_it(clusters)
    found = parse(clusters, GPU_FLEET_STATE_DIR=str(state))
    assert list(found["dags"]["gpu_lifecycle.demo"]["tasks"]) == ["invalid_spec"]
    remove_it(clusters)
    assert parse(clusters, GPU_FLEET_STATE_DIR=str(state))["dags"] == {}


def test_of_two_files_about_one_cluster_both_have_their_dags(parse: Parse, clusters: Path, state: Path) -> None:
    """Their runs are refused at the start: see ``FreezeSpecOperator``."""
    describe_it_twice(clusters)
    found = parse(clusters, GPU_FLEET_STATE_DIR=str(state))
    assert relations(found, "demo") == relations(found, "other")
    assert "gpu_lifecycle.run_verdict" in relations(found, "other")


def test_clusters_are_shared_among_the_files_of_a_family(parse: Parse, clusters: Path, tmp_path: Path) -> None:
    for number in range(6):
        (clusters / f"c{number}.yaml").write_text(
            DEMO.replace("name: demo\n", f"name: c{number}\n").replace("demo-gpu", f"c{number}")
        )
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "gpu_teardown.py").write_text((ROOT / "dags" / "gpu_teardown.py").read_text())
    (folder / "gpu_teardown_2.py").symlink_to("gpu_teardown.py")
    each = [set(parse(clusters, [file])["dags"]) for file in (folder / "gpu_teardown.py", folder / "gpu_teardown_2.py")]
    assert each[0].isdisjoint(each[1])
    assert all(each)
    assert each[0] | each[1] == {f"gpu_teardown.{name}" for name in ("demo", *(f"c{number}" for number in range(6)))}
    # A worker knows which DAG it wants, and finds it in whichever file Airflow remembers.
    for file in ("gpu_teardown.py", "gpu_teardown_2.py"):
        found = parse(clusters, [folder / file], **{CONTEXT: "gpu_teardown.c1"})
        assert set(found["dags"]) == {"gpu_teardown.c1"}
