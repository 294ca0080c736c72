"""Capacity reservations and Capacity Blocks (Amazon EC2 User Guide; sources in ``sandbox/aws/reservations.py``)."""

from __future__ import annotations

import asyncio
import time

import pytest
from botocore.exceptions import ClientError

from sandbox.aws.reservations import RECLAIM_S
from sandbox.aws.testing import RunningAccount

pytestmark = pytest.mark.asyncio(loop_scope="module")

ZONE, TYPE = "us-west-2a", "p4d.24xlarge"


async def described(direct: RunningAccount, *ids: str, **filters: str):
    given = [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]
    answer = await direct.aws.call(
        "ec2", "describe_capacity_reservations", CapacityReservationIds=list(ids), Filters=given
    )
    return answer["CapacityReservations"]


async def reserve(direct: RunningAccount, **more: object):
    return await direct.moto.reserve({"instanceType": TYPE, "zone": ZONE, "count": 1, **more})


async def launch(direct: RunningAccount, reservation: str, instance_type: str = TYPE, zone: str = ZONE) -> str:
    subnets = await direct.aws.call(
        "ec2", "describe_subnets", Filters=[{"Name": "availability-zone", "Values": [zone]}]
    )
    images = await direct.aws.call("ec2", "describe_images", Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])
    answer = await direct.aws.call(
        "ec2",
        "run_instances",
        ImageId=images["Images"][0]["ImageId"],
        InstanceType=instance_type,
        SubnetId=subnets["Subnets"][0]["SubnetId"],
        MinCount=1,
        MaxCount=1,
        CapacityReservationSpecification={"CapacityReservationTarget": {"CapacityReservationId": reservation}},
    )
    return str(answer["Instances"][0]["InstanceId"])


async def instance(direct: RunningAccount, identifier: str):
    answer = await direct.aws.call("ec2", "describe_instances", InstanceIds=[identifier])
    return answer["Reservations"][0]["Instances"][0]


async def test_a_block_shows_nothing_until_it_begins(direct: RunningAccount):
    made = await reserve(direct, type="capacity-block", count=4, startsIn=1.5, endsIn=3600)
    [before] = await described(direct, made["CapacityReservationId"])
    assert (before["State"], before["TotalInstanceCount"], before["AvailableInstanceCount"]) == ("scheduled", 0, 0)
    assert {"Key": "aws:ec2capacityreservation:incrementalRequestedQuantity", "Value": "4"} in before["Tags"]
    assert before["ReservationType"] == "capacity-block"
    await asyncio.sleep(1.6)
    [after] = await described(direct, made["CapacityReservationId"])
    assert (after["State"], after["TotalInstanceCount"], after["AvailableInstanceCount"]) == ("active", 4, 4)
    assert after["Tags"] == []


async def test_an_instance_takes_a_place_until_it_is_terminated(direct: RunningAccount):
    made = await reserve(direct)
    identifier = made["CapacityReservationId"]
    inside = await launch(direct, identifier)
    assert (await instance(direct, inside))["CapacityReservationId"] == identifier
    [shown] = await described(direct, identifier)
    assert (shown["TotalInstanceCount"], shown["AvailableInstanceCount"]) == (1, 0)
    with pytest.raises(ClientError, match="ReservationCapacityExceeded"):
        await launch(direct, identifier)
    await direct.aws.call("ec2", "terminate_instances", InstanceIds=[inside])
    for _ in range(100):
        [shown] = await described(direct, identifier)
        if shown["AvailableInstanceCount"] == 1:
            break
        await asyncio.sleep(0.1)
    assert shown["AvailableInstanceCount"] == 1


@pytest.mark.parametrize(
    ("made", "launched", "code"),
    [
        ({}, {"instance_type": "g5.xlarge"}, "InvalidParameterCombination"),
        ({}, {"zone": "us-west-2b"}, "InvalidParameterCombination"),
        ({"state": "cancelled"}, {}, "InvalidCapacityReservationState"),
        ({"type": "capacity-block", "startsIn": 60, "endsIn": 600}, {}, "InvalidCapacityReservationState"),
        ({"owner": "999999999999", "shared": False}, {}, "InvalidCapacityReservationId.NotFound"),
    ],
)
async def test_what_does_not_fit_is_not_launched(direct: RunningAccount, made, launched, code):
    reservation = await reserve(direct, **made)
    with pytest.raises(ClientError) as refused:
        await launch(direct, reservation["CapacityReservationId"], **launched)
    assert refused.value.response["Error"]["Code"] == code


async def test_another_accounts_reservation_is_seen_only_if_it_is_shared(direct: RunningAccount):
    shared = await reserve(direct, owner="999999999999")
    hidden = await reserve(direct, owner="999999999999", shared=False)
    assert (await described(direct, shared["CapacityReservationId"]))[0]["OwnerId"] == "999999999999"
    with pytest.raises(ClientError, match=r"InvalidCapacityReservationId\.NotFound"):
        await described(direct, hidden["CapacityReservationId"])


async def test_filters_by_state_owner_and_tags(direct: RunningAccount):
    made = await reserve(direct, tags={"team": "vision"})
    await reserve(direct, tags={"team": "vision"}, state="expired")
    answer = await direct.aws.call(
        "ec2",
        "describe_capacity_reservations",
        Filters=[{"Name": "tag:team", "Values": ["vision"]}, {"Name": "state", "Values": ["active"]}],
    )
    assert [each["CapacityReservationId"] for each in answer["CapacityReservations"]] == [made["CapacityReservationId"]]


async def test_ec2_terminates_before_the_end_of_a_block_and_of_no_other(direct: RunningAccount):
    lead = RECLAIM_S / direct.settings.speed
    block = await reserve(direct, type="capacity-block", endsIn=lead + 3)
    other = await reserve(direct, endsIn=2)
    ends = time.time() + lead + 3
    inside, beside = (
        await launch(direct, block["CapacityReservationId"]),
        await launch(direct, other["CapacityReservationId"]),
    )
    for _ in range(150):
        state = (await instance(direct, inside))["State"]["Name"]
        if state in ("shutting-down", "terminated"):
            break
        await asyncio.sleep(0.1)
    assert state in ("shutting-down", "terminated")
    assert lead - 2 < ends - time.time() <= lead + 0.5
    stays = await instance(direct, beside)
    assert stays["State"]["Name"] == "running"
    # The reservation is over: the instance goes on as any other.
    assert "CapacityReservationId" not in stays
    assert (await described(direct, other["CapacityReservationId"]))[0]["State"] == "expired"


async def test_a_block_is_extended(direct: RunningAccount):
    made = await reserve(direct, type="capacity-block", endsIn=60)
    changed = await direct.moto.reserve({"endsIn": 7200}, made["CapacityReservationId"])
    assert changed["EndDate"] > made["EndDate"]
    with pytest.raises(LookupError):
        await direct.moto.reserve({"endsIn": 7200}, "cr-0")
