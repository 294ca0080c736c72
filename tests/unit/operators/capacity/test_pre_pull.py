"""The task that has nodes pull images, against the sandbox's API server: what it makes, keeps and removes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.verdict import Verdict, failed, ready
from gpu_fleet.operators.capacity import pre_pull
from gpu_fleet.operators.capacity.pre_pull import PrePullImagesOperator
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.pods import delete_pods
from gpu_fleet.operators.pool import FAILURE
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL, IMAGES = "shared-a10g", ["busybox:1.36", "nvcr.io/nvidia/pytorch:26.06-py3"]
PULLS = {"n1": {IMAGES[0]: 1.5, IMAGES[1]: None}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        cluster.kube.apply(account | {"metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE}})
        yield cluster


def pods(cluster: SandboxCluster) -> list[dict[str, Any]]:
    found = cluster.kube.list(POD, SYSTEM_NAMESPACE)
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def run(cluster: SandboxCluster, run_id: str = "manual__1", nodes: tuple[str, ...] = ("n1",)) -> tuple[Any, Any]:
    """The task, and its context: the pool's wait for capacity has found these nodes."""
    with DAG("gpu_lifecycle.demo", schedule=None):
        wait = AwaitCapacityOperator(task_id="await_capacity", node_pool=POOL)
        task = PrePullImagesOperator(task_id="pre_pull", node_pool=POOL)
        wait >> task
    pools = demo_spec(nodePools__0__capacity__prePull=IMAGES).to_json()["nodePools"]
    ti = TaskInstance(run_id=run_id, spec=spec_at(str(cluster.access.path), nodePools=pools))
    ti.xcom_push("return_value", {"nodes": list(nodes)})
    there = context(ti)
    task.prepare(there)  # the cluster lock is another test's matter
    return task, there


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pre_pull, "LOOK_S", 0.0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The wait, whose end a test chooses: ``verdict``; what it was asked: ``args``."""
    seen: dict[str, Any] = {"verdict": ready("ImagesPulled", "all", pulls=PULLS)}

    def await_gate(_operator: Any, _context: Any, gate: str, args: Any, *_: Any, **__: Any) -> Verdict:
        seen.update(gate=gate, args=args)
        verdict: Verdict = seen["verdict"]
        if verdict.failed:
            raise verdict.error()
        return verdict

    monkeypatch.setattr(pre_pull, "await_gate", await_gate)
    return seen


def test_every_node_and_image_has_a_pod_until_all_are_there(
    shared: SandboxCluster, waits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, there = run(shared, nodes=("n1", "n2"))
    removed: list[int] = []

    def delete(kube: Any, found: list[dict[str, Any]]) -> list[str]:
        removed.append(len(found))
        return delete_pods(kube, found)

    monkeypatch.setattr(pre_pull, "delete_pods", delete)
    assert task.act(there) == {"pulls": PULLS}
    assert (waits["gate"], waits["args"]["nodes"], waits["args"]["images"]) == ("images_pulled", ["n1", "n2"], IMAGES)
    assert removed == [0, 4]
    assert pods(shared) == []


def test_a_failure_leaves_its_reason_and_the_pods_to_the_clean_up(
    shared: SandboxCluster, waits: dict[str, Any]
) -> None:
    waits["verdict"] = failed("PrePullFailed", "node n1 cannot pull busybox:1.36")
    task, there = run(shared)
    with pytest.raises(GateRefused, match="cannot pull"):
        task.act(there)
    assert there["ti"].xcoms[FAILURE]["reason"] == "PrePullFailed"
    assert len(pods(shared)) == 2
    # Another try of the same run finds them, and makes none twice.
    with pytest.raises(GateRefused):
        task.act(there)
    assert len(pods(shared)) == 2
    with DAG("gpu_lifecycle.demo", schedule=None):
        clean = CleanUpValidationOperator(task_id="clean_up", node_pool=POOL)
    clean.prepare(there)
    found = clean.act(there)
    assert len(found["placeholders"]) == 2
    assert pods(shared) == []


def test_what_an_earlier_run_left_is_replaced(shared: SandboxCluster, waits: dict[str, Any]) -> None:
    waits["verdict"] = failed("PrePullFailed", "x")
    task, there = run(shared, "manual__dead")
    with pytest.raises(GateRefused):
        task.act(there)
    waits["verdict"] = ready("ImagesPulled", "all", pulls={})
    task, there = run(shared, "manual__2")
    assert task.act(there) == {"pulls": {}}
    assert pods(shared) == []


def test_without_nodes_nothing_is_made(shared: SandboxCluster, waits: dict[str, Any]) -> None:
    task, there = run(shared, nodes=())
    assert task.act(there) == {"pulls": {}}
    assert "gate" not in waits


def test_seconds_of_an_event_that_comes_after_the_pods_status_are_told(
    shared: SandboxCluster, waits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits["verdict"] = ready("ImagesPulled", "all", pulls={"n1": {IMAGES[0]: 1.5, IMAGES[1]: None}})
    task, there = run(shared, run_id="manual__late")

    def late(_: float) -> None:
        """The kubelet's status and event of the image that the gate had no seconds of."""
        for pod in pods(shared):
            if pod["spec"]["containers"][0]["image"] == IMAGES[1]:
                ref = ObjectRef(POD, pod["metadata"]["name"], SYSTEM_NAMESPACE)
                ended = {"name": "pull", "image": IMAGES[1], "imageID": "x", "ready": False, "restartCount": 0}
                state = {"terminated": {"exitCode": 128, "reason": "StartError"}}
                shared.kube.patch(
                    ref, {"status": {"containerStatuses": [{**ended, "state": state}]}}, subresource="status"
                )
                shared.kube.create(
                    {
                        "apiVersion": "v1",
                        "kind": "Event",
                        "metadata": {"name": "late", "namespace": SYSTEM_NAMESPACE},
                        "involvedObject": {"kind": "Pod", "namespace": SYSTEM_NAMESPACE, "name": ref.name},
                        "reason": "Pulled",
                        "message": f'Successfully pulled image "{IMAGES[1]}" in 1m2.5s (1m2.5s including waiting).',
                    }
                )

    monkeypatch.setattr(pre_pull.time, "sleep", late)
    assert task.act(there)["pulls"]["n1"][IMAGES[1]] == 62.5
