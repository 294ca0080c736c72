"""NVIDIA's diagnostics as part of a revalidation: on every GPU of both pools, beside what else is proven."""

from __future__ import annotations

import pytest

from tests.e2e import revalidation
from tests.e2e.fleet import CLUSTER, SHARED, WHOLE, Fleet, until
from tests.e2e.revalidation import REVALIDATE, left_behind, names_of, revalidate

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(420)]


@pytest.fixture
def rounds(fleet: Fleet) -> Fleet:
    """Capacity that stands, under a spec that asks for the quick level."""
    fleet.stand()
    fleet.write_cluster(CLUSTER, {"validation": {"probes": {"dcgm": 1}}})
    tasks = {f"{revalidation.group(pool)}.dcgm" for pool in (SHARED, WHOLE)}
    until("the task dcgm", lambda: tasks <= task_ids(fleet))
    return fleet


def task_ids(fleet: Fleet) -> set[str]:
    return {task["task_id"] for task in fleet.api.call("GET", f"/dags/{REVALIDATE}/tasks")["tasks"]}


def test_the_diagnostics_pass_on_every_node(rounds: Fleet) -> None:
    fleet = rounds
    claims = set(fleet.node_claims())
    run = revalidate(fleet, SHARED, WHOLE).succeeded()
    for pool in (SHARED, WHOLE):
        assert revalidation.blamed(run, pool) == {}
        (report,) = (each for each in revalidation.reports(run, pool) if each["probe"] == "dcgm")
        assert report["outcome"] == "Passed"
        assert sorted(node["node"] for node in report["nodes"]) == names_of(fleet, pool)
        for node in report["nodes"]:
            (check,) = (check for check in node["checks"] if check["name"] == "dcgm")
            assert (check["reason"], check["figures"]["level"]) == ("DcgmPassed", 1)
            assert check["figures"]["passed"]
    assert left_behind(fleet, claims) == []
