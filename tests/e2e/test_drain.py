"""A drain by hand: shown first, asked about, done as agreed, and taken back if a person ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from demo import workload
from tests.e2e.fleet import CLUSTER, SHARED, STANDING, Fleet, until
from tests.e2e.interruptions import budget

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

DRAIN, RESTORE = f"gpu_drain.{CLUSTER}", f"gpu_restore.{CLUSTER}"
NOT_READY = f"gpu-fleet://{CLUSTER}/{SHARED}/not-ready"


@pytest.fixture
def job(standing: Fleet) -> Iterator[tuple[Fleet, str, set[str]]]:
    """A user's job on the shared pool: the fleet, one of its nodes, and the pods there."""
    nodes = standing.users_job()
    pods = standing.kubectl.get("pods", "-n", workload.NAMESPACE)
    here = {pod["metadata"]["name"] for pod in pods if pod["spec"]["nodeName"] == nodes[0]}
    try:
        yield standing, nodes[0], here
    finally:
        standing.repair()
        standing.end_users_job()


def cordoned(fleet: Fleet) -> set[str]:
    return {node["metadata"]["name"] for node in fleet.nodes() if node["spec"].get("unschedulable")}


def pods_of_the_job(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return {pod["metadata"]["name"]: pod for pod in fleet.kubectl.get("pods", "-n", workload.NAMESPACE)}


def test_a_dry_run_and_a_rejected_plan_change_nothing(job: tuple[Fleet, str, set[str]]) -> None:
    fleet, node, pods = job
    dry = fleet.run(DRAIN, {"nodes": [node], "dryRun": True}).succeeded()
    shown = str(dry.xcom("plan")["markdown"])
    assert node in shown
    for pod in pods:
        assert pod in shown
    asked: list[str] = []
    rejected = fleet.run(DRAIN, {"nodes": [node]}, answer="Reject", before_answer=lambda: asked.append("once"))
    assert asked == ["once"], "a drain that evicts users' GPU pods asks"
    assert rejected.states()["cordon"] == rejected.states()["drain"] == "skipped"
    assert cordoned(fleet) == set()
    assert pods <= set(pods_of_the_job(fleet))
    assert not fleet.turn_holder()


def test_an_approved_drain_brings_the_replacement_first_and_moves_the_job(job: tuple[Fleet, str, set[str]]) -> None:
    fleet, node, pods = job
    machine = fleet.kubectl.get("node", node)[0]["spec"]["providerID"].rsplit("/", 1)[-1]
    not_ready = len(fleet.events(NOT_READY))
    most: list[int] = []
    drain = fleet.run(
        DRAIN,
        {"nodes": [node], "replaceFirst": True},
        on_tick=lambda _: most.append(len(fleet.allocatable().get(SHARED, []))),
    ).succeeded()
    assert max(most) == len(STANDING[SHARED]) + 1, "the new node stood before the old one left"
    states = drain.states()
    assert states["replacement.pool_shared-a10g.await_capacity"] == "success"
    assert drain.span("drain")[0] >= drain.span("replacement.pool_shared-a10g.await_capacity")[1]
    report = drain.xcom("drain", "interruption")
    (row,) = report["nodes"]
    assert (row["node"], row["outcome"]) == (node, "Drained")
    assert pods <= {pod["name"] for pod in report["pods"]}
    until("the end of the drained machine", lambda: machine not in fleet.instances(), 60)
    now = pods_of_the_job(fleet)
    assert not pods & set(now)
    assert [pod["status"]["phase"] for pod in now.values()] == ["Running", "Running"]
    # The pool has what it promised: nobody is told otherwise.
    assert fleet.allocatable()[SHARED] == STANDING[SHARED]
    assert len(fleet.events(NOT_READY)) == not_ready
    assert cordoned(fleet) == set()


def test_a_drain_that_a_person_ends_before_the_first_eviction_leaves_no_cordon(
    job: tuple[Fleet, str, set[str]],
) -> None:
    fleet, node, pods = job
    budget(fleet, 0)
    run_id = fleet.start(DRAIN, {"nodes": [node], "askFirst": False})
    fleet.wait_for_task(DRAIN, run_id, "drain", "running", "deferred")
    until("the cordon", lambda: cordoned(fleet) == {node}, 30)
    fleet.api.call("PATCH", f"/dags/{DRAIN}/dagRuns/{run_id}", json={"state": "failed"})
    until("the end of the run", lambda: fleet.api.run(DRAIN, run_id)["state"] == "failed", 30)
    until("the cordon to be taken back", lambda: cordoned(fleet) == set(), 90)
    assert pods <= set(pods_of_the_job(fleet))
    until("the lock's release", lambda: not fleet.turn_holder(), 60)


def test_what_a_drain_takes_without_a_replacement_is_said_and_brought_back(job: tuple[Fleet, str, set[str]]) -> None:
    fleet, node, pods = job
    not_ready = len(fleet.events(NOT_READY))
    budget(fleet, 0)
    drain = fleet.run(DRAIN, {"nodes": [node], "deadline": 1}).succeeded()
    report = drain.xcom("drain", "interruption")
    found = {pod["name"]: pod for pod in report["pods"] if pod["name"] in pods}
    assert {pod["outcome"] for pod in found.values()} == {"Forced"}, (
        "what the budget holds ends in time for the deadline"
    )
    assert len(fleet.events(NOT_READY)) == not_ready + 1
    fleet.run(RESTORE, {"pools": [SHARED]}).succeeded()
    assert fleet.allocatable()[SHARED] == STANDING[SHARED]
