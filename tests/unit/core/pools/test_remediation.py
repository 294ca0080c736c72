"""What becomes of nodes that failed: the plan for every situation."""

from __future__ import annotations

import pytest

from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.pools.quarantine import Judgement, Quarantine
from gpu_fleet.core.pools.remediation import Left, Plan, Policy, Why, judgements, plan
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from tests.unit.core.cluster_objects import node

XID = Judgement(Outcome.FAILED, "XidError", "XID 79", "sharing")
STARVED = Judgement(Outcome.FAILED, "SharerStarved", "share 3", "throughput")
NO_CLASS = Judgement(Outcome.FAILED, "RuntimeClassMissing", "no RuntimeClass", "sharing")
GOOD = Judgement(Outcome.PASSED, passed=frozenset({"sharing", "throughput"}))
BUSY = Judgement(Outcome.BUSY, "Busy", "all GPUs in use", "sharing")
DOUBT = Judgement(Outcome.INCONCLUSIVE, "ReportsMissing", "3 of 4", "sharing")
OURS = Quarantine("XidError", "XID 79", "sharing", "gpu_revalidate.demo/earlier", "2026-01-01T00:00:00+00:00")


def views(*names: str, cordoned: tuple[str, ...] = ()) -> dict[str, PoolNode]:
    return {name: PoolNode.of(node(name, cordoned=name in cordoned)) for name in names}


def make(
    policy: Policy,
    judged: dict[str, Judgement],
    *,
    budget: int = 1,
    quarantines: dict[str, Quarantine] | None = None,
    spent: tuple[str, ...] = (),
    nodes: dict[str, PoolNode] | None = None,
    probes: tuple[str, ...] = ("sharing", "throughput"),
) -> Plan:
    there = nodes if nodes is not None else views(*judged, cordoned=tuple(quarantines or ()))
    return plan(policy, budget, judged, there, quarantines or {}, spent=spent, probes=probes)


def why(found: Plan) -> dict[str, str]:
    return {item.node: str(item.reason) for item in found.left}


# --- who is taken out of service ---
@pytest.mark.parametrize(
    ("policy", "quarantine", "replace", "left"),
    [
        (Policy.ALERT, [], (), {"a": "AlertOnly"}),
        (Policy.QUARANTINE, ["a"], (), {}),
        (Policy.REPLACE, ["a"], ("a",), {}),
    ],
)
def test_a_failing_node_among_good_ones(
    policy: Policy, quarantine: list[str], replace: tuple[str, ...], left: dict[str, str]
) -> None:
    found = make(policy, {"a": XID, "b": GOOD})
    assert [name for name, _ in found.quarantine] == quarantine
    assert (found.replace, why(found), found.release) == (replace, left, ())


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("judged", [{}, {"a": GOOD}, {"a": BUSY, "b": GOOD}], ids=["idle", "good", "busy"])
def test_nothing_is_done_about_nodes_that_did_not_fail(policy: Policy, judged: dict[str, Judgement]) -> None:
    assert make(policy, judged) == Plan()


@pytest.mark.parametrize("policy", [Policy.QUARANTINE, Policy.REPLACE])
def test_no_more_nodes_go_than_the_budget(policy: Policy) -> None:
    judged = {"a": XID, "b": STARVED, "c": XID, "d": GOOD}
    found = make(policy, judged, budget=2)
    assert {name for name, _ in found.quarantine} == {"a", "b"}
    assert why(found) == {"c": "BudgetSpent"}


@pytest.mark.parametrize("policy", [Policy.QUARANTINE, Policy.REPLACE])
def test_an_interrupted_try_has_no_second_budget_and_goes_on_with_its_own_nodes(policy: Policy) -> None:
    found = make(policy, {"a": XID, "b": XID, "c": GOOD}, spent=("b",))
    assert [name for name, _ in found.quarantine] == ["b"]
    assert why(found) == {"a": "BudgetSpent"}


def test_a_node_that_is_gone_by_now_keeps_its_place_in_the_budget() -> None:
    found = make(Policy.REPLACE, {"a": XID, "b": XID, "c": GOOD}, spent=("a",), nodes=views("b", "c"))
    assert (found.quarantine, why(found)) == ((), {"a": "NodeGone", "b": "BudgetSpent"})


@pytest.mark.parametrize("policy", [Policy.QUARANTINE, Policy.REPLACE])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_hits_every_node_alike_is_the_pools_defect(policy: Policy, count: int) -> None:
    found = make(policy, {f"n{i}": XID for i in range(count)}, budget=99)
    assert (found.quarantine, found.replace) == ((), ())
    assert set(why(found).values()) == {"PoolWide"}


@pytest.mark.parametrize("other", [STARVED, GOOD, BUSY], ids=["another cause", "good", "busy"])
def test_what_hits_all_but_one_is_not_the_pools(other: Judgement) -> None:
    found = make(Policy.QUARANTINE, {"a": XID, "b": XID, "c": other}, budget=2)
    assert {name for name, _ in found.quarantine} == {"a", "b"}


@pytest.mark.parametrize("policy", [Policy.QUARANTINE, Policy.REPLACE])
def test_what_hits_a_whole_sample_alike_is_the_pools_defect(policy: Policy) -> None:
    """Else each run would take good nodes out of service for a defect of the pool, as many as the budget allows."""
    there = views("a", "b", "c", "d", cordoned=("c",))
    found = make(policy, {"a": XID, "b": XID}, budget=99, nodes=there)
    assert (found.quarantine, found.replace) == ((), ())
    assert why(found) == {"a": "PoolWide", "b": "PoolWide"}


