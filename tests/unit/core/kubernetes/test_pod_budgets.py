"""As kubernetes ``pkg/registry/core/pod/storage/eviction.go`` decides."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.pod_budgets import forbidden_by


def pod(*, ready: bool = True, phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"metadata": {"name": "p", "namespace": "t", "labels": {"app": "web"}, **metadata}, "status": status}


def budget(name: str = "web", *, allowed: int = 0, current: int = 2, desired: int = 2, observed: int = 1,
           namespace: str = "t", selector: Any = None, **spec: Any) -> dict[str, Any]:  # fmt: skip
    status = {
        "disruptionsAllowed": allowed,
        "currentHealthy": current,
        "desiredHealthy": desired,
        "observedGeneration": observed,
    }
    chosen = {"matchLabels": {"app": "web"}} if selector is None else selector
    metadata = {"name": name, "namespace": namespace, "generation": 1}
    return {"metadata": metadata, "spec": {"selector": chosen, **spec}, "status": status}


#: situation -> pod, budgets, part of the sentence; None: the eviction is granted
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str | None]] = {
    "no budget": (pod(), [], None),
    "a budget of another namespace": (pod(), [budget(namespace="other")], None),
    "a budget for other pods": (pod(), [budget(selector={"matchLabels": {"app": "db"}})], None),
    "a budget for all pods": (pod(), [budget(selector={})], "allows no disruption"),
    "one that allows one": (pod(), [budget(allowed=1)], None),
    "one that allows none": (pod(), [budget()], "PodDisruptionBudget web allows no disruption (it needs 2 healthy"),
    "two, though they allow it": (
        pod(),
        [budget("b", allowed=1), budget("a", allowed=1)],
        "PodDisruptionBudgets a and b select the same pod",
    ),
    "one that nobody has looked at": (pod(), [budget(allowed=1, observed=0)], "not been looked at"),
    "a pod that is pending": (pod(phase="Pending"), [budget()], None),
    "a pod that has finished": (pod(phase="Succeeded"), [budget(), budget("b")], None),
    "a pod that is going": (pod(deletionTimestamp="t"), [budget()], None),
    "an unhealthy pod beside enough healthy ones": (pod(ready=False), [budget()], None),
    "an unhealthy pod beside too few": (pod(ready=False), [budget(current=1)], "it needs 2 healthy pods and has 1"),
    "an unhealthy pod that may always go": (
        pod(ready=False),
        [budget(current=1, unhealthyPodEvictionPolicy="AlwaysAllow")],
        None,
    ),
    "a healthy pod where unhealthy ones may go": (
        pod(),
        [budget(unhealthyPodEvictionPolicy="AlwaysAllow")],
        "allows no disruption",
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_what_a_budget_says_of_a_pods_eviction(situation: str) -> None:
    this, budgets, part = CASES[situation]
    found = forbidden_by(this, budgets)
    assert found is None if part is None else part in str(found)
