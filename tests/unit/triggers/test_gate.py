"""The gate trigger against the sandbox's API server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.verdict import progressing
from gpu_fleet.hooks.kubernetes.aio import OPEN_TIMEOUT_S
from gpu_fleet.triggers.gate import FIRST_LOOK_S, GateTrigger
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

NVIDIA = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "nvidia"}
MANIFEST = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
REF = ObjectRef(RUNTIME_CLASS, "nvidia")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    shared.kube.delete(REF)


def trigger(cluster: SandboxCluster, gate: str = "object_exists", seconds: float = 20.0, **options: Any) -> GateTrigger:
    now = time.time()
    values = {"args": NVIDIA, "access": cluster.access.to_json(), "last": None} | options
    return GateTrigger(gate=gate, deadline=now + seconds, started=now, **values)


class Log:
    """What a trigger logs."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said = asyncio.Event()

    def info(self, text: str, *values: object) -> None:
        self.lines.append(text % values)
        self.said.set()

    exception = info


async def event_of(trigger: GateTrigger) -> dict[str, Any]:
    events = [event async for event in trigger.run()]
    assert len(events) == 1
    payload: dict[str, Any] = events[0].payload
    assert json.loads(json.dumps(payload)) == payload
    return payload


async def after(seconds: float, work: Any, *args: Any) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(work, *args)


def test_arguments_survive_serialisation() -> None:
    original = GateTrigger("object_exists", NVIDIA, {"mode": "eks"}, 12.5, 3.5, progressing("A", "b").to_json())
    path, arguments = original.serialize()
    assert path == "gpu_fleet.triggers.gate.GateTrigger"
    again = GateTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)


async def test_what_is_there_already_ends_the_wait_at_once(cluster: SandboxCluster) -> None:
    cluster.kube.create(MANIFEST)
    event = await event_of(trigger(cluster))
    assert (event["type"], event["gate"]) == ("verdict", "object_exists")
    assert event["verdict"]["phase"] == "Ready"


async def test_a_change_is_seen_by_the_watch(cluster: SandboxCluster) -> None:
    change = asyncio.create_task(after(0.5, cluster.kube.create, MANIFEST))
    event = await event_of(trigger(cluster))
    await change
    assert event["verdict"]["reason"] == "ObjectExists"


async def test_a_deletion_is_seen_by_the_watch(cluster: SandboxCluster) -> None:
    cluster.kube.create(MANIFEST)
    change = asyncio.create_task(after(0.5, cluster.kube.delete, REF))
    event = await event_of(trigger(cluster, "object_gone"))
    await change
    assert event["verdict"]["reason"] == "ObjectGone"


async def test_the_deadline_brings_the_last_reason(cluster: SandboxCluster) -> None:
    event = await event_of(trigger(cluster, seconds=0.5))
    assert event["type"] == "deadline"
    assert event["verdict"]["reason"] == "NotFound"


async def test_a_trigger_that_starts_after_its_deadline_looks_once(cluster: SandboxCluster) -> None:
    """The triggerer was away until then: what has come meanwhile counts, and so does why it has not."""
    event = await event_of(trigger(cluster, seconds=-1.0, last=progressing("RollingOut", "0 of 1 ready").to_json()))
    assert (event["type"], event["verdict"]["reason"], event["verdict"]["blind"]) == ("deadline", "NotFound", False)
    cluster.kube.create(MANIFEST)
    event = await event_of(trigger(cluster, seconds=-1.0))
    assert (event["type"], event["verdict"]["phase"]) == ("verdict", "Ready")


async def test_a_trigger_that_starts_after_its_deadline_in_an_outage_ends_blind(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="list", kind="RuntimeClass", status=503, message="starting up")
    event = await event_of(trigger(cluster, seconds=-1.0))
    assert event["type"] == "deadline"
    assert (event["verdict"]["reason"], event["verdict"]["blind"]) == ("ApiUnavailable", True)


