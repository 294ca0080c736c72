"""A Capacity Block from before its start until EC2 would take it: waited for, proven, drained in time, accounted for.

EC2's 30 minutes and Karpenter's 40 pass in the sandbox's time; start and end of the block, and the fields of the
cluster file, are real ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from demo import workload
from demo.timeline import epoch
from tests.e2e.fleet import CLUSTER, LIFECYCLE, Fleet, cluster_spec, until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

Json = dict[str, Any]
POOL, TYPE, RESERVATION = "block", "g5.xlarge", "cr-0e2e0e2e0e2e0e2e0"
DRAIN = f"gpu_drain.{CLUSTER}"
READY, NOT_READY = (f"gpu-fleet://{CLUSTER}/{POOL}/{topic}" for topic in ("ready", "not-ready"))
RESERVATION_LABEL = "karpenter.k8s.aws/capacity-reservation-id"
#: Real seconds until the block begins, and those in which its nodes can be used.
STARTS_IN, USABLE = 45.0, 240.0


@pytest.fixture
def block(empty: Fleet) -> Iterator[Fleet]:
    """The demo cluster's file is back afterwards, and its nodes are gone."""
    try:
        yield empty
    finally:
        empty.end_users_job()
        empty.reset()
        empty.write_cluster()


def zone_of(fleet: Fleet) -> str:
    """A zone that offers the type and has a subnet of the cluster."""
    offers = fleet.aws("ec2").describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [TYPE]}]
    )
    subnets = fleet.aws("ec2").describe_subnets(Filters=[{"Name": "tag-key", "Values": ["karpenter.sh/discovery"]}])
    zones = {each["AvailabilityZone"] for each in subnets["Subnets"]}
    return sorted(zones & {each["Location"] for each in offers["InstanceTypeOfferings"]})[0]


def tasks(fleet: Fleet, dag_id: str) -> set[str]:
    return {task["task_id"] for task in fleet.api.call("GET", f"/dags/{dag_id}/tasks")["tasks"]}


def moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def told(fleet: Fleet) -> dict[str, Json]:
    """What the job's pods are told, by pod."""
    found = {}
    for pod in fleet.kubectl.get("pods", "-n", workload.NAMESPACE):
        text = (pod["metadata"].get("annotations") or {}).get("gpu-fleet.io/interruption")
        if text:
            found[pod["metadata"]["name"]] = json.loads(text)
    return found


