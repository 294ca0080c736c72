"""DescribeInstanceStatus (EC2 API Reference: DescribeInstanceStatus, InstanceStatus, InstanceStatusEvent), by boto3."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from sandbox.aws.eventbridge import EventBridge
from sandbox.aws.interruptions import Interruptions, Wanted
from sandbox.aws.notices import AHEAD, Check, Kind, event_code
from sandbox.aws.testing import RunningCloud
from sandbox.settings import Clock

pytestmark = pytest.mark.asyncio(loop_scope="module")
Object = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module")
async def interruptions(cloud: RunningCloud) -> AsyncIterator[Interruptions]:
    clock = Clock(cloud.settings.speed)
    events = EventBridge(cloud.settings, clock, cloud.moto)
    yield Interruptions(cloud.settings, clock, cloud.aws, cloud.moto, events, [])
    for instance in cloud.account.system_instance_ids:
        cloud.settings.statuses._known.pop(instance, None)
    cloud.settings.faults.clear()
    await events.close()


async def statuses(cloud: RunningCloud, *filters: tuple[str, str], **params: Any) -> dict[str, Object]:
    shown = [{"Name": name, "Values": [value]} for name, value in filters]
    found = await cloud.aws.paginate("ec2", "describe_instance_status", "InstanceStatuses[]", Filters=shown, **params)
    return {each["InstanceId"]: each for each in found}


async def test_an_instance_that_is_well(cloud: RunningCloud, interruptions: Interruptions) -> None:
    first = cloud.account.system_instance_ids[0]
    found = (await statuses(cloud))[first]
    assert found["InstanceState"] == {"Code": 16, "Name": "running"}
    passed = {"Status": "ok", "Details": [{"Name": "reachability", "Status": "passed"}]}
    assert (found["InstanceStatus"], found["SystemStatus"]) == (passed, passed)
    assert "Events" not in found


async def test_a_scheduled_change_is_an_event_of_its_instances(
    cloud: RunningCloud, interruptions: Interruptions
) -> None:
    first, second = cloud.account.system_instance_ids
    done = await interruptions.interrupt(Wanted(kind=Kind.SCHEDULED, instances=(first,)))
    assert set(await statuses(cloud, ("event.code", "instance-retirement"))) == {first}
    assert set(await statuses(cloud, ("event.code", "system-reboot"))) == set()
    # Filters of different names are ANDed, so Karpenter needs a call for each.
    assert not await statuses(cloud, ("event.code", "*"), ("instance-status.status", "impaired"))
    [event] = (await statuses(cloud))[first]["Events"]
    assert event["Code"] == "instance-retirement"
    assert event["InstanceEventId"].startswith("instance-event-")
    assert (event["NotAfter"] - event["NotBefore"]).total_seconds() == 7200
    assert done["events"][0]["detail"]["startTime"].startswith(event["NotBefore"].strftime("%a, %d %b %Y"))
    assert AHEAD.days == 14
    assert "Events" not in (await statuses(cloud))[second]


async def test_a_message_alone_is_no_event(cloud: RunningCloud, interruptions: Interruptions) -> None:
    first = cloud.account.system_instance_ids[0]
    await interruptions.interrupt(Wanted(kind=Kind.SCHEDULED, instances=(first,), silent=True))
    assert "Events" not in (await statuses(cloud))[first]


async def test_an_event_that_is_over_is_still_shown(cloud: RunningCloud, interruptions: Interruptions) -> None:
    first = cloud.account.system_instance_ids[0]
    code = "AWS_EC2_INSTANCE_REBOOT_MAINTENANCE_SCHEDULED"
    done = await interruptions.interrupt(Wanted(kind=Kind.SCHEDULED, instances=(first,), code=code, completed=True))
    assert done["messages"] == 0
    found = await statuses(cloud, ("event.code", "instance-reboot"))
    assert found[first]["Events"][0]["Description"].startswith("[Completed] ")
    assert set(await statuses(cloud, ("event.description", "[[]Completed]*"))) == {first}


async def test_failed_checks(cloud: RunningCloud, interruptions: Interruptions) -> None:
    first, second = cloud.account.system_instance_ids
    await interruptions.interrupt(Wanted(instances=(first,), impaired=Check.INSTANCE))
    await interruptions.interrupt(Wanted(instances=(second,), impaired=Check.SYSTEM))
    assert set(await statuses(cloud, ("instance-status.status", "impaired"))) == {first}
    assert set(await statuses(cloud, ("system-status.reachability", "failed"))) == {second}
    [detail] = (await statuses(cloud))[first]["InstanceStatus"]["Details"]
    assert (detail["Name"], detail["Status"]) == ("reachability", "failed")
    since = detail["ImpairedSince"]
    await interruptions.interrupt(Wanted(instances=(first,), impaired=Check.INSTANCE))
    assert (await statuses(cloud))[first]["InstanceStatus"]["Details"][0]["ImpairedSince"] == since
    await interruptions.interrupt(Wanted(instances=(first, second), recovered=True))
    assert not await statuses(cloud, ("instance-status.status", "impaired"))


async def test_pages(cloud: RunningCloud, interruptions: Interruptions) -> None:
    images = await cloud.aws.call("ec2", "describe_images", Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])
    await cloud.aws.call(
        "ec2", "run_instances", ImageId=images["Images"][0]["ImageId"], InstanceType="g5.xlarge", MinCount=5,
        MaxCount=5, SubnetId=cloud.account.subnet_ids[0],
    )  # fmt: skip
    page = await cloud.aws.call("ec2", "describe_instance_status", MaxResults=5, IncludeAllInstances=True)
    assert len(page["InstanceStatuses"]) == 5
    rest = await cloud.aws.call(
        "ec2", "describe_instance_status", MaxResults=5, IncludeAllInstances=True, NextToken=page["NextToken"]
    )
    assert "NextToken" not in rest
    listed = [each["InstanceId"] for each in page["InstanceStatuses"] + rest["InstanceStatuses"]]
    assert len(set(listed)) == 7
    assert set(listed) >= set(cloud.account.system_instance_ids)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"Filters": [{"Name": "event.mood", "Values": ["bad"]}]}, "InvalidParameterValue"),
        ({"MaxResults": 4}, "InvalidParameterValue"),
        ({"MaxResults": 5, "InstanceIds": ["i-0123456789abcdef0"]}, "InvalidParameterCombination"),
        ({"NextToken": "mine"}, "InvalidNextToken"),
        ({"InstanceIds": ["i-0123456789abcdef0"]}, "InvalidInstanceID.NotFound"),
    ],
)
async def test_requests_that_ec2_refuses(cloud: RunningCloud, params: Object, code: str) -> None:
    with pytest.raises(ClientError) as error:
        await cloud.aws.call("ec2", "describe_instance_status", **params)
    assert error.value.response["Error"]["Code"] == code


async def test_without_the_permission(cloud: RunningCloud, interruptions: Interruptions) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["ec2:DescribeInstanceStatus"]})
    with pytest.raises(ClientError) as error:
        await cloud.aws.call("ec2", "describe_instance_status")
    assert error.value.response["Error"]["Code"] == "UnauthorizedOperation"


@pytest.mark.parametrize(
    ("health", "ec2"),
    [
        ("AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED", "instance-retirement"),
        ("AWS_EC2_PERSISTENT_INSTANCE_RETIREMENT_SCHEDULED", "instance-retirement"),
        ("AWS_EC2_INSTANCE_REBOOT_MAINTENANCE_SCHEDULED", "instance-reboot"),
        ("AWS_EC2_SYSTEM_REBOOT_MAINTENANCE_SCHEDULED", "system-reboot"),
        ("AWS_EC2_INSTANCE_STOP_SCHEDULED", "instance-stop"),
        ("AWS_EC2_INSTANCE_NETWORK_MAINTENANCE_SCHEDULED", "system-maintenance"),
        ("AWS_EC2_INSTANCE_POWER_MAINTENANCE_SCHEDULED", "system-maintenance"),
    ],
)
async def test_ec2s_code_of_what_aws_health_announces(health: str, ec2: str) -> None:
    assert event_code(health) == ec2
