"""A node with a scheduled change that Karpenter drains itself, and one that it leaves; on the sandbox's API server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpu_fleet.core.interruptions.event import Case, Payload
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.operators.interruptions import drain as module
from gpu_fleet.operators.interruptions import yielding
from gpu_fleet.operators.interruptions.drain import PLANNED
from tests.unit.operators.draining_world import NAMESPACE, World
from tests.unit.operators.interruptions.test_drain import OURS, POOL, Event, Run, annotations_of, join, shared, spot
from tests.unit.operators.interruptions.test_drain import world as world

__all__ = ["shared", "world"]
INSTANCE = "i-0000000a"
FINALIZER = "karpenter.sh/termination"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of seconds, not of a minute and more."""

    def patient(kube: Any, spec: Any, plans: Any) -> Any:
        return yielding.await_karpenter(kube, spec, plans, patience_s=4.0, sleep=lambda _: time.sleep(0.2))

    monkeypatch.setattr(module, "await_karpenter", patient)


def change(seconds: float = 14 * 86400.0) -> Notice:
    now = time.time()
    return Notice(Kind.SCHEDULED, INSTANCE, now, now + seconds, "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED", "e1")


@contextmanager
def karpenter(world: World, *pods: str, after: float = 1.0) -> Iterator[None]:
    """Deletes the NodeClaim after a moment, as Karpenter does, evicts these pods, and removes the node."""

    def work() -> None:
        time.sleep(after)
        world.kube.delete(ObjectRef(NODE_CLAIM, "claim-n1"))
        for pod in pods:
            world.kube.delete(ObjectRef(POD, pod, NAMESPACE))

    world.kube.patch(ObjectRef(NODE_CLAIM, "claim-n1"), {"metadata": {"finalizers": [FINALIZER]}})
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        world.kube.patch(ObjectRef(NODE_CLAIM, "claim-n1"), {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("changes", [OURS, {"interruptions": {"margin": "1s"}}], ids=["gpu-fleet", "karpenter"])
def test_what_karpenter_drains_is_watched_reported_and_lost_to_the_pool(world: World, changes: dict[str, Any]) -> None:
    join(world, "n1", INSTANCE)
    world.pod("a")
    run = Run(world, Event(change()), **changes)
    with world.kubelets(), karpenter(world, "a"):
        result = run()
    assert run.outcomes() == {"a": "Terminated"} or run.outcomes() == {"a": "Gone"}
    assert result["pools"] == {POOL: ["n1"]}
    (node,) = run.report["nodes"]
    assert (node["way"], node["outcome"], node["kind"]) == ("Watch", "Drained", "ScheduledChange")
    assert run.ti.xcoms[PLANNED]["nodes"] == []
    assert "before the end" not in result["headline"]
    assert '"way":"Watch"' in annotations_of(world, "n1")["gpu-fleet.io/interruption-handled-by"]


def test_a_pod_that_karpenter_must_not_evict_is_left_and_said_to_be(world: World) -> None:
    join(world, "n1", INSTANCE)
    world.pod("a")
    world.pod("b")
    run = Run(world, Event(change()), drain={"timeout": "4s"}, **OURS)
    with world.kubelets(), karpenter(world, "a"):
        result = run()
    assert run.outcomes()["b"] == "Left"
    (node,) = run.report["nodes"]
    assert (node["way"], node["outcome"]) == ("Watch", "Held")
    assert "pods are LEFT on 1 node" in result["headline"]
    assert world.kube.get(ObjectRef(POD, "b", NAMESPACE)) is not None


def test_what_karpenter_leaves_alone_is_planned(world: World) -> None:
    join(world, "n1", INSTANCE)
    world.pod("a")
    run = Run(world, Event(change()), **OURS)
    began = time.monotonic()
    result = run()
    assert time.monotonic() - began >= 3.5
    assert result["pools"] == {}
    assert [each["node"] for each in run.ti.xcoms[PLANNED]["nodes"]] == ["n1"]
    assert world.kube.get(ObjectRef(POD, "a", NAMESPACE)) is not None


def test_nothing_is_waited_for_where_karpenter_is_too_old_to_look(world: World) -> None:
    join(world, "n1", INSTANCE)
    old = {"interruptionQueue": None, "chart": {"version": "1.11.1"}}
    run = Run(world, Event(change()), karpenter=old, interruptions=OURS["interruptions"])
    began = time.monotonic()
    run()
    assert time.monotonic() - began < 3.5
    assert [each["node"] for each in run.ti.xcoms[PLANNED]["nodes"]] == ["n1"]


def test_what_is_urgent_does_not_wait_for_karpenter(world: World) -> None:
    join(world, "n1", INSTANCE)
    join(world, "n2", "i-0000000b")
    world.pod("a")
    world.pod("b", "n2")
    run = Run(world, Event(change(), spot("i-0000000b")), **OURS)
    with world.kubelets(), karpenter(world, "a"):
        run()
    assert run.outcomes()["b"] == "Evicted"
    assert run.outcomes()["a"] in ("Terminated", "Gone")
    assert {node["node"]: node["way"] for node in run.report["nodes"]} == {"n1": "Watch", "n2": "Drain"}


def test_a_node_that_karpenter_removed_by_force_is_lost_unseen(world: World) -> None:
    """EC2's status checks failed: nothing is announced, and its pods ended a second after the NodeClaim's deletion."""
    join(world, "n1", INSTANCE)
    claim = ObjectRef(NODE_CLAIM, "claim-n1")
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    annotations = {"karpenter.sh/nodeclaim-termination-timestamp": moment}
    world.kube.patch(claim, {"metadata": {"finalizers": [FINALIZER], "annotations": annotations}})
    world.kube.delete(claim)
    now = time.time()
    notice = Notice(Kind.TERMINATING, INSTANCE, now, now, "shutting-down", "e1")
    run = Run(world, Event(notice), **OURS)
    try:
        result = run()
    finally:
        world.kube.patch(claim, {"metadata": {"finalizers": None}})
    (node,) = run.report["nodes"]
    assert (node["way"], node["outcome"]) == ("Ending", "Unseen")
    assert "status checks" in node["why"]
    assert result["pools"] == {POOL: ["n1"]}


def test_a_node_that_was_gone_before_the_run_is_reported_with_the_pods_that_the_trigger_saw(world: World) -> None:
    seen = {
        "namespace": NAMESPACE, "name": "a", "uid": "u-a", "workload": "Job/train", "owner_uid": "u-j", "gpus": 1,
        "started_at": time.time() - 60, "grace": 5.0,
    }  # fmt: skip
    case = Case(change(), node="n9", node_uid="u-9", claim="claim-n9", pool=POOL, marked=True, pods=(seen,))
    event = Event()
    event.extra["payload"] = Payload("demo", time.time(), (case,), {}).to_json()
    run = Run(world, event, **OURS)
    result = run()
    assert run.outcomes() == {"a": "Gone"}
    assert result["pools"] == {POOL: ["n9"]}
    assert world.kube.get(ObjectRef(NODE, "n9")) is None
