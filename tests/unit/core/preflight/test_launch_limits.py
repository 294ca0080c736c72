"""What EC2 would refuse, and what cannot be known, before Karpenter asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.preflight.facts import Prerequisite, State, Unseen
from gpu_fleet.core.preflight.launch_limits import Limits, judge_limits, quota_codes, quota_of
from tests.unit.core.specs import demo_spec

A, B, D = "us-west-2a", "us-west-2b", "us-west-2d"
G_ON_DEMAND, G_SPOT, P_ON_DEMAND = "L-DB2E81BA", "L-3819A6DF", "L-417A185B"
ZONES, QUOTA, ADDRESSES = "zones of pool shared-a10g", "vCPU quota of pool shared-a10g", "free addresses in the subnets"
DENIED = Unseen("servicequotas:GetServiceQuota is not allowed (AccessDenied)", "servicequotas:GetServiceQuota")


def subnet(zone: str, free: int = 200, **more: Any) -> dict[str, Any]:
    return {"SubnetId": f"subnet-{zone}", "AvailabilityZone": zone, "AvailableIpAddressCount": free, **more}


def node(pool: str) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": {"karpenter.sh/nodepool": pool}}}


GOOD = Limits(
    subnets=[subnet(A), subnet(B)],
    offers={"g5.xlarge": {A, B, D}, "p4d.24xlarge": {B}},
    vcpus={"g5.xlarge": 4, "p4d.24xlarge": 96},
    quotas={G_ON_DEMAND: 64.0, G_SPOT: 64.0, P_ON_DEMAND: 96.0},
    nodes=[],
)


def judged(limits: Limits, selected: list[str] | None = None, **changes: Any) -> dict[str, Prerequisite]:
    spec = demo_spec(**changes)
    found = judge_limits(spec, limits, list(spec.pool_names) if selected is None else selected)
    return {each.name: each for each in found}


def quotas(**values: float | Unseen) -> dict[str, float | Unseen]:
    return {**GOOD.quotas, **{key.replace("_", "-"): value for key, value in values.items()}}


def test_instances_in_a_capacity_block_count_against_no_quota() -> None:
    changes = {
        "nodePools__0__capacityTypes": ["reserved"],
        "nodePools__0__capacityReservations": [{"id": "cr-1"}],
        "nodePools__0__capacityBlock": {},
    }
    found = judged(replace(GOOD, quotas={}), **changes)[QUOTA]
    assert found.state is State.MET
    assert "Capacity Block" in found.message


def test_an_account_with_room_lacks_nothing() -> None:
    found = judged(GOOD)
    assert {each.state for each in found.values()} == {State.MET}
    assert sorted(found) == [ADDRESSES, QUOTA, "vCPU quota of pool whole-a100", ZONES, "zones of pool whole-a100"]


@pytest.mark.parametrize(
    ("instance_type", "capacity_type", "code"),
    [
        ("g5.xlarge", "on-demand", G_ON_DEMAND),
        ("g6e.12xlarge", "spot", G_SPOT),
        ("p5en.48xlarge", "on-demand", P_ON_DEMAND),
        ("p4d.24xlarge", "spot", "L-7212CCBC"),
        ("p5.48xlarge", "spot", "L-C4BD4855"),
        ("p6-b200.48xlarge", "spot", ""),
        # A reservation counts as on-demand instances do; blocks are asked about before.
        ("p5.48xlarge", "reserved", P_ON_DEMAND),
        ("gr6.4xlarge", "on-demand", ""),
        ("", "spot", ""),
    ],
)
def test_which_quota_an_instance_counts_against(instance_type: str, capacity_type: str, code: str) -> None:
    assert quota_of(instance_type, capacity_type) == code


def test_only_quotas_of_the_pools_are_asked_for() -> None:
    assert quota_codes(demo_spec()) == sorted([G_ON_DEMAND, G_SPOT, P_ON_DEMAND])


#: situation -> limits, prerequisite, its state, words of the message, words of the remedy
SITUATIONS: dict[str, tuple[Limits, str, State, str, str]] = {
    "a new account's quotas are 0": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=0.0, L_3819A6DF=0.0)), QUOTA, State.MISSING,
        "hold at most 0 node(s), and 2 are wanted", "--quota-code L-3819A6DF",
    ),
    "quotas of spot and on-demand hold one node each": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=4.0, L_3819A6DF=7.0)), QUOTA, State.MET, "L-DB2E81BA is 4 vCPUs", "",
    ),
    "only spot has a quota, and it is enough": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=0.0, L_3819A6DF=8.0)), QUOTA, State.MET, "L-3819A6DF is 8 vCPUs", "",
    ),
    "the quotas hold fewer nodes than wanted": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=0.0, L_3819A6DF=7.0)), QUOTA, State.MISSING,
        "hold at most 1 node(s), and 2 are wanted", "request-service-quota-increase",
    ),
    "quotas may not be read": (
        replace(GOOD, quotas=dict.fromkeys(GOOD.quotas, DENIED)), QUOTA, State.UNKNOWN, "not checked",
        "grant servicequotas:GetServiceQuota",
    ),
    "the quota that may not be read might be enough": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=0.0, L_3819A6DF=DENIED)), QUOTA, State.UNKNOWN, "not allowed", "grant",
    ),
    "the quota that can be read is enough": (
        replace(GOOD, quotas=quotas(L_DB2E81BA=8.0, L_3819A6DF=DENIED)), QUOTA, State.MET, "L-DB2E81BA is 8", "",
    ),
    "the size of the type is not known": (
        replace(GOOD, vcpus={}), QUOTA, State.UNKNOWN, "no answer", "check it yourself",
    ),
    "no zone of the subnets offers the type": (
        replace(GOOD, subnets=[subnet(D)]), "zones of pool whole-a100", State.MISSING,
        "no zone of the subnets (us-west-2d) offers p4d.24xlarge", "tag subnets of us-west-2b for discovery",
    ),
    "no zone at all offers the type": (
        replace(GOOD, offers={"g5.xlarge": set()}), ZONES, State.MISSING, "offers g5.xlarge", "other instance types",
    ),
    "one zone of several offers the type": (
        GOOD, "zones of pool whole-a100", State.MET, "p4d.24xlarge in us-west-2b", "",
    ),
    "offers may not be read": (
        replace(GOOD, offers=Unseen("not allowed", "ec2:DescribeInstanceTypeOfferings")), ZONES, State.UNKNOWN,
        "not checked", "grant ec2:DescribeInstanceTypeOfferings",
    ),
    "full subnets and no node yet": (
        replace(GOOD, subnets=[subnet(A, 0), subnet(B, 0)]), ADDRESSES, State.MISSING,
        "0 in us-west-2a, us-west-2b, and 3 node(s) are to come", "larger subnets",
    ),
    "fewer addresses than nodes to come": (
        replace(GOOD, subnets=[subnet(A, 2)]), ADDRESSES, State.MISSING, "2 in us-west-2a", "larger subnets",
    ),
    "full subnets and all nodes are there": (
        replace(
            GOOD, subnets=[subnet(A, 0)], nodes=[node("shared-a10g"), node("shared-a10g"), node("whole-a100")]
        ), ADDRESSES, State.MET, "0 node(s) are to come", "",
    ),
    "full subnets and nodes that may not be listed": (
        replace(GOOD, subnets=[subnet(A, 0)], nodes=None), ADDRESSES, State.UNKNOWN, "is not known", "larger subnets",
    ),
    "subnets with IPv6 alone have no count": (
        replace(GOOD, subnets=[subnet(A, 0, Ipv6Native=True)]), ADDRESSES, State.MET, "not limited", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_ec2_would_refuse(situation: str) -> None:
    limits, name, state, message, remedy = SITUATIONS[situation]
    found = judged(limits)[name]
    assert (found.state, message in found.message, remedy in found.remedy) == (state, True, True), found


@pytest.mark.parametrize(
    ("selected", "changes"),
    [(["whole-a100"], {}), (None, {"nodePools__0__wantedNodes": 0})],
    ids=["a pool that the run is not about", "a pool that wants no node"],
)
def test_what_a_pool_lacks_that_asks_for_nothing_fails_no_run(
    selected: list[str] | None, changes: dict[str, Any]
) -> None:
    poor = replace(GOOD, quotas=quotas(L_DB2E81BA=0.0, L_3819A6DF=0.0), subnets=[subnet(B, 1)], offers={
        "g5.xlarge": {A}, "p4d.24xlarge": {B},
    })  # fmt: skip
    found = judged(poor, selected, **changes)
    assert {each.state for each in found.values()} == {State.MET, State.UNKNOWN}
    assert all("this run asks for no node" in found[name].message for name in (QUOTA, ZONES))


def test_nothing_that_was_not_seen_is_met() -> None:
    blind = Unseen("EC2 does not answer")
    found = judged(Limits(blind, blind, blind, {}, blind))
    assert {each.state for each in found.values()} == {State.UNKNOWN}
    assert {each.state for each in judged(Limits()).values()} == {State.UNKNOWN}


@pytest.mark.parametrize(
    ("rung", "state", "words"),
    [
        ({"zones": [A]}, State.MET, "each of 2 rung(s)"),
        ({}, State.MET, "each of 2 rung(s)"),
        ({"zones": [D]}, State.MISSING, f"rung 2 names {D}, in which there is no subnet"),
        (
            {"instanceTypes": ["g5.2xlarge"]},
            State.MISSING,
            "rung 2: g5.2xlarge is not offered in us-west-2a",
        ),
    ],
    ids=["a zone", "all of the pool", "a zone without a subnet", "a type that no zone has"],
)
def test_a_rung_that_could_never_buy_is_named_before_the_run(rung: dict[str, Any], state: State, words: str) -> None:
    ladder = [{"capacityTypes": ["spot"], "for": "5m"}, rung]
    changes = {"nodePools__0__instanceTypes": ["g5.xlarge", "g5.2xlarge"], "nodePools__0__capacity": {"ladder": ladder}}
    found = judged(GOOD, **changes)["ladder of pool shared-a10g"]
    assert (found.state, words in found.message) == (state, True), found


def test_a_ladder_is_not_judged_where_zones_are_not_known() -> None:
    changes = {"nodePools__0__capacity": {"ladder": [{"capacityTypes": ["spot"]}]}}
    assert "ladder of pool shared-a10g" not in judged(replace(GOOD, offers=DENIED), **changes)
    assert judged(replace(GOOD, offers=DENIED), **changes)[ZONES].state is State.UNKNOWN


def test_quotas_have_to_hold_the_nodes_that_are_needed() -> None:
    """With ``capacity.minimum`` the rest may fail to come."""
    small = replace(GOOD, quotas=quotas(**{G_ON_DEMAND.replace("-", "_"): 4.0, G_SPOT.replace("-", "_"): 0.0}))
    assert judged(small)[QUOTA].state is State.MISSING
    assert judged(small, nodePools__0__capacity={"minimum": 1})[QUOTA].state is State.MET
