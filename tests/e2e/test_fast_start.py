"""Nodes that start fast, and nodes of Bottlerocket, in one lifecycle: how soon a large image is there, who shares GPUs.

The pull times are the sandbox's (tests/sandbox/nodes/test_boot.py): 15 GB take 229 s on gp3's 125 MiB/s.
"""

from __future__ import annotations

import pytest

from tests.e2e.fleet import PLUGIN_NAMESPACE, POOL_LABEL, SYSTEM_NAMESPACE, Fleet, Json, cluster_spec

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

IMAGE = "public.ecr.aws/deep-learning-containers/pytorch-training:2.9.0-gpu-py312-cu130-ubuntu24.04-ec2"
DEFAULT, FAST, ROCKET = "default", "fast", "rocket"


def spec() -> Json:
    common = {"wantedNodes": 1, "capacityTypes": ["on-demand"], "disruption": {"consolidateAfter": "24h"}}
    images = {"capacity": {"prePull": [IMAGE]}, "instanceTypes": ["g5.2xlarge"]}
    slicing = {"mode": "timeSlicing", "replicas": 4}
    # The pods that pull end after that time by the sandbox's clock, which is faster than the package's.
    found = cluster_spec(changes={"deadlines": {"capacity": "10m"}})
    found["nodePools"] = [
        {"name": DEFAULT, **common, **images},
        {"name": FAST, **common, **images, "nodeClass": {"fastStart": True}},
        {
            "name": ROCKET,
            **common,
            "instanceTypes": ["g5.xlarge"],
            "amiAlias": "bottlerocket@v1.60.0",
            "sharing": slicing,
        },
    ]
    return found


def nodes(fleet: Fleet, pool: str) -> list[Json]:
    return fleet.kubectl.get("nodes", "-l", f"{POOL_LABEL}={pool}")


def test_a_large_image_is_there_twice_as_soon_and_bottlerocket_shares_by_its_own_plugin(empty: Fleet) -> None:
    fleet = empty
    fleet.write_spec(spec())
    run = fleet.lifecycle().succeeded()

    pulls = {pool: run.xcom(f"capacity.pool_{pool}.pre_pull")["pulls"] for pool in (DEFAULT, FAST)}
    seconds = {pool: next(iter(found.values()))[IMAGE] for pool, found in pulls.items()}
    print(f"seconds that the image took: {seconds}")
    assert seconds[DEFAULT] >= 225  # 229 by the figures above, less what the clocks differ
    assert seconds[DEFAULT] >= 2 * seconds[FAST]
    for pool in (DEFAULT, FAST):
        (node,) = nodes(fleet, pool)
        assert list(pulls[pool]) == [node["metadata"]["name"]]
        verdict = run.xcom(f"validation.pool_{pool}.publish", "verdict")
        assert verdict["prePull"]["pulls"] == pulls[pool]
        # The verdict waits for the image, and the image did not wait for validation.
        pulled, published = run.span(f"capacity.pool_{pool}.pre_pull"), run.span(f"validation.pool_{pool}.publish")
        assert pulled[1] <= published[0]
        assert pulled[0] < run.span(f"validation.pool_{pool}.protect_nodes")[1]
    assert fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE, "-l", "gpu-fleet.io/component=pre-pull") == []

    assert fleet.allocatable() == {DEFAULT: [1], FAST: [1], ROCKET: [4]}
    (rocket,) = nodes(fleet, ROCKET)
    name = rocket["metadata"]["name"]
    assert rocket["metadata"]["labels"]["gpu-fleet.io/device-plugin"] == "built-in"
    assert "Bottlerocket" in rocket["status"]["nodeInfo"]["osImage"]
    served = {pod["spec"]["nodeName"] for pod in fleet.kubectl.get("pods", "-n", PLUGIN_NAMESPACE)}
    assert name not in served
    assert len(served) == 2
    verdict = run.xcom(f"validation.pool_{ROCKET}.publish", "verdict")
    assert (verdict["outcome"], verdict["now"]) == ("Passed", "Ready")
