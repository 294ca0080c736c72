"""Auto Scaling groups of managed node groups: what goes is replaced, unless the group is made smaller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox.aws.nodegroups import add_node, registration_of
from sandbox.aws.testing import RunningCloud

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def group_of(cloud: RunningCloud, group: str) -> dict[str, Any]:
    described = await cloud.aws.call("eks", "describe_nodegroup", clusterName="demo-gpu", nodegroupName=group)
    name = described["nodegroup"]["resources"]["autoScalingGroups"][0]["name"]
    found = await cloud.aws.call("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[name])
    answer: dict[str, Any] = found["AutoScalingGroups"][0]
    return answer


async def members(cloud: RunningCloud, group: str) -> set[str]:
    return {each["InstanceId"] for each in (await group_of(cloud, group))["Instances"]}


async def described(cloud: RunningCloud, instance: str) -> dict[str, Any]:
    answer = await cloud.aws.call("ec2", "describe_instances", InstanceIds=[instance])
    found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
    return found


async def replaced(cloud: RunningCloud, group: str, gone: str) -> str:
    """The instance that came for the one that went; it takes its time."""
    async with asyncio.timeout(15):
        while gone in (found := await members(cloud, group)) or len(found) < 1:  # noqa: ASYNC110 - moto has no events
            await asyncio.sleep(0.05)
    [successor] = found
    return successor


async def test_a_lost_instance_is_replaced_by_one_that_joins_alike(cloud: RunningCloud) -> None:
    first = await add_node(
        cloud.aws, cloud.settings, "g5.xlarge", "alike", {"team": "b"}, ["x=y:NoSchedule"], spot=True
    )
    assert await members(cloud, "alike") == {first}
    assert (await group_of(cloud, "alike"))["CapacityRebalance"] is True
    assert await cloud.moto.reclaim([first], "terminate") == [first]
    assert await members(cloud, "alike") == {first}  # not at once
    successor = await replaced(cloud, "alike", first)
    before, after = await described(cloud, first), await described(cloud, successor)
    for field in ("InstanceType", "ImageId", "SubnetId", "InstanceLifecycle"):
        assert after[field] == before[field]
    assert before["InstanceLifecycle"] == "spot"
    tags = {tag["Key"]: tag["Value"] for tag in after["Tags"]}
    assert tags["eks:nodegroup-name"] == "alike"
    assert tags["kubernetes.io/cluster/demo-gpu"] == "owned"
    assert tags["aws:autoscaling:groupName"] == (await group_of(cloud, "alike"))["AutoScalingGroupName"]
    taints = [{"key": "x", "value": "y", "effect": "NoSchedule"}]
    assert await registration_of(cloud.aws, successor) == ({"team": "b"}, taints)


async def test_an_instance_that_is_only_stopped_is_terminated_and_replaced(cloud: RunningCloud) -> None:
    """EC2 Auto Scaling User Guide, 'Health checks': any state but running is unhealthy."""
    first = await add_node(cloud.aws, cloud.settings, "m5.large", "stopped")
    while (await described(cloud, first))["State"]["Name"] != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await cloud.moto.reclaim([first], "stop")
    await replaced(cloud, "stopped", first)
    assert (await described(cloud, first))["State"]["Name"] in ("shutting-down", "terminated")


async def test_an_instance_is_removed_with_its_place_or_without(cloud: RunningCloud) -> None:
    """EC2 Auto Scaling API reference, TerminateInstanceInAutoScalingGroup."""
    call = cloud.aws.call
    first = await add_node(cloud.aws, cloud.settings, "m5.large", "smaller")
    second = await add_node(cloud.aws, cloud.settings, "m5.large", "smaller")
    assert await members(cloud, "smaller") == {first, second}
    operation = "terminate_instance_in_auto_scaling_group"
    await call("autoscaling", operation, InstanceId=first, ShouldDecrementDesiredCapacity=True)
    assert (await group_of(cloud, "smaller"))["DesiredCapacity"] == 1
    assert await members(cloud, "smaller") == {second}
    await call("autoscaling", operation, InstanceId=second, ShouldDecrementDesiredCapacity=False)
    third = await replaced(cloud, "smaller", second)
    assert (await described(cloud, second))["State"]["Name"] in ("shutting-down", "terminated")
    name = (await group_of(cloud, "smaller"))["AutoScalingGroupName"]
    await call("autoscaling", "update_auto_scaling_group", AutoScalingGroupName=name, MinSize=1)
    with pytest.raises(ClientError, match=r"Currently, desiredSize equals minSize \(1\)") as caught:
        await call("autoscaling", operation, InstanceId=third, ShouldDecrementDesiredCapacity=True)
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    with pytest.raises(ClientError, match="No managed instance found for instance ID: i-0123456789abcdef0") as caught:
        await call("autoscaling", operation, InstanceId="i-0123456789abcdef0", ShouldDecrementDesiredCapacity=True)
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    await asyncio.sleep(1.5)
    assert await members(cloud, "smaller") == {third}
