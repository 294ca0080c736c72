"""Managed node groups as EKS describes them: CREATING at first, and with what is wrong with them."""

from __future__ import annotations

import asyncio
import time

import pytest

from sandbox.aws.testing import RunningCloud

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def described(cloud: RunningCloud, name: str) -> tuple[str, list[str]]:
    answer = await cloud.aws.call("eks", "describe_nodegroup", clusterName="demo-gpu", nodegroupName=name)
    group = answer["nodegroup"]
    return group["status"], [issue["code"] for issue in group["health"]["issues"]]


async def test_a_node_group_is_creating_until_its_nodes_have_had_time_to_join(cloud: RunningCloud) -> None:
    assert await described(cloud, "system") == ("ACTIVE", [])
    answer = await cloud.aws.call(
        "eks",
        "create_nodegroup",
        clusterName="demo-gpu",
        nodegroupName="later",
        scalingConfig={"minSize": 1, "maxSize": 2, "desiredSize": 2},
        subnets=cloud.account.subnet_ids[:1],
        nodeRole=cloud.account.group_role_arn,
    )
    assert answer["nodegroup"]["status"] == "CREATING"
    began = time.monotonic()
    while (await described(cloud, "later"))[0] == "CREATING":
        assert time.monotonic() - began < 30
        await asyncio.sleep(0.05)
    assert await described(cloud, "later") == ("ACTIVE", [])
    listed = await cloud.aws.call("eks", "list_nodegroups", clusterName="demo-gpu")
    assert sorted(listed["nodegroups"]) == ["later", "system"]


async def test_a_fault_says_what_is_wrong_with_one_group(cloud: RunningCloud) -> None:
    issue = {"code": "NodeCreationFailure", "message": "Instances failed to join the kubernetes cluster"}
    cloud.settings.faults.set("eks-nodegroup", {"name": "system", "status": "CREATE_FAILED", "issues": [issue]})
    assert await described(cloud, "system") == ("CREATE_FAILED", ["NodeCreationFailure"])
    cloud.settings.faults.clear()
    assert await described(cloud, "system") == ("ACTIVE", [])
