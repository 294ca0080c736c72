from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.drain.plan import DrainPlan, Step, next_step, plan_drain, protection
from gpu_fleet.core.kubernetes.pod_budgets import matches
from tests.unit.core.drain.test_rules import CASES, CNI, DEFAULT, owner, pod


def test_a_refusal_names_every_pod_its_node_and_what_to_do() -> None:
    plan = plan_drain([pod("a"), pod("b", node="n2"), pod("c", ownerReferences=owner("Job"))], DEFAULT)
    assert [str(p) for p in plan.refuse] == ["team/a", "team/b"]
    text = plan.refusal()
    assert "team/a on n1" in text
    assert "team/b on n2" in text
    assert "drain.force: true" in text
    assert not plan.done


def test_a_plan_is_stable_and_complete() -> None:
    pods = [subject for subject, _, _, _ in CASES.values()]
    one, other = plan_drain(pods, DEFAULT), plan_drain(list(reversed(pods)), DEFAULT)
    assert [sorted(map(str, group)) for group in (one.evict, one.wait, one.leave, one.refuse)] == [
        sorted(map(str, group)) for group in (other.evict, other.wait, other.leave, other.refuse)
    ]
    assert sum(map(len, (one.evict, one.wait, one.leave, one.refuse))) == len(pods)


def test_only_daemon_set_and_mirror_pods_left_is_done() -> None:
    assert plan_drain([pod(**CNI)], DEFAULT).done
    assert plan_drain([], DEFAULT).done
    assert not plan_drain([pod(deletionTimestamp="t")], DEFAULT).done


BUSY = plan_drain([pod(ownerReferences=owner("Job"))], DEFAULT)


@pytest.mark.parametrize(
    ("plan", "elapsed", "policy", "step"),
    [
        (DrainPlan(), 0, "fail", Step.DONE),
        (DrainPlan(), 10_000, "fail", Step.DONE),
        (BUSY, 0, "fail", Step.EVICT),
        (BUSY, 0, "delete", Step.EVICT),
        (BUSY, 599, "delete", Step.EVICT),
        (BUSY, 600, "fail", Step.GIVE_UP),
        (BUSY, 600, "delete", Step.DELETE),
        (BUSY, 899, "delete", Step.DELETE),
        (BUSY, 900, "delete", Step.GIVE_UP),
    ],
)
def test_the_clock_and_the_policy_decide_the_next_step(
    plan: DrainPlan, elapsed: float, policy: str, step: Step
) -> None:
    assert next_step(plan, elapsed=elapsed, timeout=600, deadline=900, policy=policy) is step


def test_an_unknown_policy_is_no_guess() -> None:
    with pytest.raises(ValueError, match="shrug"):
        next_step(DrainPlan(), elapsed=0, timeout=1, deadline=1, policy="shrug")


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "db"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, True),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["w"]}]}, False),
    ],
)
def test_a_label_selector_selects(selector: dict[str, Any] | None, selected: bool) -> None:
    assert matches(selector, {"app": "web"}) is selected


def test_what_protects_a_pod_is_named() -> None:
    budget = {
        "metadata": {"name": "web-pdb", "namespace": "team"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"disruptionsAllowed": 0},
    }
    elsewhere = {**budget, "metadata": {"name": "other", "namespace": "other"}}
    subject = pod(labels={"app": "web"}, annotations={"karpenter.sh/do-not-disrupt": "true"})
    text = protection(subject, [budget, elsewhere])
    assert text == "PodDisruptionBudget web-pdb (allowed disruptions 0), annotation karpenter.sh/do-not-disrupt"
    stuck = pod(deletionTimestamp="t", finalizers=["a/b"])
    assert protection(stuck, [budget]) == "terminating, finalizers a/b"
    assert protection(pod(), [budget]) == "no PodDisruptionBudget found"
