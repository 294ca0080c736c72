"""Controllers that are killed, crash, or meet a failing API server end where they would have ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandbox.controllers.objects import meta, phase
from sandbox.controllers.workloads.daemonset import DaemonSetController
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _image(name: str, app: str = "w") -> dict[str, Any]:
    return {"spec": {"template": builders.template({"app": app}, image=name)}}


def _runs(image: str) -> Any:
    return lambda pod: (
        phase(pod) == "Running"
        and pod["spec"]["containers"][0]["image"] == image
        and "deletionTimestamp" not in meta(pod)
    )


def _at_least(count: int) -> Any:
    return lambda pods: sum(map(_runs("pause:2"), pods.items())) >= count


async def _version(cluster: World) -> str:
    return str((await cluster.kube.list_page("Namespace"))["metadata"]["resourceVersion"])


async def _settled(cluster: World) -> str:
    """The server's version once it has stood still."""
    versions = [""]
    for _ in range(20):
        versions.append(await _version(cluster))
        if versions[-1] == versions[-2]:
            return versions[-1]
        await asyncio.sleep(0.4)
    raise AssertionError(f"still changing: {versions}")


async def test_a_settled_cluster_is_left_alone_also_after_a_restart(cluster: World) -> None:
    await cluster.create(
        builders.node(),
        builders.budget(minAvailable=1),
        builders.plain("ResourceQuota", "q", spec={"hard": {"pods": "50", "nvidia.com/gpu": "1"}}),
        builders.workload("Deployment", replicas=2),
        builders.workload("DaemonSet", "d"),
        builders.workload("StatefulSet", "s", replicas=1, serviceName="s"),
        builders.job(ttlSecondsAfterFinished=3600),
    )
    await cluster.pods(4, lambda pod: phase(pod) == "Running")
    await cluster.object("Job", "j", "default", lambda job: job["status"].get("completionTime"))
    before = await _settled(cluster)
    await cluster.restart_controllers()
    await asyncio.sleep(1.0)
    assert await _version(cluster) == before


async def test_killed_in_the_middle_of_rollouts(cluster: World) -> None:
    cluster.stopping = 0.01
    await cluster.create(*(builders.node(f"n{index}") for index in range(3)))
    await cluster.create(builders.workload("Deployment", replicas=6), builders.workload("DaemonSet", "d"))
    await cluster.pods(9, _runs("pause:1"))
    await cluster.patch("Deployment", "w", _image("pause:2"), "default")
    await cluster.patch("DaemonSet", "d", _image("pause:2", "d"), "default")
    for count in (1, 3, 5):
        await cluster.until("Pod", _at_least(count))
        await cluster.restart_controllers()
    await cluster.pods(9, _runs("pause:2"))
    await cluster.pods(0, _runs("pause:1"))
    assert len(await cluster.kube.list("ReplicaSet", "default")) == 2
    assert len(await cluster.kube.list("ControllerRevision", "default")) == 2


async def test_a_failing_server_delays_but_does_not_derail(cluster: World) -> None:
    rules = [
        {"verb": "create", "resource": "pods", "status": 500, "count": 4},
        {"verb": "patch", "status": 503, "count": 4},
        {"verb": "delete", "cut": True, "count": 2, "userAgent": "controllers"},
    ]
    await cluster.create(builders.node(), builders.node("n2"))
    cluster.settings.faults.set("request-faults", {"rules": rules})
    await cluster.create(builders.workload("Deployment", replicas=3), builders.workload("DaemonSet", "d"))
    await cluster.pods(5, _runs("pause:1"))
    cluster.settings.faults.clear()
    await cluster.patch("Deployment", "w", {"spec": {"replicas": 1}}, "default")
    await cluster.pods(3, _runs("pause:1"))


async def test_a_crashed_controller_starts_again(
    cluster: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wire = DaemonSetController.wire
    attempts: list[int] = []

    def fail_once(self: DaemonSetController) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("no start")
        wire(self)

    monkeypatch.setattr(DaemonSetController, "wire", fail_once)
    await cluster.restart_controllers()
    await cluster.create(builders.node(), builders.workload("DaemonSet"))
    await cluster.pods(1, _runs("pause:1"))
    assert "daemonset-controller crashed; restarting it" in caplog.text
    assert len(attempts) == 2
