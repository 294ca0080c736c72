"""Spot interruptions: marked at once, drained before the end, nothing lost, the successor proven."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from demo.spot import DRAIN, await_cordon
from tests.e2e.fleet import CLUSTER, SHARED, Fleet
from tests.e2e.interruptions import Interrupted, budget

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

READY, NOT_READY = f"gpu-fleet://{CLUSTER}/{SHARED}/ready", f"gpu-fleet://{CLUSTER}/{SHARED}/not-ready"
#: Of a notice of 120 s so much is kept in reserve that a test need not wait for the end of it.
EARLY = {"margin": "100s"}


@pytest.fixture
def spot(fleet: Fleet) -> Iterator[Interrupted]:
    """The package handles what Karpenter handles; the pools stand again afterwards."""
    found = Interrupted(fleet, EARLY)
    try:
        yield found
    finally:
        fleet.repair()
        fleet.end_users_job()
        # No test after this one reads the queue.
        fleet.write_cluster()
        with contextlib.suppress(Exception):
            fleet.api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": True})


def test_an_interrupted_node_is_drained_and_its_pool_made_whole_again(spot: Interrupted) -> None:
    fleet = spot.fleet
    node, pods = spot.job()
    ready, not_ready = len(fleet.events(READY)), len(fleet.events(NOT_READY))
    spot.interrupt(spot.instance(node))
    await_cordon(spot, node)
    drain = spot.drained().succeeded()
    report = spot.report(drain)
    (row,) = report["nodes"]
    assert (row["node"], row["kind"], row["outcome"]) == (node, "SpotInterruption", "Drained")
    # Whoever evicted them, Karpenter or this run, the report names each pod.
    assert pods <= {pod["name"] for pod in report["pods"]}
    assert {pod["outcome"] for pod in report["pods"]} <= {"Evicted", "Gone", "Terminated", "Left"}
    assert drain.xcom("pods_placed", "placement")["phase"] == "Ready"
    assert not pods & spot.pods_on(node)
    # Fewer nodes than wanted: not ready, until the successor is proven.
    assert len(fleet.events(NOT_READY)) == not_ready + 1
    spot.restored(drain).succeeded()
    assert len(fleet.events(READY)) == ready + 1
    assert spot.lost() == []


@pytest.mark.full
def test_what_a_budget_holds_gets_its_own_grace_before_the_end(spot: Interrupted) -> None:
    node, pods = spot.job()
    budget(spot.fleet, 0)
    spot.interrupt(spot.instance(node))
    drain = spot.drained().succeeded()
    found = {pod["name"]: pod for pod in spot.report(drain)["pods"] if pod["name"] in pods}
    assert {pod["outcome"] for pod in found.values()} == {"Forced"}
    for pod in found.values():
        assert "trainer" in pod["words"]
        assert pod["gone_at"] < pod["deadline"]
    assert spot.lost() == []
    spot.restored(drain)


@pytest.mark.full
def test_duplicates_strangers_and_nonsense_start_one_drain_and_lose_nothing(spot: Interrupted) -> None:
    node, pods = spot.job()
    dead = len(spot.dead_letters())
    spot.interrupt(malformed="truncated")
    spot.interrupt(foreign=True)
    spot.interrupt(spot.instance(node), times=10)
    runs = spot.all_drained()
    drained = [row["node"] for run in runs for row in spot.report(run)["nodes"]]
    assert drained == [node]
    assert all(run.state == "success" for run in runs)
    assert len(spot.dead_letters()) > dead
    assert {each["reason"] for each in spot.dead_letters()} == {"NotJson"}
    assert not pods & spot.pods_on(node)
    assert spot.lost() == []
    for run in runs:
        if spot.report(run)["nodes"]:
            spot.restored(run)


@pytest.mark.full
def test_what_karpenter_drains_weeks_ahead_of_a_scheduled_change_is_watched_and_replaced(spot: Interrupted) -> None:
    node, pods = spot.job()
    began = time.time()
    spot.interrupt(spot.instance(node), kind="scheduled", startsIn=14 * 86400.0)
    drain = spot.drained().succeeded()
    assert time.time() - began < 240
    (row,) = spot.report(drain)["nodes"]
    assert (row["node"], row["kind"], row["outcome"]) == (node, "ScheduledChange", "Drained")
    assert pods <= {pod["name"] for pod in spot.report(drain)["pods"]}
    assert not pods & spot.pods_on(node)
    spot.restored(drain).succeeded()
    assert spot.lost() == []


@pytest.mark.full
def test_a_node_that_karpenter_removes_because_its_checks_fail_is_reported(spot: Interrupted) -> None:
    """There is no message of a failed check: the first is that of the instance's end."""
    node, _ = spot.job()
    spot.interrupt(spot.instance(node), impaired="system")
    drain = spot.drained(timeout=240)
    assert drain.state == "failed"
    (row,) = spot.report(drain)["nodes"]
    assert (row["kind"], row["outcome"] in ("Unseen", "Lost", "Drained")) == ("InstanceTerminating", True)
    spot.restored(drain)
