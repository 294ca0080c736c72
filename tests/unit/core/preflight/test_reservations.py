"""Reservations that cannot serve a pool, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.preflight.facts import Prerequisite, State, Unseen
from gpu_fleet.core.preflight.reservations import Found, judge_reservations
from gpu_fleet.core.reservations.reservation import Reservation
from tests.unit.core.specs import demo_spec

NOW, HOUR = 1_000_000.0, 3600.0
POOL, TYPE, ZONE = "whole-a100", "p4d.24xlarge", "us-west-2a"
TERM = {"id": "cr-1"}
NAME, ALL = f"capacity reservation cr-1 of pool {POOL}", f"reserved instances of pool {POOL}"
RESERVED = {"nodePools__1__capacityTypes": ["reserved"], "nodePools__1__capacityReservations": [TERM]}
BLOCK = {**RESERVED, "nodePools__1__capacityBlock": {}}

GOOD = Reservation("cr-1", "active", "default", TYPE, ZONE, "123456789012", "Linux/UNIX", total=2, available=2)
IN_USE = replace(GOOD, kind="capacity-block", start=NOW - HOUR, end=NOW + 24 * HOUR)


def judged(
    answer: list[Reservation] | Unseen,
    changes: dict[str, Any] | None = None,
    *,
    selected: list[str] | None = None,
    **found: Any,
) -> dict[str, Prerequisite]:
    spec = demo_spec(**(RESERVED if changes is None else changes))
    seen: dict[str, Any] = {"zones": {ZONE, "us-west-2b"}, "nodes": [], "account": "123456789012", **found}
    facts = Found(by_pool={POOL: [answer]}, **seen)
    judgements = judge_reservations(
        spec, facts, list(spec.pool_names) if selected is None else selected, now=NOW, reclaim_s=1800.0
    )
    return {each.name: each for each in judgements}


def test_without_reserved_capacity_nothing_is_judged() -> None:
    assert judge_reservations(demo_spec(), Found(), ["whole-a100"], now=NOW) == []


@pytest.mark.parametrize(("reservation", "changes"), [(GOOD, RESERVED), (IN_USE, BLOCK)], ids=["ODCR", "block"])
def test_a_good_one(reservation: Reservation, changes: dict[str, Any]) -> None:
    found = judged([reservation], changes)
    assert {name: each.state for name, each in found.items()} == {NAME: State.MET, ALL: State.MET}


#: situation -> the reservation, changes of the file, part of the message, part of the remedy
BAD: dict[str, tuple[Reservation, dict[str, Any], str, str]] = {
    "expired": (replace(GOOD, state="expired", end=NOW - HOUR), RESERVED, "expired", "reserve"),
    "cancelled": (replace(GOOD, state="cancelled"), RESERVED, "cancelled", "reserve"),
    "payment failed": (replace(IN_USE, state="payment-failed"), BLOCK, "payment-failed", "reserve"),
    "ended, and not called so yet": (replace(GOOD, end=NOW - 1), RESERVED, "ended at", "reserve"),
    "pending": (replace(GOOD, state="pending"), RESERVED, "pending", "run again"),
    "a state of the future": (replace(GOOD, state="melting"), RESERVED, "melting", "console"),
    "another type": (replace(GOOD, instance_type="p5.48xlarge"), RESERVED, "p5.48xlarge", "instanceTypes:"),
    "another zone": (replace(GOOD, zone="us-west-2d"), RESERVED, "us-west-2d", "tag a subnet of us-west-2d"),
    "another platform": (replace(GOOD, platform="Windows"), RESERVED, "Windows", "Linux/UNIX"),
    "dedicated": (replace(GOOD, tenancy="dedicated"), RESERVED, "dedicated", "default tenancy"),
    "a block that nobody ends": (IN_USE, RESERVED, "Capacity Block", "capacityBlock: {}"),
    "no block where one is expected": (GOOD, BLOCK, "no Capacity Block", "remove capacityBlock"),
    "a block that stops already": (replace(IN_USE, end=NOW + HOUR), BLOCK, "nothing begins there", "extend"),
    "an UltraServer that EC2 takes earlier": (
        replace(IN_USE, instance_type="p6e-gb200.36xlarge"),
        {**BLOCK, "nodePools__1__instanceTypes": ["p6e-gb200.36xlarge"]},
        "60 minutes before the end",
        "emptyBefore: 75m",
    ),
    "emptied after EC2 has begun": (
        IN_USE,
        {**RESERVED, "nodePools__1__capacityBlock": {"emptyBefore": "20m"}},
        "30 minutes before the end",
        "emptyBefore: 45m",
    ),
}


@pytest.mark.parametrize("situation", BAD)
def test_a_bad_one_fails_with_its_cause(situation: str) -> None:
    reservation, changes, message, remedy = BAD[situation]
    found = judged([reservation], changes)[NAME]
    assert found.state is State.MISSING
    assert message in found.message
    assert remedy in found.remedy


def test_another_accounts_that_is_not_shared_is_not_there() -> None:
    found = judged([])[NAME]
    assert found.state is State.MISSING
    assert "123456789012" in found.message
    assert "share cr-1" in found.remedy


def test_another_accounts_that_is_shared_is_named() -> None:
    found = judged([replace(GOOD, owner="999999999999")])[NAME]
    assert found.state is State.MET
    assert "shared by account 999999999999" in found.message


def test_a_missing_permission_is_named_and_fails_nothing() -> None:
    denied = Unseen("ec2:DescribeCapacityReservations is not allowed", "ec2:DescribeCapacityReservations")
    found = judged(denied)
    assert found[NAME].state is State.UNKNOWN
    assert "grant ec2:DescribeCapacityReservations" in found[NAME].remedy
    assert ALL not in found


def node(reservation: str, pool: str = POOL) -> dict[str, Any]:
    labels = {"karpenter.sh/nodepool": pool, "karpenter.k8s.aws/capacity-reservation-id": reservation}
    return {"metadata": {"name": "n", "labels": labels}}


def test_a_full_one_fails_unless_its_instances_are_the_pools_own() -> None:
    full = replace(GOOD, available=0)
    found = judged([full])[ALL]
    assert found.state is State.MISSING
    assert "0 of 2 available" in found.message
    assert judged([full], nodes=[node("cr-1", "other")])[ALL].state is State.MISSING
    assert judged([full], nodes=[node("cr-1")])[ALL].state is State.MET
    assert judged([full], nodes=None)[ALL].state is State.UNKNOWN


def test_a_full_one_beside_other_capacity_fails_nothing() -> None:
    changes = {**RESERVED, "nodePools__1__capacityTypes": ["reserved", "on-demand"]}
    found = judged([replace(GOOD, available=0)], changes)[ALL]
    assert found.state is State.MET
    assert "on-demand" in found.message


def test_a_block_that_has_yet_to_begin_has_room_for_all_that_it_will_hold() -> None:
    coming = replace(IN_USE, state="scheduled", start=NOW + HOUR, available=0)
    found = judged([coming], BLOCK)
    assert {each.state for each in found.values()} == {State.MET}
    assert "begins at" in found[NAME].message
    few = judged([replace(coming, total=0)], BLOCK)
    assert few[ALL].state is State.MISSING


def test_with_tags_one_of_those_found_is_enough() -> None:
    changes = {**RESERVED, "nodePools__1__capacityReservations": [{"tags": {"team": "ml"}}]}
    old = replace(GOOD, id="cr-0", state="expired")
    found = judged([old, GOOD], changes)
    assert [each.state for each in found.values()] == [State.UNKNOWN, State.MET, State.MET]
    assert judged([old], changes)[ALL].state is State.MISSING


def test_pools_that_the_run_leaves_out_fail_nothing() -> None:
    found = judged([replace(GOOD, state="expired")], selected=["shared-a10g"])
    assert {each.state for each in found.values()} == {State.UNKNOWN}
    assert all("asks for no node" in each.message for each in found.values())
