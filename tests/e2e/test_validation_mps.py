"""The shared pool, shared by MPS: its clients are limited, and a control daemon that is absent is named."""

from __future__ import annotations

import pytest

from tests.e2e import revalidation
from tests.e2e.fleet import CLUSTER, PLUGIN_NAMESPACE, SHARED, Fleet, Json, cluster_spec, until
from tests.e2e.revalidation import left_behind, revalidate

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(420)]


def mps_spec() -> Json:
    sharing = {"mode": "mps", "replicas": 4, "failRequestsGreaterThanOne": True}
    spec = cluster_spec(CLUSTER)
    pools = [
        {**pool, "sharing": sharing, "wantedNodes": 1} if pool["name"] == SHARED else pool for pool in spec["nodePools"]
    ]
    return {**spec, "nodePools": pools}


def daemon_ready(fleet: Fleet) -> bool:
    """Whether there is an MPS control daemon, and all of it is ready."""
    pods = [
        pod
        for pod in fleet.kubectl.get("pods", "-n", PLUGIN_NAMESPACE)
        if "mps-control-daemon" in pod["metadata"]["name"]
    ]
    return bool(pods) and all(c["ready"] for pod in pods for c in pod["status"].get("containerStatuses") or [])


@pytest.fixture(scope="module")
def mps(the_fleet: Fleet) -> Fleet:
    the_fleet.reset()
    the_fleet.write_spec(mps_spec())
    the_fleet.lifecycle(pools=[SHARED]).succeeded()
    assert the_fleet.allocatable() == {SHARED: [4]}
    return the_fleet


def test_clients_with_their_limits_are_healthy(mps: Fleet, fleet: Fleet) -> None:
    run = revalidate(fleet, SHARED)
    assert revalidation.blamed(run, SHARED) == {}
    run.succeeded()
    (measured,) = (report for report in revalidation.reports(run, SHARED) if report["probe"] == "throughput")
    found = {check["name"]: check for check in measured["nodes"][0]["checks"]}
    assert set(found["memory"]["figures"]["totalMiB"].values()) == {23028}
    assert 0 < max(found["memory"]["figures"]["freeMiB"].values()) <= 23028 // 4
    assert set(found["memory"]["figures"]["multiprocessors"].values()) == {80 // 4}


def test_a_daemon_that_is_absent_is_named(mps: Fleet, fleet: Fleet) -> None:
    (node,) = revalidation.names_of(fleet, SHARED)
    with fleet.fault("mps-daemon-absent", {"node": node}):
        until("the daemon's end", lambda: not daemon_ready(fleet), 60)
        run = revalidate(fleet, SHARED)
    assert run.state == "failed"
    assert revalidation.blamed(run, SHARED) == {node: {"MpsDaemonAbsent"}}
    assert left_behind(fleet) == []
    until("the daemon", lambda: daemon_ready(fleet), 120)
