"""A cluster file that is edited while a run is under way: the run ends as it began.

A teardown that waits for its approval is such a run at rest; the DAG processor parses the file meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.e2e.fleet import CLUSTER, TEARDOWN, Fleet, cluster_spec, until

APPROVE = "teardown.approve"


def break_it(fleet: Fleet) -> None:
    (fleet.clusters_dir / f"{CLUSTER}.yaml").write_text("name: demo\nnope: [\n")


def remove_a_pool(fleet: Fleet) -> None:
    spec = cluster_spec()
    fleet.write_spec({**spec, "nodePools": spec["nodePools"][:1]})


def describe_it_twice(fleet: Fleet) -> None:
    fleet.write_spec({**cluster_spec(), "name": "twin"})


def remove_it(fleet: Fleet) -> None:
    (fleet.clusters_dir / f"{CLUSTER}.yaml").unlink()


@pytest.mark.parametrize(
    "edit",
    [
        break_it,
        pytest.param(remove_a_pool, marks=pytest.mark.full),
        pytest.param(describe_it_twice, marks=pytest.mark.full),
        pytest.param(remove_it, marks=pytest.mark.full),
    ],
)
def test_a_run_ends_as_it_began_whatever_becomes_of_its_file(empty: Fleet, edit: Callable[[Fleet], None]) -> None:
    run_id = empty.start(TEARDOWN)
    empty.wait_for_task(TEARDOWN, run_id, APPROVE, "awaiting_input")
    before = {task["task_id"] for task in empty.api.tasks(TEARDOWN, run_id)}
    try:
        edit(empty)
        edited = datetime.now(UTC)

        def parsed() -> bool:
            found = empty.api.call("GET", f"/dags/{TEARDOWN}")["last_parsed_time"]
            return datetime.fromisoformat(found) > edited

        # Twice: the first may have begun before the edit.
        for _ in range(2):
            until("the DAG file to be parsed again", parsed, 90)
            edited = datetime.now(UTC)
        run = empty.follow(TEARDOWN, run_id).succeeded()
    finally:
        (empty.clusters_dir / "twin.yaml").unlink(missing_ok=True)
        empty.write_cluster()
    assert set(run.tasks) == before
    assert "removed" not in set(run.states().values())
    assert run.states()["teardown.release_turn"] == "success"
    assert empty.turn_holder() == {}
