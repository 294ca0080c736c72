from __future__ import annotations

from sandbox.controllers.objects import meta, phase
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


async def test_pods_come_in_order_and_go_in_reverse(cluster: World) -> None:
    seen: list[str] = []

    def note(change: str, pod: dict[str, object], _old: object) -> None:
        if change != "MODIFIED":
            seen.append(f"{change[0]} {meta(pod)['name']}")

    cluster.informers("Pod").add_handler(note)
    await cluster.create(builders.node(), builders.workload("StatefulSet", replicas=3, serviceName="w"))
    await cluster.object("StatefulSet", "w", "default", lambda obj: obj.get("status", {}).get("readyReplicas") == 3)
    await cluster.patch("StatefulSet", "w", {"spec": {"replicas": 1}}, "default")
    statefulset = await cluster.object(
        "StatefulSet", "w", "default", lambda obj: obj["status"].get("replicas") == 1 == obj["status"]["readyReplicas"]
    )
    assert seen == ["A w-0", "A w-1", "A w-2", "D w-2", "D w-1"]
    assert statefulset["status"]["currentRevision"] == statefulset["status"]["updateRevision"]


async def test_update_replaces_the_highest_ordinal_first(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("StatefulSet", replicas=2, serviceName="w"))
    await cluster.object("StatefulSet", "w", "default", lambda obj: obj.get("status", {}).get("readyReplicas") == 2)
    gone: list[str] = []
    cluster.informers("Pod").add_handler(
        lambda change, pod, _old: gone.append(meta(pod)["name"]) if change == "DELETED" else None
    )
    body = {"spec": {"template": builders.template({"app": "w"}, image="pause:2")}}
    await cluster.patch("StatefulSet", "w", body, "default")
    await cluster.pods(2, lambda pod: phase(pod) == "Running" and pod["spec"]["containers"][0]["image"] == "pause:2")
    assert gone == ["w-1", "w-0"]


async def test_pods_bear_the_name_of_their_revision(cluster: World) -> None:
    """kubernetes pkg/controller/statefulset/stateful_set_utils.go, ``setPodRevision``."""
    await cluster.create(builders.node(), builders.workload("StatefulSet", replicas=1, serviceName="w"))
    statefulset = await cluster.object(
        "StatefulSet", "w", "default", lambda obj: "updateRevision" in (obj.get("status") or {})
    )
    (pod,) = await cluster.pods(1, bool)
    (revision,) = await cluster.kube.list("ControllerRevision", "default")
    assert meta(pod)["labels"]["controller-revision-hash"] == statefulset["status"]["updateRevision"]
    assert meta(revision)["name"] == statefulset["status"]["updateRevision"]
    assert meta(revision)["labels"]["controller.kubernetes.io/hash"] == meta(revision)["name"].removeprefix("w-")
