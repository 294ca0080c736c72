from __future__ import annotations

from typing import Any

from sandbox.controllers.objects import condition, meta
from sandbox.controllers.workloads.deployment import REVISION
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _rolled_out(replicas: int, revision: int) -> Any:
    def holds(obj: dict[str, Any]) -> bool:
        status = obj.get("status") or {}
        progressing = condition(obj, "Progressing") or {}
        return (
            meta(obj).get("annotations", {}).get(REVISION) == str(revision)
            and status.get("observedGeneration") == meta(obj)["generation"]
            and status.get("updatedReplicas") == status.get("replicas") == replicas
            and status.get("availableReplicas") == replicas
            and progressing.get("reason") == "NewReplicaSetAvailable"
            and (condition(obj, "Available") or {}).get("status") == "True"
        )

    return holds


def _image(name: str) -> dict[str, Any]:
    return {"spec": {"template": builders.template({"app": "w"}, image=name)}}


async def test_rollout_is_reported_as_helm_and_kubectl_read_it(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=2))
    deployment = await cluster.object("Deployment", "w", "default", _rolled_out(2, 1))
    (replicaset,) = await cluster.kube.list("ReplicaSet", "default")
    name = meta(replicaset)["name"]
    assert meta(replicaset)["labels"]["pod-template-hash"] == name.removeprefix("w-")
    assert meta(replicaset)["annotations"][REVISION] == "1"
    progressing = condition(deployment, "Progressing") or {}
    assert progressing["message"] == f'ReplicaSet "{name}" has successfully progressed.'
    assert (condition(deployment, "Available") or {})["reason"] == "MinimumReplicasAvailable"
    event = await cluster.event("ScalingReplicaSet")
    assert event["message"] == f"Scaled up replica set {name} from 0 to 2"


async def test_an_update_never_goes_below_its_floor_and_a_rollback_reuses_the_old_set(cluster: World) -> None:
    cluster.stopping = 0.02
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=4))
    await cluster.object("Deployment", "w", "default", _rolled_out(4, 1))
    available: list[int] = []
    cluster.informers("Deployment").add_handler(
        lambda _change, obj, _old: available.append(obj["status"].get("availableReplicas", 0))
    )
    await cluster.patch("Deployment", "w", _image("pause:2"), "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(4, 2))
    assert min(available) >= 3
    await cluster.patch("Deployment", "w", _image("pause:1"), "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(4, 3))
    sets = {
        meta(each)["annotations"][REVISION]: each["spec"]["replicas"] for each in await cluster.kube.list("ReplicaSet")
    }
    assert sets == {"2": 0, "3": 4}


async def test_a_rollout_that_cannot_finish_times_out_and_keeps_the_old_pods(cluster: World) -> None:
    cluster.broken.add("bad")
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=2, progressDeadlineSeconds=5))
    await cluster.object("Deployment", "w", "default", _rolled_out(2, 1))
    await cluster.patch("Deployment", "w", _image("bad"), "default")
    deployment = await cluster.object(
        "Deployment",
        "w",
        "default",
        lambda obj: (condition(obj, "Progressing") or {}).get("reason") == "ProgressDeadlineExceeded",
    )
    progressing = condition(deployment, "Progressing") or {}
    assert progressing["status"] == "False"
    assert progressing["message"].endswith('" has timed out progressing.')
    assert deployment["status"]["availableReplicas"] == 2
    await cluster.patch("Deployment", "w", _image("pause:1"), "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(2, 3))


async def test_recreate_stops_all_old_pods_first(cluster: World) -> None:
    cluster.stopping = 0.05
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=2, strategy={"type": "Recreate"}))
    await cluster.object("Deployment", "w", "default", _rolled_out(2, 1))
    together: list[set[str]] = []
    cluster.informers("Pod").add_handler(
        lambda *_: together.append(
            {pod["spec"]["containers"][0]["image"] for pod in cluster.informers("Pod").items("default")}
        )
    )
    await cluster.patch("Deployment", "w", _image("pause:2"), "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(2, 2))
    assert {"pause:1", "pause:2"} not in together


async def test_scaling_changes_no_revision(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=1))
    await cluster.object("Deployment", "w", "default", _rolled_out(1, 1))
    await cluster.patch("Deployment", "w", {"spec": {"replicas": 3}}, "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(3, 1))
    await cluster.patch("Deployment", "w", {"spec": {"replicas": 1}}, "default")
    await cluster.object("Deployment", "w", "default", _rolled_out(1, 1))


async def test_quota_is_a_replica_failure(cluster: World) -> None:
    await cluster.create(builders.plain("ResourceQuota", "q", spec={"hard": {"pods": "1"}}))
    await cluster.object("ResourceQuota", "q", "default", lambda quota: (quota.get("status") or {}).get("used"))
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=2))
    deployment = await cluster.object("Deployment", "w", "default", lambda obj: condition(obj, "ReplicaFailure"))
    failure = condition(deployment, "ReplicaFailure") or {}
    assert failure["reason"] == "FailedCreate"
    assert "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1" in failure["message"]
    await cluster.patch("ResourceQuota", "q", {"spec": {"hard": {"pods": "5"}}}, "default")
    deployment = await cluster.object("Deployment", "w", "default", _rolled_out(2, 1))
    assert condition(deployment, "ReplicaFailure") is None


async def test_deleting_a_deployment_takes_its_pods_along(cluster: World) -> None:
    await cluster.create(builders.node(), builders.workload("Deployment", replicas=2))
    await cluster.object("Deployment", "w", "default", _rolled_out(2, 1))
    await cluster.kube.delete("Deployment", "w", "default", propagation="Background")
    await cluster.pods(0, bool)
    await cluster.until("ReplicaSet", lambda informer: not informer.items())
