"""Faults 12, 13, 34, 35 and 37: a task that waits for workloads, and what becomes of its trigger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_fleet.core.errors import DeadlinePassed, GateFailed, GateRefused, ReleaseError
from tests.e2e.helm_faults.table import failing, fault, kill
from tests.e2e.helm_world import NAMESPACE, ROOT, World, operator, task_context, wait_for, worker_environment

NODE = {
    "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
    "status": {
        "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "100"},
        "capacity": {"cpu": "8", "memory": "16Gi", "pods": "100"},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}  # fmt: skip


def deferred(place: World, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """An operator that has deferred: it, its trigger's arguments, and the deferral's own."""
    from datetime import timedelta

    from airflow.sdk.exceptions import TaskDeferred

    fields: dict[str, Any] = {"wait_for": "workloads", "patience": timedelta(seconds=1), **changes}
    task = operator(place, **fields)
    try:
        task.execute(task_context())
    except TaskDeferred as deferral:
        path, arguments = deferral.trigger.serialize()
        assert path.endswith("GateTrigger")
        place.nobody_holds()
        return task, json.loads(json.dumps(arguments)), dict(deferral.kwargs or {})
    raise AssertionError("the task did not defer")


def waited(place: World, **changes: Any) -> dict[str, Any]:
    """The operator to its end: in its worker, or deferred and resumed."""
    task, arguments, kwargs = deferred(place, **changes)  # or it failed at the first look already
    event = event_of(triggerer(place, arguments))
    return dict(task.execute_complete(task_context(), event, **kwargs))


def triggerer(place: World, arguments: dict[str, Any]) -> subprocess.Popen[str]:
    """A trigger in a process of its own, made from its serialized arguments, as a triggerer does."""
    child = str(Path(__file__).parents[1] / "helm_triggerer.py")
    return subprocess.Popen(
        [sys.executable, child, json.dumps(arguments)], env=worker_environment(place.helm), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def event_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    return timed_event_of(process)[0]


def timed_event_of(process: subprocess.Popen[str]) -> tuple[dict[str, Any], float]:
    """The trigger's event, and for how many seconds it ran; its process's start is not part of them."""
    try:
        text, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    event, end = (json.loads(line) for line in text.splitlines() if line.startswith(('{"type"', '{"ran"')))
    return dict(event), float(end["ran"])


def add_node(place: World) -> None:
    place.client.create({key: value for key, value in NODE.items() if key != "status"})
    ref = place.client.ref("v1", "Node", "n1")
    place.client.patch(ref, {"status": NODE["status"]}, subresource="status")


@fault(12, "RuntimeClass missing", controllers=True)
def runtime_class(place: World) -> None:
    add_node(place)
    error = failing(lambda: waited(place, values={"message": "bad", "runtimeClass": "absent"}))
    assert isinstance(error, GateRefused | GateFailed)
    assert error.reason == "RuntimeClassMissing", error
    assert 'RuntimeClass "absent" not found' in error.message, error
    assert "timed out" not in error.message
    assert place.statuses() == {}, "a failed first install is uninstalled"
    place.converge()


@fault(13, "quota on pods", variant="pods", controllers=True)
def quota_on_pods(place: World) -> None:
    place.install_proven({"message": "good"})
    wait_for("the first pod", lambda: place.client.list(place.client.kind("v1", "Pod"), NAMESPACE), place.patience)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": NAMESPACE}}
    place.client.create({**quota, "spec": {"hard": {"pods": "1"}}})
    ref = place.client.ref("v1", "ResourceQuota", "q", NAMESPACE)
    wait_for("the quota", lambda: (place.client.get(ref).get("status") or {}).get("used"), place.patience)
    error = failing(lambda: waited(place, values={"message": "bad"}))
    assert isinstance(error, GateRefused | GateFailed)
    assert error.reason == "QuotaExceeded", error
    assert "exceeded quota" in error.message
    place.right("good")
    place.client.delete(ref)
    place.converge()


@fault(34, "triggerer killed while deferred")
def triggerer_killed(place: World) -> None:
    from datetime import timedelta

    place.install_proven({"message": "good"})
    seconds = 9.0
    task, arguments, kwargs = deferred(place, values={"message": "two"}, wait_deadline=timedelta(seconds=seconds))
    deadline = arguments["deadline"]
    first = triggerer(place, arguments)
    time.sleep(1.5)
    first.kill()
    first.communicate()
    event, ran = timed_event_of(triggerer(place, arguments))
    assert event["type"] == "deadline", event
    assert time.time() >= deadline
    assert ran < seconds, "the deadline was counted anew"
    error = failing(lambda: task.execute_complete(task_context(), event, **kwargs))
    assert isinstance(error, DeadlinePassed)
    place.right("good")
    place.converge()


@fault(35, "pod never scheduled", quick=True, controllers=True)
def never_scheduled(place: World) -> None:
    from datetime import timedelta

    place.install_proven({"message": "good"})
    task, arguments, kwargs = deferred(place, values={"message": "two"}, wait_deadline=timedelta(seconds=6))
    event = event_of(triggerer(place, arguments))
    assert event["type"] == "deadline", event
    error = failing(lambda: task.execute_complete(task_context(), event, **kwargs))
    assert isinstance(error, DeadlinePassed)
    assert "no nodes available to schedule pods" in error.message, error
    place.right("good")
    place.converge()


@fault(37, "task cleared while deferred; triggerer paused and woken")
def triggerer_paused(place: World) -> None:
    from datetime import timedelta

    place.install_proven({"message": "good"})
    task, arguments, kwargs = deferred(place, values={"message": "two"}, wait_deadline=timedelta(seconds=14))
    writes = place.writes("gpu-fleet")
    process = triggerer(place, arguments)
    try:
        time.sleep(2)
        kill(signal.SIGSTOP, process.pid)
        assert place.writes("gpu-fleet") == writes, "a trigger wrote something"
        place.nobody_holds()
        outcome = place.engine({"message": "three"}).install()  # the next run takes over
        assert outcome.actions == ("upgrade 3",)
        writes = place.writes("gpu-fleet")
    finally:
        kill(signal.SIGCONT, process.pid)
    event = event_of(process)
    assert place.writes("gpu-fleet") == writes, "a trigger wrote something"
    error = failing(lambda: task.execute_complete(task_context(), event, **kwargs))
    assert (type(error), error.reason) == (ReleaseError, "CandidateChanged")
    assert place.right("three").statuses[3] == "deployed"
    place.converge()
