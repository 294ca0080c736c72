"""When a rung is given up, over every cause and moment; through the gate ``pool_capacity``."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.capacity.rung import AGAIN_S, GIVEN_UP, QUIET_S
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.cluster_objects import NOW, POOL, claim, event, node, placeholder

FLEET = "creating instance, insufficient capacity, with fleet error(s), {}"
ICE = FLEET.format("InsufficientInstanceCapacity: We currently do not have sufficient g5.xlarge capacity")
SPOT_QUOTA = FLEET.format("MaxSpotInstanceCountExceeded: Max spot instance count exceeded")
VCPUS = FLEET.format("VcpuLimitExceeded: You have requested more than your current vCPU limit of 64 allows")
UNSUPPORTED = FLEET.format("Unsupported: Your requested instance type (g5.xlarge) is not supported")
FULL = FLEET.format("InsufficientFreeAddressesInSubnet: There are not enough free addresses")
NO_SPOT_ROLE = FLEET.format("AuthFailure.ServiceLinkedRoleCreationNotPermitted: The provided credentials do not have")
RESERVED = FLEET.format("ReservationCapacityExceeded: The requested reservation does not have sufficient")
FLEETS = FLEET.format("MaxFleetCountExceeded: You've reached your quota")
NEW = FLEET.format("SomethingNew: who knows")
NO_OFFERING = "Failed to schedule pod, no instance type has the required offering, requirements=…, resources={…}"
NO_ZONE = "Failed to schedule pod, no instance type met all requirements, requirements=…, resources={…}"
LAUNCHING = ("Launched", "AwaitingReconciliation", "")
JOINING = ("Registered", "NodeNotFound", "Node not registered with cluster")


def refusal(message: str, ago: float = 2.0, uid: str = "new") -> dict[str, Any]:
    found = event("InsufficientCapacityError", message, kind="NodeClaim", ago=ago)
    found["metadata"]["uid"] = uid
    return found


def objection(text: str = NO_OFFERING, ago: float = 1.0) -> dict[str, Any]:
    return event("FailedScheduling", text, ago=ago)


def judge(*, left: float | None = 300.0, wanted: int = 1, heard: tuple[str, ...] = (), **objects: Any) -> Verdict:
    """:param left: seconds of the rung's time box; ``None``: it has none."""
    gate = gate_named("pool_capacity")
    here = NOW + 4000.0  # our clock is not the API server's
    rung = {"number": 2, "until": None if left is None else here + left, "heard": list(heard), "again_s": AGAIN_S}
    args = {"pool": POOL, "wanted": wanted, "physical": 1, "replicas": 4, "now": NOW, "started": NOW - 100}
    args |= {"here": here, "rung": rung}
    snapshot = {query.key: [] for query in gate.queries(args)} | objects
    return gate.judge(snapshot, args)


def given_up(verdict: Verdict, cause: str) -> str:
    assert (verdict.phase, verdict.reason, verdict.permanent) == (Phase.FAILED, GIVEN_UP, False), verdict
    assert verdict.data is not None
    assert (verdict.data["rung"], verdict.data["cause"]) == (2, cause)
    assert verdict.error().findings == verdict.data
    return str(verdict.data["said"])


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (SPOT_QUOTA, "SpotQuotaExceeded"),
        (VCPUS, "VCPULimitExceeded"),
        (UNSUPPORTED, "InstanceTypeUnsupported"),
        (FULL, "InsufficientFreeAddressesInSubnet"),
        (NO_SPOT_ROLE, "SpotSLRCreationFailed"),
        (FLEETS, "FleetQuotaExceeded"),
    ],
)
@pytest.mark.parametrize("left", [3000.0, None], ids=["in its time box", "without one"])
def test_what_waiting_does_not_cure_ends_the_rung_at_once(message: str, cause: str, left: float | None) -> None:
    objects = {"placeholders": [placeholder()], "claim_events": [refusal(message)], "pod_events": [objection()]}
    assert message in given_up(judge(left=left, **objects), cause)


@pytest.mark.parametrize(
    ("message", "cause"),
    [(ICE, "InsufficientCapacity"), (RESERVED, "ReservationCapacityExceeded"), (NEW, "InsufficientCapacity")],
)
def test_a_lack_of_capacity_is_waited_for_while_karpenter_asks_again_in_time(message: str, cause: str) -> None:
    objects = {"placeholders": [placeholder()], "claim_events": [refusal(message)], "pod_events": [objection()]}
    verdict = judge(left=AGAIN_S + 10, **objects)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, cause)
    assert judge(left=None, **objects).phase is Phase.PROGRESSING
    assert "would not ask EC2 again" in given_up(judge(left=AGAIN_S - 10, **objects), cause)


