"""Gate ``pool_capacity`` over every text that Karpenter and EC2 were seen to give for a launch that fails."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.launch_errors import Hope, cause_of_reason, main_cause
from gpu_fleet.core.verdict import Phase, Verdict
from tests.corpus import entries
from tests.unit.core.cluster_objects import claim, event, placeholder
from tests.unit.core.gates.capacity.test_pool import judge

CONDITIONS = entries("launch_conditions")
EVENTS = entries("launch_events")
UNABLE = "creating instance, insufficient capacity, with fleet error(s), "
NO_QUOTA = f"{UNABLE}VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0 allows"
NO_SPOT = f"{UNABLE}MaxSpotInstanceCountExceeded: Max spot instance count exceeded"
NO_CAPACITY = f"{UNABLE}InsufficientInstanceCapacity: We currently do not have sufficient g5.xlarge capacity"


def shortage(text: str, *, ago: float, about: str = "shared-a10g-abcde") -> dict[str, Any]:
    return event(
        "InsufficientCapacityError", f"NodeClaim {about} event: {text}", kind="NodeClaim", ago=ago, about=about
    )


def short_of(*events: dict[str, Any], started: float = 200) -> Verdict:
    return judge(started=started, placeholders=[placeholder(0)], claim_events=list(events))


def ends(verdict: Verdict) -> str:
    if verdict.phase is Phase.PROGRESSING:
        return "waits"
    return "person" if verdict.permanent else "retry"


@pytest.mark.parametrize("case", CONDITIONS, ids=lambda case: f"{case['reason']}: {case['message'][-40:]}")
def test_a_stalled_launch_ends_with_karpenters_own_reason(case: dict[str, str]) -> None:
    stalled = claim(node_name="", waiting=("Launched", case["reason"], case["message"]), since=150)
    verdict = judge(claims=[stalled])
    assert (verdict.reason, ends(verdict)) == (case["reason"], case["ends"]), verdict
    assert case["message"] in verdict.message
    assert case["remedy"] in verdict.message


@pytest.mark.parametrize("case", CONDITIONS, ids=lambda case: f"{case['reason']}: {case['message'][-40:]}")
def test_a_launch_that_was_just_refused_is_tried_again_by_karpenter(case: dict[str, str]) -> None:
    fresh = claim(node_name="", waiting=("Launched", case["reason"], case["message"]), since=10)
    verdict = judge(claims=[fresh])
    assert (verdict.reason, ends(verdict)) == (case["reason"], "waits"), verdict


@pytest.mark.parametrize("case", EVENTS, ids=lambda case: f"{case['reason']}: {case['text'][60:100]}")
def test_a_lack_of_capacity_has_ec2s_cause(case: dict[str, str]) -> None:
    verdict = short_of(shortage(case["text"], ago=150))
    assert (verdict.reason, ends(verdict)) == (case["reason"], case["ends"]), verdict
    assert case["text"] in verdict.message
    assert case["remedy"] in verdict.message


def test_a_fresh_refusal_waits_for_the_other_capacity_type() -> None:
    verdict = short_of(shortage(NO_SPOT, ago=5))
    assert (verdict.reason, ends(verdict)) == ("SpotQuotaExceeded", "waits")


def test_neither_spot_nor_on_demand_has_a_quota() -> None:
    verdict = short_of(shortage(NO_SPOT, ago=140), shortage(NO_QUOTA, ago=130))
    assert ends(verdict) == "person"


def test_no_spot_quota_and_on_demand_is_short_at_the_moment() -> None:
    verdict = short_of(shortage(NO_SPOT, ago=140), shortage(NO_CAPACITY, ago=130))
    assert (verdict.reason, ends(verdict)) == ("InsufficientCapacity", "waits")
    assert "SpotQuotaExceeded: " in verdict.message


def test_offerings_that_karpenter_does_not_ask_for_again_hide_no_cause() -> None:
    silent = f"{UNABLE.partition(', with')[0]}, all requested instance types were unavailable during launch"
    verdict = short_of(shortage(NO_QUOTA, ago=150), shortage(silent, ago=20))
    assert (verdict.reason, ends(verdict)) == ("VCPULimitExceeded", "person")


def test_a_quota_that_was_short_before_this_try_may_have_been_raised() -> None:
    verdict = short_of(shortage(NO_QUOTA, ago=200), started=150)
    assert (verdict.reason, ends(verdict)) == ("VCPULimitExceeded", "waits")


@pytest.mark.parametrize("about", ["other-abcde", "shared-a10g-big-abcde", "shared-a10g", ""])
def test_another_pools_lack_of_capacity_is_not_this_ones(about: str) -> None:
    verdict = short_of(shortage(NO_QUOTA, ago=150, about=about))
    assert verdict.reason == "WaitingForKarpenter"


def test_a_claim_of_a_pool_with_a_long_name() -> None:
    pool = "p" * 63
    pending = placeholder(0, pool=pool)
    verdict = judge(
        pool=pool, started=200, placeholders=[pending], claim_events=[shortage(NO_QUOTA, ago=150, about="p" * 63)]
    )
    assert verdict.reason == "VCPULimitExceeded"


def test_every_reason_has_a_remedy() -> None:
    for reason in ("", "Unheard", *(case["reason"] for case in CONDITIONS)):
        cause = cause_of_reason(reason)
        assert cause.remedy
        assert cause.reason
    assert main_cause([]).hope is Hope.WAIT
