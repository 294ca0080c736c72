"""What a burst of pods that share GPUs buys, with NodeOverlays and without, beside the cap on instances."""

from __future__ import annotations

import pytest

from tests.e2e.fleet import SHARED, SYSTEM_NAMESPACE, Fleet, cluster_spec, until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

REQUEST = f"capacity.pool_{SHARED}.request_capacity"
CAP = 4  # limits.nodes of the pool


def overlays(fleet: Fleet) -> dict[str, str]:
    return {
        item["metadata"]["name"]: item["spec"]["capacity"]["nvidia.com/gpu"]
        for item in fleet.objects("nodeoverlays.karpenter.sh")
    }


def burst_pods(fleet: Fleet) -> list[str]:
    pods = fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE, "-l", "gpu-fleet.io/component=burst")
    return [pod["metadata"]["name"] for pod in pods]


def test_a_burst_buys_exactly_the_nodes_that_it_needs_with_overlays_and_more_up_to_the_cap_without(
    empty: Fleet,
) -> None:
    fleet = empty
    # Without overlays first: then the pool is empty again by the task's own clean-up.
    fleet.write_spec(cluster_spec(changes={"karpenter": {"nodeOverlays": False}}))
    run = fleet.lifecycle(pools=[SHARED], proveBurst=True)
    assert run.states()[REQUEST] == "failed"
    log = run.log(REQUEST)
    assert "8 pods of one share each bought" in log
    assert "instead of 2" in log
    assert "karpenter.nodeOverlays" in log
    assert overlays(fleet) == {}
    assert burst_pods(fleet) == []
    assert fleet.caps is not None
    assert 2 < fleet.caps.most[SHARED] <= CAP
    until("the burst's nodes to go", lambda: not fleet.instances(), 120)

    fleet.caps.most.clear()
    fleet.write_cluster()
    run = fleet.lifecycle(pools=[SHARED], proveBurst=True).succeeded()
    found = run.xcom(REQUEST, "burst")
    assert (found["pods"], len(found["nodes"])) == (8, 2)
    assert overlays(fleet) == {f"gpu-fleet-{SHARED}": "4"}
    assert burst_pods(fleet) == []
    # The two nodes are the two that the pool wants: they were validated, and none was bought besides.
    assert fleet.caps.most[SHARED] == 2
    assert fleet.allocatable()[SHARED] == [4, 4]

    # On nodes that stand a burst would prove nothing: it says so, and the run goes on.
    again = fleet.lifecycle(pools=[SHARED], proveBurst=True).succeeded()
    assert "is not empty" in again.xcom(REQUEST, "burst")["skipped"]
