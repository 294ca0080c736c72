"""Which run handles which interrupted node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.interruptions.event import Case
from gpu_fleet.core.interruptions.handling import Handled, Plan, cause_of, drained_cause, plan_nodes
from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.interruptions.ways import Way
from tests.unit.core.specs import demo_spec

POOL, RUN, OTHER = "shared-a10g", "gpu_spot_drain.demo/me", "gpu_spot_drain.demo/other"
SPOT = Notice(Kind.SPOT, "i-0000000a", 1000.0, 1120.0, "terminate", "e1")
REBALANCE = Notice(Kind.REBALANCE, "i-0000000a", 900.0, None, "", "e0")


def node(
    instance: str = "i-0000000a", *, mark: Notice | None = SPOT, by: Handled | None = None, pool: str = POOL
) -> Any:
    annotations = {}
    if mark is not None:
        annotations["gpu-fleet.io/interruption"] = Mark(mark, 1001.0).text()
    if by is not None:
        annotations["gpu-fleet.io/interruption-handled-by"] = by.text()
    return {
        "metadata": {
            "name": f"ip-{instance[-1]}",
            "uid": f"u-{instance[-1]}",
            "resourceVersion": "1",
            "labels": {"karpenter.sh/nodepool": pool},
            "annotations": annotations,
        },
        "spec": {"providerID": f"aws:///us-west-2a/{instance}", "unschedulable": mark is not None},
    }


def plan(*nodes: Any, cases: tuple[Notice, ...] = (), over: bool = False, claims: Any = (), **changes: Any) -> Plan:
    asked: list[str] = []

    def is_over(run: str) -> bool:
        asked.append(run)
        return over

    found = plan_nodes(
        nodes,
        claims,
        {each.instance: Case(each) for each in cases},
        demo_spec(**changes),
        run=RUN,
        now=1005.0,
        is_over=is_over,
    )
    assert RUN not in asked
    return found


def test_a_marked_node_is_handled_whatever_event_started_the_run() -> None:
    (found,) = plan(node()).nodes
    assert (found.name, found.way, found.notice, found.seen, found.aid) == ("ip-a", Way.WATCH, SPOT, 1001.0, None)


def test_a_node_that_the_trigger_could_not_mark_gets_its_first_aid_from_the_run() -> None:
    (found,) = plan(node(mark=None), cases=(SPOT,)).nodes
    assert found.aid is not None
    assert found.aid.cordon
    assert found.seen == 1005.0


def test_the_more_urgent_of_mark_and_event_counts() -> None:
    (found,) = plan(node(mark=REBALANCE), cases=(SPOT,)).nodes
    assert (found.notice, found.way) == (SPOT, Way.WATCH)
    (found,) = plan(node(mark=SPOT), cases=(REBALANCE,)).nodes
    assert (found.notice, found.aid) == (SPOT, None)


def test_a_mark_of_an_instance_that_had_the_name_before_does_not_count() -> None:
    assert plan(node(mark=replace(SPOT, instance="i-0000000f"))).nodes == ()


@pytest.mark.parametrize(
    ("by", "over", "mine"),
    [
        (None, False, True),
        (Handled(RUN, cause_of(SPOT)), False, True),
        (Handled(OTHER, cause_of(SPOT)), False, False),
        (Handled(OTHER, cause_of(SPOT)), True, True),
        (Handled(OTHER, cause_of(SPOT), done=True), True, False),
        (Handled(RUN, cause_of(SPOT), done=True), False, True),
        (Handled(OTHER, cause_of(REBALANCE), done=True), False, True),
        (Handled(OTHER, cause_of(REBALANCE)), False, True),
    ],
)
def test_a_node_is_taken_unless_another_run_has_it_for_the_same_cause(
    by: Handled | None, over: bool, mine: bool
) -> None:
    found = plan(node(by=by), over=over)
    assert bool(found.nodes) is mine
    assert bool(found.elsewhere) is not mine


def test_an_unreadable_claim_of_a_person_is_none() -> None:
    broken = node()
    for text in ("", "x", "[]", "{}", '{"run": 1}'):
        broken["metadata"]["annotations"]["gpu-fleet.io/interruption-handled-by"] = text
        assert len(plan(broken).nodes) == 1


def test_nodes_of_others_and_quiet_nodes_are_left_alone() -> None:
    theirs = node(pool="of-others")
    assert plan(theirs, node("i-0000000b", mark=None)) == Plan()


def test_an_instance_without_a_node_is_named_with_why_nothing_is_drained() -> None:
    launching = {"metadata": {"name": "a10g-1"}, "status": {"providerID": "aws:///us-west-2a/i-0000000c"}}
    found = plan(cases=(replace(SPOT, instance="i-0000000c"), replace(SPOT, instance="i-0000000d")), claims=[launching])
    assert "a10g-1 has no node yet" in found.unknown["i-0000000c"]
    assert "gone, or of another cluster" in found.unknown["i-0000000d"]


def gone(notice: Notice = SPOT, now: float = 1005.0, reported: dict[str, str] | None = None) -> Plan:
    case = Case(notice, node="ip-a", node_uid="u-a", pool=POOL, marked=True, cordoned=True)
    return plan_nodes(
        [],
        [],
        {"i-0000000a": case},
        demo_spec(),
        run=RUN,
        now=now,
        is_over=lambda _: False,
        reported=lambda: reported or {},
    )


def test_a_node_that_karpenter_has_removed_before_the_run_began_is_reported() -> None:
    (departed,) = gone().departed
    assert (departed.name, departed.in_time) == ("ip-a", True)


def test_of_a_node_that_is_gone_after_its_end_nobody_knows_whether_it_was_drained() -> None:
    (departed,) = gone(now=1121.0).departed
    assert not departed.in_time


def test_a_copy_of_a_message_about_a_node_that_is_gone_is_reported_once() -> None:
    assert gone(reported={cause_of(SPOT): OTHER}).elsewhere == {"ip-a": OTHER}
    assert len(gone(reported={cause_of(SPOT): RUN}).departed) == 1
    assert len(gone(reported={cause_of(REBALANCE): OTHER}).departed) == 1


def test_nothing_is_said_of_a_node_that_only_might_have_been_interrupted() -> None:
    assert gone(REBALANCE).departed == ()


def test_a_node_that_is_removed_already_is_not_drained_for_the_end_of_its_instance() -> None:
    ending = replace(SPOT, kind=Kind.TERMINATING, action="shutting-down")
    leaving = node(mark=ending)
    assert plan(leaving).nodes[0].way is Way.ENDING
    leaving["spec"]["taints"] = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
    assert plan(leaving).nodes[0].way is Way.NOTE


def test_each_cause_has_a_name_of_its_own_and_copies_share_it() -> None:
    names = {cause_of(each) for each in (SPOT, REBALANCE, replace(SPOT, deadline=1.0), replace(SPOT, instance="i-0b"))}
    assert len(names) == 4
    assert cause_of(replace(SPOT, event="a copy")) == cause_of(SPOT)


CHANGE = Notice(Kind.SCHEDULED, "i-0000000a", 900.0, 900.0 + 14 * 86400, "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED", "e2")
ENDS = Notice(Kind.TERMINATING, "i-0000000a", 1000.0, 1000.0, "shutting-down", "e3")
POD = {"uid": "p1"}


def leaving(found: Any, *, run: str = "") -> Any:
    """The node while it is being deleted; ``run``: by a drain of this package."""
    found["metadata"]["deletionTimestamp"] = "1970-01-01T00:16:00Z"
    if run:
        found["metadata"]["annotations"]["gpu-fleet.io/cordoned-by"] = run
        found["spec"]["unschedulable"] = True
    return found


def claim(*, deleted: str = "1970-01-01T00:16:00Z", ends: str | None = None, period: str | None = None) -> Any:
    annotations = {} if ends is None else {"karpenter.sh/nodeclaim-termination-timestamp": ends}
    return {
        "metadata": {"name": "c", "deletionTimestamp": deleted, "annotations": annotations},
        "spec": {} if period is None else {"terminationGracePeriod": period},
        "status": {"nodeName": "ip-a", "providerID": "aws:///us-west-2a/i-0000000a"},
    }


@pytest.mark.parametrize("changes", [{}, {"karpenter__interruptionQueue": None}])
def test_a_node_that_karpenter_drains_for_its_scheduled_change_is_watched(changes: dict[str, Any]) -> None:
    (found,) = plan(leaving(node(mark=CHANGE)), **changes).nodes
    assert found.way is Way.WATCH
    (found,) = plan(node(mark=CHANGE), **changes).nodes
    assert found.way is Way.PLAN
    # Karpenter taints a node that it may yet keep, when it looks for a replacement.
    tainted = node(mark=CHANGE)
    tainted["spec"]["taints"] = [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
    (found,) = plan(tainted, **changes).nodes
    assert found.way is Way.PLAN


def test_a_node_that_a_run_of_ours_drains_is_left_to_it() -> None:
    (found,) = plan(leaving(node(mark=CHANGE), run="gpu_drain.demo/r")).nodes
    assert found.way is Way.NOTE
    assert "gpu_drain.demo/r" in found.decision.why


@pytest.mark.parametrize(
    ("way", "pods", "run", "ends"),
    [
        # Drained under the eyes of a run: nothing is left to tell.
        (Way.WATCH, (), "", None),
        # A pod that Karpenter waited for, until the instance ended.
        (Way.WATCH, (POD,), "", Way.ENDING),
        # Karpenter began after the run had given up waiting for it.
        (Way.PLAN, (), "", Way.ENDING),
        # The planned drain removed it.
        (Way.PLAN, (), "gpu_drain.demo/r", Way.NOTE),
    ],
)
def test_the_end_of_an_instance_with_a_scheduled_change_is_told_once(
    way: Way, pods: Any, run: str, ends: Way | None
) -> None:
    by = Handled(OTHER, cause_of(CHANGE), done=True, way=way)
    found = plan_nodes(
        [leaving(node(mark=ENDS, by=by), run=run)],
        [],
        {"i-0000000a": Case(ENDS, node="ip-a", pods=pods)},
        demo_spec(),
        run=RUN,
        now=1005.0,
        is_over=lambda _: True,
    )
    assert [each.way for each in found.nodes] == ([] if ends is None else [ends])
    assert found.elsewhere == ({"ip-a": OTHER} if ends is None else {})


@pytest.mark.parametrize(
    ("claim", "way"),
    [
        (claim(ends="1970-01-01T00:16:00Z"), Way.ENDING),
        (claim(ends="1970-01-01T00:15:59Z", period="5m"), Way.ENDING),
        (claim(ends="1970-01-01T00:21:00Z", period="5m"), Way.NOTE),
        (claim(ends="1970-01-01T00:16:00Z", period="0s"), Way.NOTE),
        (claim(), Way.NOTE),
    ],
)
def test_a_node_that_karpenter_removed_by_force_is_accounted_for(claim: Any, way: Way) -> None:
    """Status checks that fail for two minutes: the pods' time is over when the NodeClaim is deleted."""
    (found,) = plan(leaving(node(mark=ENDS)), cases=(ENDS,), claims=[claim]).nodes
    assert found.way is way