async def test_a_deadline_before_the_first_look_is_blind_though_the_worker_has_seen(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_fleet.triggers.gate.FIRST_LOOK_S", 0.0)
    last = progressing("RollingOut", "0 of 1 ready").to_json()
    event = await event_of(trigger(cluster, seconds=-1.0, last=last))
    assert event["type"] == "deadline"
    assert (event["verdict"]["reason"], event["verdict"]["blind"]) == ("NotObserved", True)
    assert "the worker had seen RollingOut: 0 of 1 ready" in event["verdict"]["message"]


async def test_a_deadline_before_the_first_look_says_so(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_fleet.triggers.gate.FIRST_LOOK_S", 0.0)
    event = await event_of(trigger(cluster, seconds=-1))
    assert event["type"] == "deadline"
    assert event["verdict"]["reason"] == "NotObserved"


def test_the_first_look_may_take_as_long_as_a_silent_server_needs_to_be_found_out() -> None:
    assert FIRST_LOOK_S > OPEN_TIMEOUT_S


async def test_a_kind_whose_crd_comes_later_is_found(cluster: SandboxCluster) -> None:
    widget = {"apiVersion": "x.example/v1", "kind": "Widget", "plural": "widgets", "namespaced": False, "name": "w"}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.x.example"},
        "spec": {
            "group": "x.example",
            "scope": "Cluster",
            "names": {"plural": "widgets", "kind": "Widget", "singular": "widget", "listKind": "WidgetList"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }

    def bring() -> None:
        cluster.kube.create(crd)
        path = "/apis/x.example/v1/widgets"
        body = {"apiVersion": "x.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                cluster.kube.raw("POST", path, body=body)
                return
            except GpuFleetError:
                time.sleep(0.1)
        raise AssertionError("the CRD was never served")

    change = asyncio.create_task(after(0.3, bring))
    event = await event_of(trigger(cluster, args=widget))
    await change
    assert event["verdict"]["phase"] == "Ready"


async def test_an_outage_is_reported_and_survived(cluster: SandboxCluster) -> None:
    cluster.kube.create(MANIFEST)
    cluster.fail_requests(verb="list", kind="RuntimeClass", status=503, message="starting up")
    recover = asyncio.create_task(after(1.5, cluster.faults.clear))
    waiting = trigger(cluster)
    waiting._log = log = Log()
    event = await event_of(waiting)
    await recover
    assert event["verdict"]["phase"] == "Ready"
    assert log.lines[0] == "gate object_exists: Progressing ApiUnavailable: list runtimeclasses: starting up"


async def test_a_missing_permission_fails_at_once_and_names_verb_and_resource(cluster: SandboxCluster) -> None:
    event = await event_of(trigger(cluster, access=cluster.access_for("nobody").to_json()))
    assert event["verdict"]["phase"] == "Failed"
    assert event["verdict"]["permanent"] is True
    assert 'cannot list resource "runtimeclasses"' in event["verdict"]["message"]


async def test_each_change_of_the_verdict_is_logged_once(cluster: SandboxCluster) -> None:
    known = progressing("NotFound", "RuntimeClass nvidia does not exist (yet)")
    change = asyncio.create_task(after(2.5, cluster.kube.create, MANIFEST))
    waiting = trigger(cluster, last=known.to_json())
    waiting._log = log = Log()
    await event_of(waiting)
    await change
    assert log.lines == ["gate object_exists: Ready ObjectExists: RuntimeClass nvidia exists"]


async def test_a_gate_that_breaks_fails_with_its_name(cluster: SandboxCluster) -> None:
    event = await event_of(trigger(cluster, "node_pool_ready", args={}))
    assert (event["verdict"]["phase"], event["verdict"]["reason"]) == ("Failed", "GateBroken")
    assert "node_pool_ready" in event["verdict"]["message"]


async def test_cleanup_leaves_nothing_running_and_can_be_repeated(cluster: SandboxCluster) -> None:
    waiting = trigger(cluster)
    waiting._log = log = Log()
    run = waiting.run()
    step: asyncio.Task[Any] = asyncio.create_task(anext(run))  # type: ignore[arg-type]
    # Not in mid-handshake: asyncio of Python 3.11 leaves such a connection to the garbage collector.
    await asyncio.wait_for(log.said.wait(), 20)
    await asyncio.sleep(0.5)
    before = len(asyncio.all_tasks())
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    await waiting.cleanup()
    await waiting.cleanup()
    assert len(asyncio.all_tasks()) < before


async def test_killing_the_task_writes_nothing(cluster: SandboxCluster) -> None:
    cluster.kube.create(MANIFEST)
    before = cluster.kube.get(REF)
    await trigger(cluster, "object_gone").on_kill()
    assert cluster.kube.get(REF) == before


async def test_the_watch_goes_on_after_its_version_expired(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="watch", kind="RuntimeClass", status=410, count=1)
    change = asyncio.create_task(after(0.8, cluster.kube.create, MANIFEST))
    event = await event_of(trigger(cluster))
    await change
    assert event["verdict"]["phase"] == "Ready"
