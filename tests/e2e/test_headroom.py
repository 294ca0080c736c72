"""Headroom on capacity that stands: it is opened, gives way to a user, and goes with its window and a teardown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.fleet import CLUSTER, SHARED, SYSTEM_NAMESPACE, WHOLE, Fleet, Json, cluster_spec, pool_changes, until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(300)]

HEADROOM = f"gpu_headroom.{CLUSTER}"
JOB = f"headroom-{WHOLE}-0"
#: A window that opened an hour ago: it is open all day, and starts no run of its own during the test.
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
ALWAYS = {"schedule": f"{AN_HOUR_AGO.minute} {AN_HOUR_AGO.hour} * * *", "duration": "24h", "nodes": 1}


def jobs(fleet: Fleet) -> dict[str, Json]:
    found = fleet.kubectl.get("jobs", "-n", SYSTEM_NAMESPACE, "-l", "gpu-fleet.io/component=headroom")
    return {job["metadata"]["name"]: job for job in found}


def placeholder_node(fleet: Fleet) -> str:
    pods = fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE, "-l", "gpu-fleet.io/component=headroom")
    return next((pod["spec"].get("nodeName", "") for pod in pods if not pod["metadata"].get("deletionTimestamp")), "")


def failed(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Failed" and each["status"] == "True" for each in conditions)


@pytest.mark.real_api
def test_headroom_takes_the_idle_node_makes_room_for_a_user_and_goes(standing: Fleet) -> None:
    fleet, instances = standing, set(standing.instances())
    spec: dict[str, Any] = pool_changes(cluster_spec(), WHOLE, {"capacity": {"headroom": [ALWAYS]}})
    try:
        fleet.write_spec(spec)
        run = fleet.run(HEADROOM).succeeded()
        result = run.xcom("open_headroom")
        assert result[WHOLE]["open"] == 1
        # The schedule's own run may have come first.
        assert result[WHOLE]["created"] in ([JOB], [])
        assert set(jobs(fleet)) == {JOB}
        assert "USD/month at the list price of p4d.24xlarge" in run.log("open_headroom")
        node = until("the placeholder on the idle node", lambda: placeholder_node(fleet), 30)
        # Again: nothing is created twice, nothing is bought.
        assert fleet.run(HEADROOM).succeeded().xcom("open_headroom")[WHOLE]["created"] == []
        assert set(fleet.instances()) == instances

        assert set(fleet.users_job(WHOLE)) == {node}
        until("the placeholder's end", lambda: failed(jobs(fleet)[JOB]), 30)
        assert fleet.run(HEADROOM).succeeded().xcom("open_headroom")[WHOLE]["displaced"] == [JOB]
        assert set(fleet.instances()) == instances
        assert set(jobs(fleet)) == {JOB}
    finally:
        fleet.end_users_job()
        # Another pool's window that is not open: the DAG stays, and removes what is no longer wanted.
        later = {"schedule": "0 0 29 2 *", "duration": "15m", "nodes": 1}
        fleet.write_spec(pool_changes(cluster_spec(), SHARED, {"capacity": {"headroom": [later]}}))
    fleet.run(HEADROOM).succeeded()
    assert jobs(fleet) == {}
    fleet.write_spec(cluster_spec())
