"""The end of a Capacity Block, task by task, against the sandbox's API server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from gpu_fleet.core.errors import ApiUnavailable
from gpu_fleet.core.interruptions.promise import BLOCK_ENDED
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.reservations.reservation import Reservation
from gpu_fleet.operators.interruptions.block import block_account, ends_a_block
from gpu_fleet.operators.interruptions.placed import AwaitPlacementOperator
from gpu_fleet.operators.reservations.ending import CheckBlockEndOperator, StopAdmittingOperator
from tests.unit.operators.draining_world import World
from tests.unit.operators.interruptions.test_drain import join
from tests.unit.operators.interruptions.test_manual import Drain, is_cordoned
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL, ID = "shared-a10g", "cr-1"
CALENDAR = {"margin": "75m", "notice": "15m", "emptyBefore": "45m"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml", "karpenter.sh_nodepools.yaml")
        yield cluster


@pytest.fixture
def world(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM

    monkeypatch.setattr("gpu_fleet.operators.capacity.removal.SCHEDULER_LAG_S", 0.0)
    found = World(shared)
    try:
        yield found
    finally:
        found.clear()
        for kind in (NODE_CLAIM, NODE_POOL):
            for item in shared.kube.list(kind):
                shared.kube.delete(ObjectRef(kind, item["metadata"]["name"]))


class Blocks:
    """What EC2 says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *blocks: Reservation) -> None:
        self.blocks = list(blocks)
        monkeypatch.setattr("gpu_fleet.hooks.aws.reservations.reservations_of", lambda *_: tuple(self.blocks))
        monkeypatch.setattr(
            "gpu_fleet.hooks.aws.reservations.reservation",
            lambda _, identifier: next((each for each in self.blocks if each.id == identifier), None),
        )


def block(stops_in: float, identifier: str = ID) -> Reservation:
    """One that is given up so many seconds from now."""
    now = time.time()
    end = now + stops_in + 75 * 60
    return Reservation(identifier, "active", "capacity-block", "g5.xlarge", "us-west-2a", total=2, start=0.0, end=end)


def in_the_block(world: World, name: str, instance: str, reservation: str = ID) -> None:
    join(world, name, instance)
    labels = {"karpenter.k8s.aws/capacity-reservation-id": reservation, "karpenter.sh/capacity-type": "reserved"}
    world.kube.patch(ObjectRef(NODE, name), {"metadata": {"labels": labels}})


