"""Time stamps of the cluster are judged by the API server's clock, whatever the worker's or the triggerer's says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, NODE, POD, ObjectRef
from gpu_fleet.core.verdict import Phase, Verdict
from gpu_fleet.hooks.kubernetes.hook import close_clients
from gpu_fleet.triggers.gate import GateTrigger
from gpu_fleet.triggers.looking import look
from gpu_fleet.triggers.waiting import await_gate, conclude
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.clocks import SKEWS, skew_ours
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

pytestmark = pytest.mark.slow

HOME, POOL = "nvidia-device-plugin", "shared-a10g"
PROOF = "device_plugin_proven"
PROOF_ARGS: dict[str, Any] = {
    "release": "nvidia-device-plugin",
    "namespace": HOME,
    "workloads": [f"DaemonSet/{HOME}/nvidia-device-plugin"],
    "pools": {POOL: {"physical": 1, "replicas": 4, "types": ["g5.xlarge"]}},
}
CAPACITY = "pool_capacity"
CAPACITY_ARGS: dict[str, Any] = {
    "pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "plugin_namespace": HOME, "capacity_types": ["spot"],
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    for item in shared.kube.list(NODE):
        shared.kube.delete(ObjectRef(NODE, item["metadata"]["name"]))
    for item in shared.kube.list(POD, HOME):
        shared.kube.delete(ObjectRef(POD, item["metadata"]["name"], HOME), grace_seconds=0)
    shared.kube.delete(ObjectRef(DAEMON_SET, "nvidia-device-plugin", HOME))
    for item in shared.kube.raw("GET", f"/apis/apps/v1/namespaces/{HOME}/controllerrevisions")["items"]:
        name = item["metadata"]["name"]
        shared.kube.raw("DELETE", f"/apis/apps/v1/namespaces/{HOME}/controllerrevisions/{name}")


def ready_for(seconds: float) -> dict[str, str]:
    """A condition as the cluster writes it."""
    at = datetime.fromtimestamp(time.time() - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": at}


def node(cluster: SandboxCluster, seconds: float, gpus: int | None) -> None:
    labels = {"karpenter.sh/nodepool": POOL, "node.kubernetes.io/instance-type": "g5.xlarge"}
    labels |= {"karpenter.sh/initialized": "true", "nvidia.com/device-plugin.config": "time-slicing-4"}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": labels}})
    found = {"nvidia.com/gpu": str(gpus)} if gpus is not None else {}
    status = {"conditions": [ready_for(seconds)], "capacity": found, "allocatable": found}
    cluster.kube.patch(ObjectRef(NODE, "n1"), {"status": status}, subresource="status")


def plugin(cluster: SandboxCluster, seconds: float) -> None:
    """The device plugin's DaemonSet, its revision, and its pod, Ready for a while."""
    kube, name = cluster.kube, "nvidia-device-plugin"
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "ctr", "image": "x"}]}}
    made = kube.create(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": HOME},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
    )
    status = {"observedGeneration": made["metadata"]["generation"], "desiredNumberScheduled": 1, "numberReady": 1}
    status |= {"currentNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1, "numberMisscheduled": 0}
    kube.patch(ObjectRef(DAEMON_SET, name, HOME), {"status": status}, subresource="status")
    uid = made["metadata"]["uid"]
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": uid, "controller": True}
    marked = {**labels, "controller-revision-hash": "h1"}
    metadata = {"name": f"{name}-h1", "namespace": HOME, "labels": marked, "ownerReferences": [owner]}
    kube.create({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": 1})
    metadata = {**metadata, "name": "plugin-n1"}
    spec = {"nodeName": "n1", "containers": [{"name": "ctr", "image": "x"}]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    running = {"phase": "Running", "conditions": [ready_for(seconds)]}
    kube.patch(ObjectRef(POD, "plugin-n1", HOME), {"status": running}, subresource="status")


#: What the cluster shows, since how many seconds, and what a right clock makes of it: gate, arguments, phase, reason.
SITUATIONS: dict[str, tuple[str, dict[str, Any], float, Phase, str]] = {
    "a plugin that has just come is given time": (PROOF, PROOF_ARGS, 5.0, Phase.PROGRESSING, "SharingNotApplied"),
    "a plugin that was given time is not proven": (PROOF, PROOF_ARGS, 200.0, Phase.FAILED, "SharingNotApplied"),
    "a node that has just come waits for its plugin": (
        CAPACITY, CAPACITY_ARGS, 5.0, Phase.PROGRESSING, "DevicePluginAbsent",
    ),
    "a node whose plugin never came has failed": (
        CAPACITY, CAPACITY_ARGS, 700.0, Phase.FAILED, "DevicePluginAbsent",
    ),
    "a node whose GPUs have just come wrong is given time": (
        CAPACITY, {**CAPACITY_ARGS, "wrong": True}, 5.0, Phase.PROGRESSING, "SharingNotApplied",
    ),
    "a node whose GPUs stay wrong has failed": (
        CAPACITY, {**CAPACITY_ARGS, "wrong": True}, 400.0, Phase.FAILED, "SharingNotApplied",
    ),
}  # fmt: skip


def build(cluster: SandboxCluster, situation: str) -> tuple[str, dict[str, Any], Phase, str]:
    gate, args, seconds, phase, reason = SITUATIONS[situation]
    node(cluster, seconds, 1 if gate == PROOF or args.get("wrong") else None)
    if gate == PROOF or args.get("wrong"):
        plugin(cluster, seconds)
    return gate, {key: value for key, value in args.items() if key != "wrong"}, phase, reason


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_worker_judges_by_the_clusters_clock(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, situation: str, skew: float
) -> None:
    gate, args, phase, reason = build(cluster, situation)
    skew_ours(monkeypatch, skew)
    close_clients()  # as in a process that has not talked to this cluster
    verdict = look(gate, args, cluster.access)
    assert (verdict.phase, verdict.reason) == (phase, reason), verdict.message


async def events_of(trigger: GateTrigger) -> list[dict[str, Any]]:
    """Its events, once its TLS connections are closed: that takes the loop, which ends with the test, some rounds."""
    events = [event.payload async for event in trigger.run()]
    await asyncio.sleep(0.1)
    return events


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_triggerer_judges_by_the_clusters_clock(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, situation: str, skew: float
) -> None:
    gate, args, phase, reason = build(cluster, situation)
    clock, started = skew_ours(monkeypatch, skew), time.time()
    trigger = GateTrigger(gate, args, cluster.access.to_json(), deadline=clock.time() + 1.5, started=started)
    events = await events_of(trigger)
    verdict = Verdict.from_json(events[0]["verdict"])
    assert (verdict.phase, verdict.reason) == (phase, reason), verdict.message
    assert events[0]["type"] == ("verdict" if phase is Phase.FAILED else "deadline")


class Waiting:
    """A task that waits."""

    def __init__(self, cluster: SandboxCluster) -> None:
        self.cluster = cluster

    def access(self) -> Any:
        return self.cluster.access

    def defer(self, *, trigger: GateTrigger, method_name: str, kwargs: Any) -> None:
        raise TaskDeferred(trigger=trigger, method_name=method_name, kwargs=kwargs)


@pytest.mark.parametrize("skew", SKEWS)
def test_the_first_look_is_handed_on_by_the_clusters_clock_and_the_deadline_by_our_own(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """The triggerer has another clock; only the worker knows how far its own is off."""
    clock = skew_ours(monkeypatch, skew)
    close_clients()
    begun = clock.time() - 5.0
    with pytest.raises(TaskDeferred) as deferred:
        await_gate(Waiting(cluster), context(TaskInstance()), PROOF, PROOF_ARGS, 60.0, started=begun)
    trigger = deferred.value.trigger
    assert isinstance(trigger, GateTrigger)
    assert trigger.started == pytest.approx(time.time() - 5.0, abs=3.0)
    assert trigger.deadline == pytest.approx(clock.time() + 60.0, abs=3.0)


async def test_a_worker_that_had_no_answer_leaves_the_first_look_to_the_triggerer(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes behind, its own clock would make a plugin that has just come look as if it were ten minutes old."""
    clock = skew_ours(monkeypatch, -600.0)
    close_clients()
    monkeypatch.setattr("gpu_fleet.triggers.waiting.clock_ahead", lambda access: None)
    with pytest.raises(TaskDeferred) as deferred:
        await_gate(Waiting(cluster), context(TaskInstance()), PROOF, PROOF_ARGS, 1.5)
    trigger = deferred.value.trigger
    assert isinstance(trigger, GateTrigger)
    assert trigger.started is None
    events = await events_of(trigger)
    assert trigger.started == pytest.approx(time.time(), abs=5.0)
    assert events[0]["type"] == "deadline"
    assert clock.time() >= trigger.deadline


def test_the_proof_of_a_release_fails_only_when_the_clusters_clock_says_so(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, args, _, _ = build(cluster, "a plugin that was given time is not proven")
    skew_ours(monkeypatch, -600.0)
    close_clients()
    with pytest.raises(GateRefused, match="instead of 4") as caught:
        await_gate(Waiting(cluster), context(TaskInstance()), gate, args, 60.0)
    assert caught.value.reason == "SharingNotApplied"
    with pytest.raises(GateRefused):
        conclude({"type": "verdict", "gate": gate, "verdict": look(gate, args, cluster.access).to_json()})
