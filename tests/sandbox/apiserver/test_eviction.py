"""The eviction subresource; budgets' statuses are set by hand, as the disruption controller would."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.apiserver.builders import BUDGETS, PODS, binding, budget, pod
from tests.sandbox.apiserver.client import Api, Reply

pytestmark = pytest.mark.real_api

BLOCKED = "Cannot evict pod as it would violate the pod's disruption budget."


async def running_pod(api: Api, name: str) -> None:
    await api.post(PODS, pod(name, labels={"app": "a"}))
    await api.post(f"{PODS}/{name}/binding", binding(name, "n1"))
    ready = [{"type": "Ready", "status": "True"}]
    await api.patch(f"{PODS}/{name}/status", {"status": {"phase": "Running", "conditions": ready}})


async def observed_budget(api: Api, name: str, allowed: int, desired: int = 2, current: int = 2) -> None:
    await api.post(BUDGETS, budget(name, app="a"))
    status = {
        "observedGeneration": 1,
        "disruptionsAllowed": allowed,
        "desiredHealthy": desired,
        "currentHealthy": current,
        "expectedPods": current,
    }
    assert (await api.patch(f"{BUDGETS}/{name}/status", {"status": status})).code == 200


async def evict(api: Api, name: str, **options: Any) -> Reply:
    body: dict[str, Any] = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    if options:
        body["deleteOptions"] = options
    return await api.post(f"{PODS}/{name}/eviction", body)


async def test_without_a_budget(api: Api) -> None:
    await running_pod(api, "p")
    assert (await evict(api, "p", gracePeriodSeconds=5)).code == 201
    assert (await api.get(f"{PODS}/p")).body["metadata"]["deletionGracePeriodSeconds"] == 5


async def test_granted_and_counted(api: Api) -> None:
    await running_pod(api, "p")
    await observed_budget(api, "b", allowed=1)
    assert (await evict(api, "p")).code == 201
    status = (await api.get(f"{BUDGETS}/b")).body["status"]
    assert (status["disruptionsAllowed"], list(status["disruptedPods"])) == (0, ["p"])


async def test_blocked_has_no_retry_after(api: Api) -> None:
    await running_pod(api, "p")
    await observed_budget(api, "p1", allowed=0)
    reply = await evict(api, "p")
    assert (reply.code, reply.reason, reply.message) == (429, "TooManyRequests", BLOCKED)
    assert reply.causes == [
        {
            "reason": "DisruptionBudget",
            "message": "The disruption budget p1 needs 2 healthy pods and has 2 currently",
        }
    ]
    assert "Retry-After" not in reply.headers
    assert "deletionTimestamp" not in (await api.get(f"{PODS}/p")).body["metadata"]


async def test_a_budget_not_yet_observed_asks_to_come_back(api: Api) -> None:
    await running_pod(api, "p")
    await api.post(BUDGETS, budget("b", app="a"))
    reply = await evict(api, "p")
    assert (reply.code, reply.headers["Retry-After"]) == (429, "10")


async def test_two_budgets(api: Api) -> None:
    await running_pod(api, "p")
    for name in ("b1", "b2"):
        await observed_budget(api, name, allowed=1)
    reply = await evict(api, "p")
    assert (reply.code, reply.reason) == (500, "")
    assert reply.message == (
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    )


async def test_a_pending_pod_bypasses_its_budget(api: Api) -> None:
    await api.post(PODS, pod("p", labels={"app": "a"}))
    await observed_budget(api, "b", allowed=0)
    assert (await evict(api, "p")).code == 201


async def test_dry_run_counts_nothing(api: Api) -> None:
    await running_pod(api, "p")
    await observed_budget(api, "b", allowed=1)
    assert (await evict(api, "p", dryRun=["All"])).code == 201
    assert (await api.get(f"{BUDGETS}/b")).body["status"]["disruptionsAllowed"] == 1
    assert "deletionTimestamp" not in (await api.get(f"{PODS}/p")).body["metadata"]


async def test_the_pod_of_another_uid_stays(api: Api) -> None:
    """A client that planned with the last pod of that name."""
    await running_pod(api, "p")
    uid = (await api.get(f"{PODS}/p")).body["metadata"]["uid"]
    reply = await evict(api, "p", preconditions={"uid": "that-of-the-last"})
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert "deletionTimestamp" not in (await api.get(f"{PODS}/p")).body["metadata"]
    assert (await evict(api, "p", preconditions={"uid": uid})).code == 201


async def test_an_absent_pod(api: Api) -> None:
    reply = await evict(api, "nobody")
    assert (reply.code, reply.message) == (404, 'pods "nobody" not found')


async def test_an_unhealthy_pod_that_may_always_go(api: Api) -> None:
    """``unhealthyPodEvictionPolicy: AlwaysAllow``; a healthy pod is guarded all the same."""
    await running_pod(api, "p")
    await running_pod(api, "healthy")
    await api.patch(f"{PODS}/p/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    await observed_budget(api, "b", allowed=0, desired=2, current=1)
    await api.patch(f"{BUDGETS}/b", {"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})
    await api.patch(f"{BUDGETS}/b/status", {"status": {"observedGeneration": 2}})
    assert (await evict(api, "p", dryRun=["All"])).code == 201
    assert (await evict(api, "p")).code == 201
    assert (await evict(api, "healthy", dryRun=["All"])).code == 429


@pytest.mark.parametrize(("current", "desired", "code"), [(2, 2, 201), (1, 2, 429)])
async def test_an_unhealthy_pod_may_go_when_enough_are_healthy(api: Api, current: int, desired: int, code: int) -> None:
    await running_pod(api, "p")
    await api.patch(f"{PODS}/p/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    await observed_budget(api, "b", allowed=0, desired=desired, current=current)
    assert (await evict(api, "p")).code == code