def test_the_end_of_a_node_that_a_run_has_reported_is_no_second_report() -> None:
    gone = Case(ENDS, node="ip-a", node_uid="u-a")
    arguments: Any = {"run": RUN, "now": 1005.0, "is_over": lambda _: True}
    known = {drained_cause("i-0000000a"): OTHER}
    found = plan_nodes([], [], {"i-0000000a": gone}, demo_spec(), reported=lambda: known, **arguments)
    assert (found.departed, found.elsewhere) == ((), {"ip-a": OTHER})
    other = {drained_cause("i-0000000b"): OTHER, cause_of(CHANGE): OTHER}
    found = plan_nodes([], [], {"i-0000000a": gone}, demo_spec(), reported=lambda: other, **arguments)
    assert len(found.departed) == 1


def test_what_a_claim_of_an_older_version_says_is_read() -> None:
    text = '{"run":"gpu_spot_drain.demo/r","for":"x","done":true}'
    found = Handled.of({"metadata": {"annotations": {"gpu-fleet.io/interruption-handled-by": text}}})
    assert found == Handled("gpu_spot_drain.demo/r", "x", done=True)
    assert found.text() == text


def test_an_instance_that_the_cluster_has_forgotten_is_lost_to_its_pool_once() -> None:
    case = Case(ENDS, claim="c", pool=POOL, unannounced=True)
    arguments: Any = {"run": RUN, "now": 1005.0, "is_over": lambda _: True}
    (gone,) = plan_nodes([], [], {"i-0000000a": case}, demo_spec(), **arguments).departed
    assert (gone.name, gone.in_time) == ("c", False)
    known = {drained_cause("i-0000000a"): OTHER}
    found = plan_nodes([], [], {"i-0000000a": case}, demo_spec(), reported=lambda: known, **arguments)
    assert (found.departed, found.elsewhere, found.unknown) == ((), {"c": OTHER}, {})
    # One that is launching and is interrupted has lost nothing.
    launching = Case(ENDS, claim="c", pool=POOL)
    found = plan_nodes([], [], {"i-0000000a": launching}, demo_spec(), **arguments)
    assert (found.departed, list(found.unknown)) == ((), ["i-0000000a"])


@pytest.mark.parametrize(
    ("by", "way"),
    [
        (None, Way.ENDING),
        (Handled(OTHER, cause_of(SPOT), done=True, way=Way.WATCH), None),
        (Handled(OTHER, cause_of(replace(SPOT, instance="i-0000000f")), done=True, way=Way.WATCH), Way.ENDING),
    ],
)
def test_a_node_that_karpenter_removes_for_an_interruption_that_nobody_told_is_told_once(
    by: Handled | None, way: Way | None
) -> None:
    case = Case(ENDS, node="ip-a", claim="c", pool=POOL, unannounced=True)
    found = plan_nodes(
        [leaving(node(mark=None, by=by))],
        [],
        {"i-0000000a": case},
        demo_spec(),
        run=RUN,
        now=1005.0,
        is_over=lambda _: True,
    )
    assert [each.way for each in found.nodes] == ([] if way is None else [way])
    assert bool(found.elsewhere) is (way is None)