def pool_of(world: World) -> None:
    requirements = [{"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["reserved"]}]
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    world.kube.apply(
        {
            "apiVersion": "karpenter.sh/v1",
            "kind": "NodePool",
            "metadata": {"name": POOL},
            "spec": {
                "template": {"spec": {"nodeClassRef": reference, "requirements": requirements}},
                "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "5m"},
                "limits": {"nodes": "4"},
            },
        }
    )


def run_of(world: World, ends: float, **params: Any) -> Drain:
    pools = [dict(each) for each in _demo_pools()]
    pools[0] |= {"capacityTypes": ["reserved"], "capacityReservations": [{"id": ID}], "capacityBlock": CALENDAR}
    given = {
        "pools": [POOL],
        "reservation": ID,
        "until": datetime.fromtimestamp(ends, UTC).isoformat(),
        "askFirst": False,
        **params,
    }
    run = Drain(world, given, nodePools=pools)
    ours = {
        "block_due": CheckBlockEndOperator(task_id="block_due"),
        "stop_admitting": StopAdmittingOperator(task_id="stop_admitting", plan_task_id="plan_again"),
    }
    names = ["block_due", "plan", "approve", "plan_again", "cordon", "stop_admitting", "drain", "remove"]
    run.operators = {name: ours.get(name) or run.operators[name] for name in names}
    return run


def _demo_pools() -> list[dict[str, Any]]:
    from gpu_fleet.hooks.files.clusters import load_cluster

    found: list[dict[str, Any]] = load_cluster("demo").to_json()["nodePools"]
    return found


def told(world: World, name: str) -> dict[str, Any]:
    pod = world.kube.get(ObjectRef(POD, name, "default")) or {}
    text = (pod["metadata"].get("annotations") or {}).get("gpu-fleet.io/interruption")
    return json.loads(text) if text else {}


def limit(world: World) -> Any:
    return ((world.kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"].get("limits") or {}).get("nodes")


def test_the_nodes_of_the_block_are_closed_told_and_emptied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notice is over: the run begins late, as after an outage of Airflow."""
    Blocks(monkeypatch, block(-16 * 60))
    in_the_block(world, "n1", "i-0000000a")
    in_the_block(world, "n2", "i-0000000b", "cr-other")
    pool_of(world)
    world.pod("job")
    world.pod("bare", owner=None)
    world.pod("elsewhere", "n2")
    run = run_of(world, time.time() + 20)
    run.until("stop_admitting")
    assert run.ti.left["stop_admitting", "return_value"]["told"] == ["default/bare", "default/job"]
    assert told(world, "job")["kind"] == "CapacityReservationInterruption"
    assert told(world, "job")["event"] == ID
    assert told(world, "elsewhere") == {}
    assert limit(world) == "0"
    assert is_cordoned(world, "n1")
    assert not is_cordoned(world, "n2")
    with world.kubelets():
        run.tasks("drain", "remove")
    # The node ends in any case, so not even a pod without a controller refuses the drain.
    assert run.outcomes() == {"job": "Evicted", "bare": "Evicted"}
    report = run.report("remove")
    assert [node["node"] for node in report["nodes"]] == ["n1"]
    assert report["block"]["reservation"] == ID
    assert report["block"]["idleHours"] > 0
    assert world.get("elsewhere") is not None


def test_the_jobs_have_their_notice_without_a_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(-5))
    in_the_block(world, "n1", "i-0000000a")
    pool_of(world)
    world.pod("job")
    run = run_of(world, time.time() + 1800)
    run.until("cordon")
    with pytest.raises(TaskDeferred) as deferred:
        run.task("stop_admitting")
    assert deferred.value.trigger.moment.timestamp() == pytest.approx(time.time() + 15 * 60 - 5, abs=3)
    assert told(world, "job")
    before = world.kube.get(ObjectRef(POD, "job", "default"))
    # A second try tells nobody twice.
    with pytest.raises(TaskDeferred):
        run.task("stop_admitting")
    after = world.kube.get(ObjectRef(POD, "job", "default"))
    assert before is not None
    assert after is not None
    assert before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    operator = run.operators["stop_admitting"]
    kwargs = deferred.value.kwargs or {}
    assert operator.after_notice({}, None, **kwargs)["told"] == ["default/job"]


def test_the_pool_stays_open_while_another_block_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(-16 * 60), block(10 * 3600, "cr-2"))
    in_the_block(world, "n1", "i-0000000a")
    pool_of(world)
    run = run_of(world, time.time() + 20)
    run.until("stop_admitting")
    assert run.ti.left["stop_admitting", "return_value"]["frozen"] is False
    assert limit(world) == "4"


def test_a_run_whose_block_was_extended_does_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(3600))
    in_the_block(world, "n1", "i-0000000a")
    with pytest.raises(AirflowSkipException, match="was extended"):
        run_of(world, time.time() + 20).task("block_due")


def test_a_run_whose_block_is_gone_empties_what_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch)
    in_the_block(world, "n1", "i-0000000a")
    world.pod("job")
    run = run_of(world, time.time() + 20)
    with world.kubelets():
        run.until("drain")
    assert run.outcomes() == {"job": "Evicted"}
    assert run.ti.left["block_due", "return_value"] == {"reservation": ID, "ends": None}
    assert run.ti.left["stop_admitting", "return_value"]["drains"] is None


def test_an_outage_of_ec2_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def out(*_: Any) -> Any:
        raise ApiUnavailable("EC2 does not answer")

    monkeypatch.setattr("gpu_fleet.hooks.aws.reservations.reservation", out)
    with pytest.raises(ApiUnavailable):
        run_of(world, time.time() + 20).task("block_due")


def test_a_block_without_a_node_is_accounted_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(-60))
    pool_of(world)
    run = run_of(world, time.time() + 20)
    run.task("block_due")
    with pytest.raises(AirflowSkipException):
        run.task("plan")
    account = run.report("plan")["block"]
    assert account["unusedHours"] == account["paidHours"] > 0


def test_a_drain_by_hand_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(3600))
    in_the_block(world, "n1", "i-0000000a")
    run = run_of(world, 0.0, until=None, reservation="")
    assert run.task("block_due") == {}
    run.tasks("plan", "approve", "plan_again", "cordon")
    assert run.task("stop_admitting") == {}
    assert not ends_a_block({"params": run.params})
    assert block_account(run.operators["block_due"], {"params": run.params}, ()) == {}


def test_nobody_waits_for_pods_whose_capacity_has_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, block(-16 * 60))
    run = run_of(world, time.time() + 20)
    run.ti.left["drain", "displaced"] = [{"name": "web"}]
    run.operators["pods_placed"] = AwaitPlacementOperator(task_id="pods_placed")
    with pytest.raises(AirflowSkipException, match="next Capacity Block"):
        run.task("pods_placed")


def test_the_reason_of_a_pool_whose_block_has_ended_is_in_the_catalogue() -> None:
    from gpu_fleet.core.reasons.interruptions import INTERRUPTIONS

    assert BLOCK_ENDED in {reason.name for reason in INTERRUPTIONS.reasons}


def test_the_account_of_an_unknown_block_is_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    Blocks(monkeypatch, replace(block(-60), start=None))
    run = run_of(world, time.time() + 20)
    run.task("block_due")
    with pytest.raises(AirflowSkipException):
        run.task("plan")
    assert "block" not in run.report("plan")
