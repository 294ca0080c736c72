"""Capacity reservations in the simulated Karpenter; the sources are in ``sandbox/karpenter/cloudprovider/reserved.py``
and ``controllers/reservedcapacity.py``."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sandbox.aws.reservations import RECLAIM_S
from sandbox.karpenter.cloudprovider.reserved import EXPIRING
from tests.sandbox.karpenter.talk import claims, pool_pod, ready_pool, remove
from tests.sandbox.nodes.cluster import Cluster, node_class, node_pool

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.full]

ZONE, TYPE = "us-west-2a", "g5.xlarge"
PREFIX = "karpenter.k8s.aws/capacity-reservation-"


async def reserve(cluster: Cluster, **more: Any) -> str:
    made = await cluster.moto.reserve({"instanceType": TYPE, "zone": ZONE, "count": 1, **more})
    return str(made["CapacityReservationId"])


async def pool_of(cluster: Cluster, name: str, reservation: str, *kinds: str, block: bool = False) -> None:
    """A pool and a class of that name; the class has found the reservation."""
    await cluster.apply(node_class(name, capacityReservationSelectorTerms=[{"id": reservation}]))

    async def found():
        status = (await cluster.kube.get("EC2NodeClass", name)).get("status") or {}
        return [each["id"] for each in status.get("capacityReservations") or []] == [reservation]

    await cluster.until(found, lambda: cluster.kube.get("EC2NodeClass", name))
    requirements = [
        {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": [TYPE]},
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": list(kinds)},
    ]
    if block:
        requirements.append({"key": f"{PREFIX}type", "operator": "In", "values": ["capacity-block"]})
    await ready_pool(cluster, node_pool(name, class_name=name, requirements=requirements))


def kinds(found) -> list[str]:
    return sorted(each["metadata"]["labels"]["karpenter.sh/capacity-type"] for each in found)


async def test_a_node_is_launched_into_the_reservation_and_takes_a_place(cluster: Cluster):
    reservation = await reserve(cluster)
    await pool_of(cluster, "reserved", reservation, "reserved")
    await cluster.apply(pool_pod("r-1", "reserved"))
    [claim] = await claims(cluster, "reserved", 1, "Initialized")
    labels = claim["metadata"]["labels"]
    assert labels["karpenter.sh/capacity-type"] == "reserved"
    assert labels[f"{PREFIX}id"] == reservation
    assert labels[f"{PREFIX}type"] == "default"
    assert labels[f"{PREFIX}interruptible"] == "false"
    node = await cluster.kube.get("Node", claim["status"]["nodeName"])
    assert node["metadata"]["labels"][f"{PREFIX}id"] == reservation
    [shown] = [each for each in await cluster.moto.reservations() if each["CapacityReservationId"] == reservation]
    assert shown["AvailableInstanceCount"] == 0
    # No further node: the reservation is full, and the pool has nothing else.
    await cluster.apply(pool_pod("r-2", "reserved"))
    await cluster.event("r-2", "FailedScheduling", "required offering")
    assert len(await claims(cluster, "reserved")) == 1
    await remove(cluster, "reserved", "r-1", "r-2")


async def test_what_the_reservation_cannot_hold_falls_back_to_other_capacity(cluster: Cluster):
    reservation = await reserve(cluster)
    await pool_of(cluster, "mixed", reservation, "reserved", "on-demand")
    await cluster.apply(*(pool_pod(f"m-{number}", "mixed") for number in range(3)))
    found = await claims(cluster, "mixed", 3, "Initialized")
    assert kinds(found) == ["on-demand", "on-demand", "reserved"]
    await remove(cluster, "mixed", "m-0", "m-1", "m-2")


async def test_a_node_stays_as_on_demand_when_its_reservation_ends(cluster: Cluster):
    reservation = await reserve(cluster)
    await pool_of(cluster, "lapsing", reservation, "reserved", "on-demand")
    await cluster.apply(pool_pod("l-1", "lapsing"))
    [claim] = await claims(cluster, "lapsing", 1, "Initialized")
    assert kinds([claim]) == ["reserved"]
    await cluster.moto.reserve({"state": "cancelled"}, reservation)

    async def demoted():
        node = await cluster.kube.get("Node", claim["status"]["nodeName"])
        labels = node["metadata"]["labels"]
        return labels["karpenter.sh/capacity-type"] == "on-demand" and f"{PREFIX}id" not in labels

    await cluster.until(demoted, cluster.claims)
    assert kinds(await claims(cluster, "lapsing")) == ["on-demand"]
    await remove(cluster, "lapsing", "l-1")


async def test_a_block_is_for_pools_that_ask_for_one(cluster: Cluster):
    reservation = await reserve(cluster)
    await pool_of(cluster, "no-block", reservation, "reserved", block=True)
    await cluster.apply(pool_pod("n-1", "no-block"))
    await cluster.event("n-1", "FailedScheduling")
    assert await claims(cluster, "no-block") == []
    await remove(cluster, "no-block", "n-1")


async def test_karpenter_drains_a_block_ten_minutes_before_ec2_takes_it(cluster: Cluster):
    """Karpenter at end - 40 min, EC2 at end - 30 min; both in simulated time."""
    expiring, taken = EXPIRING / cluster.settings.speed, RECLAIM_S / cluster.settings.speed
    reservation = await reserve(cluster, type="capacity-block", endsIn=expiring + 25)
    ends = time.time() + expiring + 25
    await pool_of(cluster, "block", reservation, "reserved", block=True)
    await cluster.apply(pool_pod("b-1", "block"))
    [claim] = await claims(cluster, "block", 1, "Initialized")
    assert claim["metadata"]["labels"][f"{PREFIX}type"] == "capacity-block"

    async def deleting():
        found = await claims(cluster, "block")
        return not found or found[0]["metadata"].get("deletionTimestamp")

    await cluster.until(deleting, cluster.claims, within=60)
    assert taken < ends - time.time() <= expiring + 2
    # An expiring block is no offering, so the pod that lost its node gets no other one there.
    await cluster.apply(pool_pod("b-2", "block"))
    await cluster.event("b-2", "FailedScheduling")
    await remove(cluster, "block", "b-1", "b-2")
