from __future__ import annotations

from typing import Any

import pytest

from sandbox.controllers.objects import condition, meta
from sandbox.kube.resources import ApiError
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _status(**wanted: int) -> Any:
    def holds(obj: dict[str, Any]) -> bool:
        status = obj.get("status") or {}
        return status.get("observedGeneration") == meta(obj)["generation"] and all(
            status.get(name) == value for name, value in wanted.items()
        )

    return holds


@pytest.mark.parametrize(
    ("spec", "expected", "desired", "allowed"),
    [
        ({"minAvailable": 2}, 3, 2, 1),
        ({"minAvailable": "50%"}, 3, 2, 1),
        ({"maxUnavailable": 1}, 3, 2, 1),
        ({"maxUnavailable": 0}, 3, 3, 0),
        ({"maxUnavailable": "100%"}, 3, 0, 3),
        ({"minAvailable": 5}, 3, 5, 0),
    ],
)
async def test_budget_of_a_deployment(
    cluster: World, spec: dict[str, Any], expected: int, desired: int, allowed: int
) -> None:
    await cluster.create(builders.budget(**spec), builders.node(), builders.workload("Deployment", replicas=3))
    budget = await cluster.object(
        "PodDisruptionBudget",
        "b",
        "default",
        _status(expectedPods=expected, desiredHealthy=desired, disruptionsAllowed=allowed, currentHealthy=3),
    )
    assert (condition(budget, "DisruptionAllowed") or {})["reason"] == (
        "SufficientPods" if allowed else "InsufficientPods"
    )


async def test_eviction_is_refused_until_a_replacement_is_healthy(cluster: World) -> None:
    cluster.stopping = 0.05
    await cluster.create(builders.budget(minAvailable=2), builders.node(), builders.workload("Deployment", replicas=3))
    await cluster.object("PodDisruptionBudget", "b", "default", _status(disruptionsAllowed=1, currentHealthy=3))
    names = [meta(pod)["name"] for pod in await cluster.kube.list("Pod", "default")]
    await cluster.kube.evict("default", names[0])
    with pytest.raises(ApiError) as refused:
        await cluster.kube.evict("default", names[1])
    assert refused.value.code == 429
    assert refused.value.has_cause("DisruptionBudget")
    await cluster.gone("Pod", names[0], "default")
    await cluster.object("PodDisruptionBudget", "b", "default", _status(disruptionsAllowed=1, currentHealthy=3))
    await cluster.kube.evict("default", names[1])
    await cluster.gone("Pod", names[1], "default")


async def test_a_budget_over_nothing_is_observed_at_once(cluster: World) -> None:
    await cluster.create(builders.budget(minAvailable=1))
    await cluster.object("PodDisruptionBudget", "b", "default", _status(expectedPods=0, disruptionsAllowed=0))