def test_capacity_and_a_quota_at_once_is_a_lack_of_capacity() -> None:
    """Spot quota used up, on-demand without capacity: the latter may come."""
    refused = [refusal(SPOT_QUOTA, uid="a"), refusal(ICE, uid="b")]
    objects = {"placeholders": [placeholder()], "claim_events": refused, "pod_events": [objection()]}
    assert judge(left=AGAIN_S + 10, **objects).phase is Phase.PROGRESSING
    given_up(judge(left=10.0, **objects), "InsufficientCapacity")


def test_a_refusal_is_not_the_last_word_while_another_offering_is_tried() -> None:
    """Karpenter asks for one capacity type at a time: on-demand comes with the next NodeClaim."""
    refused = {"claim_events": [refusal(SPOT_QUOTA)]}
    trying = claim("shared-a10g-next1", node_name="", waiting=LAUNCHING)
    assert judge(**refused, placeholders=[placeholder()], claims=[trying]).phase is Phase.PROGRESSING
    # Not yet, either: the next batch may come.
    assert judge(**refused, placeholders=[placeholder()]).phase is Phase.PROGRESSING
    old = {"claim_events": [refusal(SPOT_QUOTA, ago=QUIET_S + 1)]}
    given_up(judge(**old, placeholders=[placeholder()]), "SpotQuotaExceeded")
    # What Karpenter said of the pod before EC2 refused this time says nothing of it.
    early = objection(ago=30.0)
    assert judge(**refused, placeholders=[placeholder()], pod_events=[early]).phase is Phase.PROGRESSING


def test_refusals_from_before_the_rung_say_nothing_of_it() -> None:
    objects = {"placeholders": [placeholder()], "claim_events": [refusal(SPOT_QUOTA, uid="old")]}
    assert judge(heard=("old",), pod_events=[objection()], **objects).phase is Phase.PROGRESSING


@pytest.mark.parametrize(
    ("objects", "cause", "said"),
    [
        ({"claim_events": [refusal(ICE)]}, "InsufficientCapacity", "do not have sufficient"),
        ({}, "TimeBoxOver", "EC2 has refused none"),
        (
            {"claims": [claim("a", node_name="", waiting=LAUNCHING)]},
            "TimeBoxOver",
            "NodeClaim a not launched: AwaitingReconciliation",
        ),
    ],
    ids=["refused", "nothing happened", "EC2 has not answered"],
)
def test_the_end_of_the_time_box(objects: dict[str, Any], cause: str, said: str) -> None:
    assert said in given_up(judge(left=0.0, placeholders=[placeholder()], **objects), cause)
    assert judge(left=0.5, placeholders=[placeholder()], **objects).reason != GIVEN_UP or objects.get("claim_events")


def test_an_instance_that_is_launched_has_all_the_time_to_join() -> None:
    joining = claim("a", node_name="", waiting=JOINING)
    assert judge(left=-500.0, claims=[joining], placeholders=[placeholder()]).reason == "NodeNotFound"
    # One of two is missing still.
    given_up(judge(left=-1.0, wanted=2, claims=[joining], placeholders=[placeholder(), placeholder(1)]), "TimeBoxOver")
    assert judge(left=-1.0, wanted=2, nodes=[node("n1")], claims=[joining]).reason != GIVEN_UP


def test_enough_nodes_are_enough_whatever_the_time() -> None:
    assert judge(left=-500.0, nodes=[node("n1")]).ready


def test_a_zone_that_has_no_subnet_ends_the_rung_at_once() -> None:
    objects = {"placeholders": [placeholder()], "pod_events": [objection(NO_ZONE)]}
    assert "no instance type met all requirements" in given_up(judge(**objects), "NoInstanceTypeFits")
    # Refused a moment before the rung, by what Karpenter remembers: that passes.
    assert judge(placeholders=[placeholder()], pod_events=[objection()]).phase is Phase.PROGRESSING


@pytest.mark.parametrize(
    ("reason", "goes_on"),
    [("Unauthorized", True), ("SpotSLRCreationFailed", True), ("LaunchFailed", True), ("AMINotFound", False)],
)
def test_a_launch_that_karpenter_repeats_in_vain(reason: str, goes_on: bool) -> None:
    """What is wrong with the node class is wrong on every rung."""
    stuck = claim("a", node_name="", waiting=("Launched", reason, "EC2's words"), since=121)
    verdict = judge(claims=[stuck], placeholders=[placeholder()])
    assert verdict.phase is Phase.FAILED
    assert verdict.reason == (GIVEN_UP if goes_on else reason)
    young = claim("a", node_name="", waiting=("Launched", reason, "EC2's words"), since=60)
    assert judge(claims=[young], placeholders=[placeholder()]).phase is Phase.PROGRESSING


def test_without_a_ladder_nothing_is_given_up() -> None:
    gate = gate_named("pool_capacity")
    args = {"pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "now": NOW, "started": NOW - 100, "here": NOW}
    snapshot = {query.key: [] for query in gate.queries(args)}
    snapshot |= {"placeholders": [placeholder()], "claim_events": [refusal(SPOT_QUOTA)], "pod_events": [objection()]}
    assert gate.judge(snapshot, args).phase is Phase.PROGRESSING
