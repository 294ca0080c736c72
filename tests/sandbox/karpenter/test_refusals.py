"""EC2 refuses a launch: what Karpenter leaves of its words, in the NodeClaim's condition or in an event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.karpenter.cloudprovider.refusals import FleetError, InsufficientCapacity, LaunchError, combined, reason_of
from sandbox.karpenter.conditions import condition
from tests.corpus import entries
from tests.sandbox.karpenter.talk import claims, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, node_pool

SPOT_AND_ON_DEMAND = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot", "on-demand"]}
DENIED = "UnauthorizedOperation: You are not authorized to perform this operation."
asyncio_test = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def faults(cluster: Cluster) -> Iterator[Any]:
    yield cluster.settings.faults
    cluster.settings.faults.clear()


async def told(cluster: Cluster, pool: str, word: str) -> str:
    """The message of the event about a lack of capacity in which the word is."""

    async def look():
        found = await cluster.kube.list("Event", field_selector="reason=InsufficientCapacityError")
        about = [item["message"] for item in found if item["involvedObject"]["name"].startswith(f"{pool}-")]
        return next((message for message in about if word in message), None)

    return await cluster.until(look, cluster.claims)


@asyncio_test
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("UnauthorizedOperation", "Unauthorized"),
        ("PendingVerification", "AccountPendingVerification"),
        ("SomethingNew", "LaunchFailed"),
    ],
)
async def test_a_refusal_that_is_not_about_capacity_is_a_reason_of_the_claim(
    cluster: Cluster, faults: Any, code: str, reason: str
) -> None:
    pool = reason.lower()
    faults.set("launch-refused", {"code": code})
    await ready_pool(cluster, node_pool(pool, "g5.xlarge"))
    await cluster.apply(pool_pod(pool, pool))

    async def refused():
        found = [condition(each, "Launched") for each in await claims(cluster, pool)]
        return next((each for each in found if each.get("reason") == reason), None)

    shown = await cluster.until(refused, cluster.claims)
    assert shown["status"] == "Unknown"
    assert shown["message"] == reason_of(code)[1], "EC2's own words are in the controller's log alone"
    await remove(cluster, pool, pool)


@asyncio_test
async def test_a_quota_of_zero_is_a_lack_of_capacity_to_karpenter(cluster: Cluster, faults: Any) -> None:
    faults.set("vcpu-quota:on-demand", {"code": "L-DB2E81BA", "value": 0})
    await ready_pool(cluster, node_pool("quota", "g5.xlarge"))
    await cluster.apply(pool_pod("quota", "quota"))
    message = await told(cluster, "quota", "VcpuLimitExceeded")
    assert "your current vCPU limit of 0 allows" in message
    await remove(cluster, "quota", "quota")


@asyncio_test
async def test_a_quota_that_running_instances_use_up(cluster: Cluster, faults: Any) -> None:
    faults.set("vcpu-quota:on-demand", {"code": "L-DB2E81BA", "value": 4})
    await ready_pool(cluster, node_pool("used", "g5.xlarge"))
    await cluster.apply(pool_pod("first", "used"))
    await claims(cluster, "used", 1, "Launched")
    await cluster.apply(pool_pod("second", "used"))
    assert "limit of 4 allows" in await told(cluster, "used", "VcpuLimitExceeded")
    await remove(cluster, "used", "first", "second")


@asyncio_test
async def test_spot_is_given_up_for_on_demand_with_the_next_claim(cluster: Cluster, faults: Any) -> None:
    faults.set("vcpu-quota:spot", {"code": "L-3819A6DF", "value": 0})
    pool = node_pool("both", "g5.xlarge")
    wanted = pool["spec"]["template"]["spec"]["requirements"]
    wanted[:] = [each for each in wanted if each["key"] != SPOT_AND_ON_DEMAND["key"]] + [SPOT_AND_ON_DEMAND]
    await ready_pool(cluster, pool)
    await cluster.apply(pool_pod("both", "both"))
    message = await told(cluster, "both", "MaxSpotInstanceCountExceeded")
    assert "VcpuLimitExceeded" not in message
    [claim] = await claims(cluster, "both", 1, "Launched")
    assert claim["metadata"]["labels"]["karpenter.sh/capacity-type"] == "on-demand"
    await remove(cluster, "both", "both")


@asyncio_test
async def test_full_subnets(cluster: Cluster, faults: Any) -> None:
    faults.set("subnet-full", {})
    await ready_pool(cluster, node_pool("full", "g5.xlarge"))
    await cluster.apply(pool_pod("full", "full"))
    assert "not enough free addresses" in await told(cluster, "full", "InsufficientFreeAddressesInSubnet")
    await remove(cluster, "full", "full")


def test_one_refusal_about_something_else_makes_the_whole_launch_fail() -> None:
    short = FleetError("InsufficientInstanceCapacity", "no capacity")
    assert isinstance(combined([short, short]), InsufficientCapacity)
    assert str(combined([short, short])).count("InsufficientInstanceCapacity") == 1
    failed = combined([short, FleetError(*DENIED.split(": "))])
    assert isinstance(failed, LaunchError)
    assert failed.reason == "Unauthorized"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{DENIED} with an explicit deny in a service control policy", "Unauthorized"),
        ("UnauthorizedOperation: Not authorized for images: [ami-1]", "AMIAuthorizationFailure"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted: no", "SpotSLRCreationFailed"),
        ("InvalidParameter: sg-1 and subnet-1 belong to different networks.", "SecurityGroupSubnetVPCMismatch"),
        (
            "InvalidParameterValue: Value (x) for parameter iamInstanceProfile.name is invalid",
            "InstanceProfileNameInvalid",
        ),
        ("InvalidAMIID.NotFound: The image id '[ami-1]' does not exist", "AMINotFound"),
        ("RequestLimitExceeded: Request limit exceeded.", "RequestLimitExceeded"),
        ("SomethingNew: what now", "LaunchFailed"),
    ],
)
def test_reasons_by_the_texts_of_ec2(text: str, reason: str) -> None:
    assert reason_of(text)[0] == reason


def test_the_package_is_tested_with_the_messages_that_the_sandbox_writes() -> None:
    known = {
        case["message"].rpartition("request: ")[2].rpartition("configs: ")[2] for case in entries("launch_conditions")
    }
    for code in (
        "VcpuLimitExceeded",
        "PendingVerification",
        "AccessDenied",
        "InternalError",
        "User data is limited to",
    ):
        assert reason_of(code)[1] in known
