from __future__ import annotations

from typing import Any

import pytest

from sandbox.controllers.objects import meta, phase
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World

TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}


def _status(**wanted: int) -> Any:
    def holds(obj: dict[str, Any]) -> bool:
        status = obj.get("status") or {}
        current = status.get("observedGeneration") == meta(obj)["generation"]
        return current and all(status.get(name, 0) == value for name, value in wanted.items())

    return holds


async def test_one_pod_per_fitting_node(cluster: World) -> None:
    gpu = {"nvidia.com/gpu.present": "true"}
    pods = builders.template(
        {"app": "w"}, nodeSelector=gpu, tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]
    )
    await cluster.create(
        builders.node("cpu"),
        builders.node("g1", labels=gpu, taints=[TAINT]),
        builders.node("g2", labels=gpu, taints=[TAINT | {"key": "other"}]),
        builders.workload("DaemonSet", template=pods),
    )
    daemonset = await cluster.object("DaemonSet", "w", "default", _status(numberReady=1))
    assert daemonset["status"] == {
        "currentNumberScheduled": 1,
        "desiredNumberScheduled": 1,
        "numberAvailable": 1,
        "numberMisscheduled": 0,
        "numberReady": 1,
        "observedGeneration": meta(daemonset)["generation"],
        "updatedNumberScheduled": 1,
    }
    (pod,) = await cluster.pods(1, bool)
    assert pod["spec"]["nodeName"] == "g1"
    assert {"controller-revision-hash", "pod-template-generation"} <= set(meta(pod)["labels"])
    keys = {each.get("key") for each in pod["spec"]["tolerations"]}
    assert {"node.kubernetes.io/not-ready", "node.kubernetes.io/unschedulable", "nvidia.com/gpu"} <= keys
    await cluster.patch("Node", "cpu", {"metadata": {"labels": gpu}})
    await cluster.object("DaemonSet", "w", "default", _status(desiredNumberScheduled=2, numberReady=2))


async def test_nothing_to_run_on_is_observed_all_the_same(cluster: World) -> None:
    await cluster.create(builders.workload("DaemonSet"))
    daemonset = await cluster.object("DaemonSet", "w", "default", _status(desiredNumberScheduled=0))
    assert daemonset["status"]["numberReady"] == 0


async def test_missing_runtime_class_is_an_event_and_heals(cluster: World) -> None:
    pods = builders.template({"app": "w"}, runtimeClassName="nvidia")
    await cluster.create(builders.node("n1"), builders.node("n2"), builders.workload("DaemonSet", template=pods))
    await cluster.object("DaemonSet", "w", "default", _status(desiredNumberScheduled=2, currentNumberScheduled=0))
    event = await cluster.event("FailedCreate")
    assert event["type"] == "Warning"
    assert event["message"] == ('Error creating: pods "w-" is forbidden: pod rejected: RuntimeClass "nvidia" not found')
    await cluster.create(builders.plain("RuntimeClass", "nvidia", None, "node.k8s.io/v1", handler="nvidia"))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=2))


def _template_of(image: str) -> dict[str, Any]:
    return {"spec": {"template": builders.template({"app": "w"}, image=image)}}


async def test_rolling_update_replaces_one_at_a_time(cluster: World) -> None:
    cluster.stopping = 0.02
    await cluster.create(*(builders.node(f"n{index}") for index in range(3)), builders.workload("DaemonSet"))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=3))
    least = [3]

    def note(_change: str, daemonset: dict[str, Any], _old: object) -> None:
        least.append(daemonset["status"].get("numberAvailable", 0))

    cluster.informers("DaemonSet").add_handler(note)
    await cluster.patch("DaemonSet", "w", _template_of("pause:2"), "default")
    await cluster.object("DaemonSet", "w", "default", _status(numberAvailable=3, updatedNumberScheduled=3))
    assert {pod["spec"]["containers"][0]["image"] for pod in await cluster.pods(3, bool)} == {"pause:2"}
    assert min(least) == 2
    revisions = await cluster.kube.list("ControllerRevision", "default")
    assert sorted(each["revision"] for each in revisions) == [1, 2]


async def test_a_broken_update_stops_after_the_first_node(cluster: World) -> None:
    cluster.broken.add("bad")
    await cluster.create(builders.node("n1"), builders.node("n2"), builders.workload("DaemonSet"))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=2))
    await cluster.patch("DaemonSet", "w", _template_of("bad"), "default")
    await cluster.object(
        "DaemonSet", "w", "default", _status(updatedNumberScheduled=1, numberReady=1, numberUnavailable=1)
    )
    await cluster.patch("DaemonSet", "w", _template_of("pause:1"), "default")
    await cluster.object("DaemonSet", "w", "default", _status(updatedNumberScheduled=2, numberAvailable=2))


async def test_on_delete_waits_for_a_person(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("DaemonSet", updateStrategy={"type": "OnDelete"}))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1))
    await cluster.patch("DaemonSet", "w", _template_of("pause:2"), "default")
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1, updatedNumberScheduled=0))
    (pod,) = await cluster.pods(1, bool)
    await cluster.kube.delete("Pod", meta(pod)["name"], "default")
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1, updatedNumberScheduled=1))


async def test_a_failed_pod_is_replaced(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("DaemonSet"))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1))
    (pod,) = await cluster.pods(1, bool)
    name = meta(pod)["name"]
    await cluster.kube.patch_status("Pod", name, {"phase": "Failed"}, "default")
    await cluster.pods(1, lambda pod: meta(pod)["name"] != name and phase(pod) == "Running")
    event = await cluster.event("FailedDaemonPod")
    assert event["message"] == f"Found failed daemon pod default/{name} on node n1, will try to kill it"


@pytest.mark.parametrize(("image", "desired"), [("nvcr.io/nvidia/k8s-device-plugin:v0.20.0", 0), ("pause:1", 1)])
async def test_fault_plugin_wants_zero(cluster: World, image: str, desired: int) -> None:
    await cluster.create(
        builders.node(), builders.workload("DaemonSet", template=builders.template({"app": "w"}, image=image))
    )
    await cluster.object("DaemonSet", "w", "default", _status(desiredNumberScheduled=1, numberReady=1))
    cluster.settings.faults.set("plugin-wants-zero")
    await cluster.pods(desired, bool)
    await cluster.object("DaemonSet", "w", "default", _status(desiredNumberScheduled=desired))
    cluster.settings.faults.clear()
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1))


async def test_a_rollback_gives_the_old_revision_the_highest_number(cluster: World) -> None:
    """kubernetes pkg/controller/daemon/update.go, ``constructHistory``: nothing new is made, pods bear the old hash."""
    await cluster.create(builders.node("n1"), builders.workload("DaemonSet"))
    await cluster.object("DaemonSet", "w", "default", _status(numberReady=1))
    (first,) = await cluster.kube.list("ControllerRevision", "default")
    old = (await cluster.object("DaemonSet", "w", "default", bool))["spec"]["template"]
    for body in (_template_of("pause:2"), {"spec": {"template": old}}):
        await cluster.patch("DaemonSet", "w", body, "default")
        await cluster.object("DaemonSet", "w", "default", _status(numberAvailable=1, updatedNumberScheduled=1))
    revisions = await cluster.kube.list("ControllerRevision", "default")
    newest = max(revisions, key=lambda each: each["revision"])
    assert sorted(each["revision"] for each in revisions) == [2, 3]
    assert meta(newest)["uid"] == meta(first)["uid"]
    (pod,) = await cluster.pods(1, bool)
    assert meta(pod)["labels"]["controller-revision-hash"] == meta(newest)["labels"]["controller-revision-hash"]
