"""Who acts on an interrupted node, for every kind of notice, owner and policy."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from gpu_fleet.core.interruptions.messages import URGENCY, Kind, Notice
from gpu_fleet.core.interruptions.ways import (
    Owner,
    Way,
    decide,
    may_act_first,
    more_urgent,
    newest_per_instance,
)
from tests.unit.core.specs import demo_spec

WITHOUT_QUEUE = {"karpenter__interruptionQueue": None}


def notice(kind: Kind, deadline: float | None = 1120.0, at: float = 1000.0, event: str = "e") -> Notice:
    return Notice(kind, "i-00000001", at, deadline, "terminate", event)


@pytest.mark.parametrize("kind", [Kind.SPOT, Kind.RESERVATION])
@pytest.mark.parametrize(
    ("owner", "changes", "way"),
    [
        (Owner.KARPENTER, {}, Way.WATCH),
        (Owner.KARPENTER, WITHOUT_QUEUE, Way.DRAIN),
        (Owner.NODE_GROUP, {}, Way.DRAIN),
        (Owner.NODE_GROUP, WITHOUT_QUEUE, Way.DRAIN),
    ],
)
def test_karpenter_drains_its_own_nodes_where_it_has_a_queue(
    kind: Kind, owner: Owner, changes: dict[str, Any], way: Way
) -> None:
    assert decide(notice(kind), owner, demo_spec(**changes)).way is way


@pytest.mark.parametrize("kind", [Kind.STOPPING, Kind.TERMINATING])
@pytest.mark.parametrize("owner", Owner)
def test_an_instance_that_ends_already_is_only_accounted_for(kind: Kind, owner: Owner) -> None:
    assert decide(notice(kind), owner, demo_spec()).way is Way.ENDING


@pytest.mark.parametrize(
    ("owner", "leaving", "way"),
    [
        (Owner.KARPENTER, True, Way.WATCH),
        (Owner.KARPENTER, False, Way.PLAN),
        (Owner.NODE_GROUP, True, Way.PLAN),
        (Owner.NODE_GROUP, False, Way.PLAN),
    ],
)
@pytest.mark.parametrize("changes", [{}, WITHOUT_QUEUE])
def test_a_scheduled_change_is_planned_unless_karpenter_removes_the_node_already(
    owner: Owner, leaving: bool, way: Way, changes: dict[str, Any]
) -> None:
    assert decide(notice(Kind.SCHEDULED), owner, demo_spec(**changes), leaving=leaving).way is way


@pytest.mark.parametrize(
    ("changes", "polls"),
    [
        ({"karpenter__chart": {"version": "1.11.1"}}, False),
        ({"karpenter__chart": {"version": "1.11.0"}}, False),
        ({"karpenter__chart": {"version": "1.12.0"}}, True),
        ({"karpenter__chart": {"version": "1.14.1"}}, True),
        ({"karpenter__chart": {"version": "2.0.0"}}, True),
        ({"karpenter__chart": {"version": "1.11.1"}, "karpenter__manage": False}, True),
    ],
)
def test_karpenter_looks_for_scheduled_changes_itself_since_a_release(changes: dict[str, Any], polls: bool) -> None:
    """aws/karpenter-provider-aws upgrade guide, "Upgrading to 1.12.0+": ec2:DescribeInstanceStatus (#9064)."""
    spec = demo_spec(**WITHOUT_QUEUE, **changes)
    assert spec.karpenter.may_poll_ec2 is polls
    assert may_act_first(notice(Kind.SCHEDULED), Owner.KARPENTER, spec) is polls
    assert not may_act_first(notice(Kind.SCHEDULED), Owner.NODE_GROUP, spec)
    assert not may_act_first(notice(Kind.REBALANCE), Owner.KARPENTER, spec)


def test_karpenter_with_a_queue_reads_the_message_whatever_its_version() -> None:
    old = demo_spec(karpenter__chart={"version": "1.11.1"})
    assert may_act_first(notice(Kind.SCHEDULED), Owner.KARPENTER, old)


@pytest.mark.parametrize(("policy", "way"), [("ignore", Way.NOTE), ("signal", Way.SIGNAL), ("replace", Way.PLAN)])
@pytest.mark.parametrize("owner", Owner)
def test_a_rebalance_recommendation_follows_the_policy(policy: str, way: Way, owner: Owner) -> None:
    """Karpenter does nothing about it but an event, whoever owns the node."""
    assert decide(notice(Kind.REBALANCE, None), owner, demo_spec(interruptions__rebalance=policy)).way is way


def test_every_decision_says_why() -> None:
    for kind, owner, changes in itertools.product(Kind, Owner, [{}, WITHOUT_QUEUE]):
        assert decide(notice(kind), owner, demo_spec(**changes)).why


def test_which_of_two_notices_counts_does_not_depend_on_their_order() -> None:
    every = [notice(kind, deadline, at) for kind in Kind for deadline in (None, 1.0, 2.0) for at in (1.0, 2.0)]
    for first, second in itertools.product(every, every):
        assert more_urgent(first, second) == more_urgent(second, first)


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_and_disorder_change_nothing(seed: int) -> None:
    every = [notice(kind, 1000.0 + index) for index, kind in enumerate(Kind)] * 10
    random.Random(seed).shuffle(every)
    found = newest_per_instance(every)
    assert found == {"i-00000001": notice(URGENCY[0], 1000.0 + list(Kind).index(URGENCY[0]))}


def test_a_notice_with_an_end_is_more_urgent_than_one_without() -> None:
    known, unknown = notice(Kind.SCHEDULED, 5000.0), notice(Kind.SCHEDULED, None)
    assert more_urgent(unknown, known) == known
