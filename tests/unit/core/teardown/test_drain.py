from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT
from gpu_fleet.core.kubernetes.pod_budgets import matches
from gpu_fleet.core.teardown.drain import (
    DrainPlan,
    Step,
    next_step,
    plan_drain,
    protection,
    remaining_nodes,
)
from gpu_fleet.core.teardown.drain_rules import DrainRules, Fate, judge_pod
from tests.unit.core.specs import demo_spec

DEFAULT = DrainRules(daemon_sets=frozenset({("kube-system", "cni")}))


def owner(kind: str, name: str = "web") -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "controller": True}]


def pod(name: str = "p", namespace: str = "team", phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    spec = {"nodeName": metadata.pop("node", "n1"), "volumes": metadata.pop("volumes", [])}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", **metadata},
        "spec": spec,
        "status": {"phase": phase},
    }


CNI: dict[str, Any] = {"namespace": "kube-system", "ownerReferences": owner("DaemonSet", "cni")}
GONE: dict[str, Any] = {"namespace": "kube-system", "ownerReferences": owner("DaemonSet", "gone")}
EMPTY_DIR = [{"name": "x", "emptyDir": {}}]

#: situation -> pod, rules, fate, reason
CASES: dict[str, tuple[dict[str, Any], DrainRules, Fate, str]] = {
    "of a ReplicaSet": (pod(ownerReferences=owner("ReplicaSet")), DEFAULT, Fate.EVICT, "Evictable"),
    "of a Job": (pod(ownerReferences=owner("Job")), DEFAULT, Fate.EVICT, "Evictable"),
    "bare": (pod(), DEFAULT, Fate.REFUSE, "Unreplicated"),
    "bare, forced": (pod(), DrainRules(force=True), Fate.EVICT, "Unreplicated"),
    "bare but finished": (pod(phase="Succeeded"), DEFAULT, Fate.EVICT, "Evictable"),
    "bare and failed": (pod(phase="Failed"), DEFAULT, Fate.EVICT, "Evictable"),
    "owned but not controlled": (
        pod(ownerReferences=[{"kind": "ReplicaSet", "name": "x"}]),
        DEFAULT,
        Fate.REFUSE,
        "Unreplicated",
    ),
    "our placeholder": (pod(labels={LABEL_COMPONENT: "placeholder"}), DEFAULT, Fate.EVICT, "Evictable"),
    "of a DaemonSet": (pod(**CNI), DEFAULT, Fate.LEAVE, "DaemonSetManaged"),
    "of a DaemonSet that must not be ignored": (
        pod(**CNI),
        DrainRules(ignore_daemon_sets=False, daemon_sets=DEFAULT.daemon_sets),
        Fate.REFUSE,
        "DaemonSetManaged",
    ),
    "of a DaemonSet of that name elsewhere": (
        pod(ownerReferences=owner("DaemonSet", "cni")),
        DEFAULT,
        Fate.REFUSE,
        "DaemonSetGone",
    ),
    "of a DaemonSet that is gone": (pod(**GONE), DEFAULT, Fate.REFUSE, "DaemonSetGone"),
    "of a DaemonSet that is gone, forced": (pod(**GONE), DrainRules(force=True), Fate.EVICT, "DaemonSetGone"),
    "of a DaemonSet, finished": (pod(phase="Failed", **CNI), DEFAULT, Fate.EVICT, "Evictable"),
    "mirror": (pod(annotations={"kubernetes.io/config.mirror": "x"}), DEFAULT, Fate.LEAVE, "MirrorPod"),
    "with an emptyDir": (
        pod(ownerReferences=owner("ReplicaSet"), volumes=EMPTY_DIR),
        DEFAULT,
        Fate.EVICT,
        "LocalStorage",
    ),
    "with an emptyDir to be kept": (
        pod(ownerReferences=owner("ReplicaSet"), volumes=EMPTY_DIR),
        DrainRules(delete_empty_dir_data=False),
        Fate.REFUSE,
        "LocalStorage",
    ),
    "finished with an emptyDir to be kept": (
        pod(phase="Succeeded", volumes=EMPTY_DIR),
        DrainRules(delete_empty_dir_data=False),
        Fate.EVICT,
        "Evictable",
    ),
    "of a DaemonSet with an emptyDir to be kept": (
        pod(volumes=EMPTY_DIR, **CNI),
        DrainRules(delete_empty_dir_data=False, daemon_sets=DEFAULT.daemon_sets),
        Fate.LEAVE,
        "DaemonSetManaged",
    ),
    "terminating": (pod(deletionTimestamp="2026-01-01T00:00:00Z"), DEFAULT, Fate.WAIT, "Terminating"),
    "of a DaemonSet and terminating": (
        pod(deletionTimestamp="2026-01-01T00:00:00Z", **CNI),
        DEFAULT,
        Fate.WAIT,
        "Terminating",
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_a_pod_is_judged_as_kubectl_does(situation: str) -> None:
    subject, rules, fate, reason = CASES[situation]
    verdict = judge_pod(subject, rules)
    assert (verdict.fate, verdict.reason) == (fate, reason)
    assert verdict.message


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


@pytest.mark.parametrize(("uninstall", "expected"), [(True, ["gone", "old"]), (False, ["old"])])
def test_nodes_of_pools_that_the_file_no_longer_has_are_left_to_drain(uninstall: bool, expected: list[str]) -> None:
    """Nodes of no pool at all go where Karpenter goes: nobody would be left to remove them."""
    spec = demo_spec(teardown__uninstallKarpenter=uninstall)
    pools = [
        {"metadata": {"name": "old", "labels": {"gpu-fleet.io/cluster": "demo"}}},
        {"metadata": {"name": "shared-a10g"}},
        {"metadata": {"name": "cpu"}},
    ]
    names = ("old", "shared-a10g", "cpu", "gone", "whole-a100")
    nodes = [{"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": name}}} for name in names]
    assert remaining_nodes(spec, nodes, pools, spec.pool_names) == expected