@pytest.mark.parametrize("judged", [{"a": XID}, {"a": XID, "b": STARVED}], ids=["one node", "two causes"])
def test_a_sample_that_shows_no_pattern_says_nothing_of_the_pool(judged: dict[str, Judgement]) -> None:
    found = make(Policy.QUARANTINE, judged, budget=2, nodes=views("a", "b", "c"))
    assert [name for name, _ in found.quarantine] == sorted(judged)


def test_a_node_that_is_gone_is_no_pattern() -> None:
    found = make(Policy.QUARANTINE, {"a": XID, "gone": XID}, nodes=views("a", "b"))
    assert [name for name, _ in found.quarantine] == ["a"]


def test_a_cause_outside_the_node_is_left_to_people() -> None:
    found = make(Policy.REPLACE, {"a": NO_CLASS, "b": GOOD})
    assert (found.quarantine, why(found)) == ((), {"a": "NotTheNode"})


def test_doubt_is_no_proof() -> None:
    found = make(Policy.REPLACE, {"a": DOUBT, "b": GOOD})
    assert (found.quarantine, found.left) == ((), (Left("a", Why.INCONCLUSIVE, "ReportsMissing: 3 of 4"),))


def test_a_node_that_a_person_has_cordoned_meanwhile_is_left_alone() -> None:
    found = make(Policy.REPLACE, {"a": XID, "b": GOOD}, nodes=views("a", "b", cordoned=("a",)))
    assert (found.quarantine, why(found)) == ((), {"a": "CordonedByOthers"})


# --- quarantined before ---
def test_a_quarantined_node_that_still_fails_stays_so_and_costs_no_budget() -> None:
    found = make(Policy.QUARANTINE, {"a": XID, "b": XID, "c": GOOD}, quarantines={"a": OURS})
    assert sorted(name for name, _ in found.quarantine) == ["a", "b"]
    assert (found.release, why(found)) == ((), {})


def test_a_quarantined_node_that_still_fails_is_replaced_within_the_budget() -> None:
    found = make(Policy.REPLACE, {"a": XID, "b": GOOD, "c": GOOD}, quarantines={"a": OURS})
    assert (found.replace, why(found)) == (("a",), {})


def test_a_quarantined_node_does_not_keep_a_failing_one_in_service() -> None:
    """It may be one that cannot be replaced, now or ever."""
    found = make(Policy.REPLACE, {"a": XID, "b": XID, "c": GOOD}, quarantines={"a": OURS})
    assert (found.replace, why(found)) == (("b",), {"a": "BudgetSpent"})


@pytest.mark.parametrize("policy", list(Policy))
def test_a_quarantined_node_that_passes_is_released_under_any_policy(policy: Policy) -> None:
    assert make(policy, {"a": GOOD, "b": GOOD}, quarantines={"a": OURS}).release == ("a",)


@pytest.mark.parametrize(
    ("found", "release"),
    [
        (GOOD, ("a",)),
        (Judgement(Outcome.PASSED, passed=frozenset({"throughput"})), ()),
        (XID, ()),
        (BUSY, ()),
        (DOUBT, ()),
        (None, ()),
    ],
    ids=["passed", "the failed probe did not run", "fails again", "busy", "doubt", "not looked at"],
)
def test_only_the_probe_that_was_failed_ends_a_quarantine(found: Judgement | None, release: tuple[str, ...]) -> None:
    judged = {"b": GOOD} | ({"a": found} if found is not None else {})
    there = views("a", "b", cordoned=("a",))
    assert make(Policy.QUARANTINE, judged, quarantines={"a": OURS}, nodes=there).release == release


@pytest.mark.parametrize(
    ("passed", "probes", "release"),
    [
        (["sharing"], ["sharing"], ("a",)),
        (["sharing", "throughput"], ["sharing", "throughput"], ("a",)),
        (["sharing"], ["sharing", "throughput"], ()),  # too busy to be measured
        (["sharing"], ["sharing", "dcgm"], ()),
        (["sharing"], [], ()),
    ],
)
def test_a_probe_that_was_switched_off_keeps_no_node_for_ever(
    passed: list[str], probes: list[str], release: tuple[str, ...]
) -> None:
    before = {"a": Quarantine("DcgmFailed", "m", "dcgm", "d/r", "")}
    found = Judgement(Outcome.PASSED, passed=frozenset(passed))
    made = make(Policy.QUARANTINE, {"a": found, "b": GOOD}, quarantines=before, probes=tuple(probes))
    assert made.release == release


def test_a_damaged_annotation_does_not_keep_a_good_node_for_ever() -> None:
    damaged = Quarantine("", "", "", "", "")
    assert make(Policy.QUARANTINE, {"a": GOOD, "b": GOOD}, quarantines={"a": damaged}).release == ("a",)


# --- judgements of several probes ---
def report(probe: str, **nodes: Outcome) -> PoolReport:
    reports = tuple(
        NodeReport(name, {}, (Check("c", outcome, "XidError" if outcome is Outcome.FAILED else "R", "words"),))
        for name, outcome in nodes.items()
    )
    return PoolReport("demo", "p", probe, "d/r", 1, 4, 0.0, 1.0, reports)


def test_the_worst_of_a_nodes_probes_counts_and_names_its_probe() -> None:
    found = judgements(
        [
            report("sharing", a=Outcome.PASSED, b=Outcome.PASSED),
            report("throughput", a=Outcome.FAILED, b=Outcome.PASSED),
        ]
    )
    assert found["a"] == Judgement(Outcome.FAILED, "XidError", "words", "throughput", frozenset({"sharing"}))
    assert found["b"] == Judgement(Outcome.PASSED, passed=frozenset({"sharing", "throughput"}))
    assert judgements([]) == {}