def test_a_block_is_waited_for_proven_and_drained_before_it_ends(block: Fleet) -> None:
    fleet = block
    ec2_takes, karpenter_takes = 1800 / fleet.stack.speed, 2400 / fleet.stack.speed
    empty_before, notice = int(karpenter_takes) + 15, 10
    margin = empty_before + notice + 30
    pool = {
        "name": POOL,
        "instanceTypes": [TYPE],
        "capacityTypes": ["reserved"],
        "capacityReservations": [{"id": RESERVATION}],
        "capacityBlock": {"margin": f"{margin}s", "notice": f"{notice}s", "emptyBefore": f"{empty_before}s"},
        "wantedNodes": 1,
        "limits": {"nodes": 2},
        "disruption": {"consolidateAfter": "24h"},
    }
    fleet.write_spec({**cluster_spec(), "nodePools": [pool]})
    for dag_id, task_id in ((LIFECYCLE, "preflight.await_capacity_blocks"), (DRAIN, "block_due")):
        fleet.api.wait_for_dag(dag_id)
        until(f"{dag_id} to be read again", lambda dag_id=dag_id, task_id=task_id: task_id in tasks(fleet, dag_id), 90)
    body = {
        "id": RESERVATION,
        "instanceType": TYPE,
        "zone": zone_of(fleet),
        "count": 2,
        "type": "capacity-block",
        "startsIn": STARTS_IN,
        "endsIn": STARTS_IN + USABLE + margin,
    }
    made = fleet.sandbox.call("POST", "/reservations", json=body)
    reservation, starts, ends = made["CapacityReservationId"], moment(made["StartDate"]), moment(made["EndDate"])
    stops = ends - margin

    # It waits for the block without the cluster lock, and says why.
    run_id = fleet.start(LIFECYCLE, {"until": "validated"})
    waiting = "preflight.await_capacity_blocks"
    fleet.wait_for_task(LIFECYCLE, run_id, waiting, "deferred", timeout=STARTS_IN)
    assert time.time() < starts
    reason = fleet.api.xcom(LIFECYCLE, run_id, waiting, "waiting_for")
    assert reason["reason"] == "CapacityBlockNotStarted"
    assert reservation in reason["message"]
    assert fleet.turn_holder() == {}
    assert fleet.instances() == {}

    # It begins, and its capacity is proven.
    run = fleet.follow(LIFECYCLE, run_id, timeout=USABLE + STARTS_IN).succeeded()
    assert time.time() < stops, "this machine is too slow for the block; raise USABLE"
    [node] = fleet.nodes()
    assert node["metadata"]["labels"][RESERVATION_LABEL] == reservation
    assert all(each["LaunchTime"].timestamp() >= starts - 1 for each in fleet.instances().values())
    [shown] = [r for r in fleet.sandbox.call("GET", "/reservations") if r["CapacityReservationId"] == reservation]
    assert shown["AvailableInstanceCount"] == 1
    extra = fleet.events(READY)[-1]["extra"]
    assert moment(extra["validUntil"]) <= stops + 1
    assert extra["capacityBlock"]["reservation"] == reservation
    assert abs(moment(extra["capacityBlock"]["stops"]) - stops) <= 1
    verdict = run.xcom(f"validation.pool_{POOL}.publish", "verdict")
    assert verdict["validUntil"] == extra["validUntil"]

    # Its end is booked: a run that waits in Airflow's database alone.
    drain_id = f"block_end__{POOL}__{reservation}__{int(stops)}"
    booked = fleet.api.run(DRAIN, drain_id)
    assert booked["state"] == "queued"
    assert abs((epoch(booked["run_after"]) or 0.0) - stops) <= 1

    # A user's job runs until it is told, has its notice, and is evicted before anybody else takes the node.
    workload.start(fleet.kubectl, POOL, replicas=1)
    seen: dict[str, float] = {}

    def look(_: dict[str, Json]) -> None:
        for name in told(fleet):
            seen.setdefault(name, time.time())

    fleet.runs.append((DRAIN, drain_id))
    drain = fleet.follow(DRAIN, drain_id, timeout=USABLE + margin, on_tick=look).succeeded()
    report = drain.xcom("remove", "interruption")
    [row] = report["nodes"]
    assert row["outcome"] == "Drained"
    job = [pod for pod in report["pods"] if pod["namespace"] == workload.NAMESPACE]
    assert [pod["outcome"] for pod in job] == ["Evicted"]
    assert seen, "no pod was told"
    assert job[0]["asked_at"] >= stops + notice - 1
    # Telling takes a task of its own, some seconds of a notice that is as short as here.
    assert job[0]["asked_at"] > min(seen.values())
    assert row["emptiedAt"] <= ends - empty_before
    until("the claim to be gone", lambda: fleet.node_claims() == {}, karpenter_takes)
    assert time.time() < ends - karpenter_takes
    until("the instance to be gone", lambda: fleet.instances() == {}, karpenter_takes)
    assert time.time() < ends - ec2_takes
    assert fleet.sandbox.call("GET", "/lost") == []

    # Nothing comes back in the block, the pool says that it has ended, and the report what was paid for.
    [closed] = fleet.objects("nodepools.karpenter.sh")
    assert closed["spec"]["limits"]["nodes"] == "0"
    assert fleet.events(NOT_READY)[-1]["extra"]["reason"] == "CapacityBlockEnded"
    account = report["block"]
    assert account["paidHours"] == pytest.approx(2 * (ends - starts) / 3600, abs=0.01)
    # One instance was never used, and the other one not before it had joined.
    assert account["idleHours"] == pytest.approx((ends - starts) / 3600, abs=0.01)
    assert account["unusedHours"] == pytest.approx(
        account["idleHours"] + account["lateHours"] + account["earlyHours"], abs=0.002
    )
    assert account["earlyHours"] >= empty_before / 3600 - 0.002
    assert account["lateHours"] > 0
