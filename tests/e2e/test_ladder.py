"""Spot of the first type has no capacity: the pool is proven on a lower rung of its ladder, which everything says."""

from __future__ import annotations

import pytest

from tests.e2e.fleet import LIFECYCLE, SHARED, SYSTEM_NAMESPACE, Fleet, cluster_spec, pool_changes

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]

AWAIT = f"capacity.pool_{SHARED}.await_capacity"
PUBLISH = f"validation.pool_{SHARED}.publish"
#: Real seconds.
BOX = 15
LADDER = [
    {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["spot"], "for": f"{BOX}s"},
    {"instanceTypes": ["g5.2xlarge"], "capacityTypes": ["on-demand"]},
]


def node_pool(fleet: Fleet) -> dict[str, object]:
    (found,) = [each for each in fleet.objects("nodepools.karpenter.sh") if each["metadata"]["name"] == SHARED]
    return {"spec": found["spec"], "generation": found["metadata"]["generation"]}


def test_capacity_is_proven_on_a_lower_rung_and_the_node_pool_stays_as_it_is(empty: Fleet) -> None:
    fleet = empty
    pool = {"instanceTypes": ["g5.xlarge", "g5.2xlarge"], "wantedNodes": 1, "capacity": {"ladder": LADDER}}
    fleet.write_spec(pool_changes(cluster_spec(), SHARED, pool))
    with fleet.fault("weather", {"instanceType": "g5.xlarge", "capacityType": "spot"}):
        run_id = fleet.start(LIFECYCLE, {"until": "validated", "pools": [SHARED]})
        fleet.wait_for_task(LIFECYCLE, run_id, f"provision.pool_{SHARED}.node_pool_ready", "success")
        before = node_pool(fleet)
        run = fleet.follow(LIFECYCLE, run_id)
    run.succeeded()
    told = run.xcom(AWAIT, "ladder")
    first, second = told["attempts"]
    assert (first["result"], first["reason"], first["bought"]) == ("GivenUp", "InsufficientCapacity", [])
    assert "InsufficientInstanceCapacity" in first["said"]
    assert [each["instanceType"] for each in second["bought"]] == ["g5.2xlarge"]
    assert first["ended"] - first["began"] <= BOX + 5
    assert node_pool(fleet) == before

    labels = [node["metadata"]["labels"] for node in fleet.nodes()]
    kinds = [(each["node.kubernetes.io/instance-type"], each["karpenter.sh/capacity-type"]) for each in labels]
    assert kinds == [("g5.2xlarge", "on-demand")]
    assert "given up: rung 1 (g5.xlarge spot" in run.log(AWAIT)

    # No failure, and said wherever the result is: verdict of the run, of the pool, and the asset's event.
    assert "capacity came on a lower rung: 1 node(s) on rung 2 of 2" in run.xcom("run_verdict")
    verdict = run.xcom(PUBLISH, "verdict")
    assert (verdict["outcome"], verdict["reason"]) == ("Passed", "Validated")
    assert "capacity came on a lower rung" in verdict["message"]
    event = fleet.events(f"gpu-fleet://demo/{SHARED}/ready")[-1]
    assert event["extra"]["ladder"]["lower"] is True
    assert [attempt["rung"] for attempt in event["extra"]["ladder"]["attempts"]] == [1, 2]

    assert fleet.caps is not None
    assert fleet.caps.most[SHARED] == 1
    assert fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE, "-l", "gpu-fleet.io/component=placeholder") == []
