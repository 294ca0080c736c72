"""PersistentVolumeClaims: what a container writes there is found by the next pod, on whichever node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sandbox.kube.resources import ApiError
from tests.sandbox.nodes.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")
Object = dict[str, Any]
PYTHON = "public.ecr.aws/docker/library/python:3.12-slim-bookworm"
TRAIN = Path(__file__).resolve().parents[3] / "examples" / "training" / "train.py"


def claim(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def pod_spec(volume: str, *command: str, **env: str) -> Object:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1000,
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": volume}}],
        "containers": [
            {
                "name": "main",
                "image": PYTHON,
                "command": list(command),
                "env": [{"name": name, "value": value} for name, value in env.items()],
                "volumeMounts": [{"name": "data", "mountPath": "/checkpoints"}],
            }
        ],
    }


def pod(name: str, node: str, spec: Object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**spec, "nodeName": node},
    }


async def test_what_is_written_to_a_claim_outlives_pod_and_node(nodes: Cluster) -> None:
    first, second = await nodes.launch(), await nodes.launch()
    writes = pod_spec("shared", "sh", "-c", "echo kept > /checkpoints/note")
    reads = pod_spec("shared", "sh", "-c", "cat /checkpoints/note")
    other = pod_spec("another", "sh", "-c", "test ! -e /checkpoints/note")
    await nodes.apply(claim("shared"), claim("another"), pod("writes", await nodes.ready_node(first), writes))
    await nodes.pod_phase("writes", "Succeeded")
    await nodes.terminate(first)
    node = await nodes.ready_node(second)
    await nodes.apply(pod("reads", node, reads), pod("other", node, other))
    await nodes.pod_phase("reads", "Succeeded")
    await nodes.pod_phase("other", "Succeeded")


async def test_a_pod_waits_for_a_claim_that_is_missing(nodes: Cluster) -> None:
    node = await nodes.ready_node(await nodes.launch())
    await nodes.apply(pod("early", node, pod_spec("later", "true")))
    await nodes.event("early", "FailedMount", 'persistentvolumeclaims "later" not found')
    await nodes.apply(claim("later"))
    await nodes.pod_phase("early", "Succeeded")


async def test_a_job_with_checkpoints_survives_evictions(nodes: Cluster) -> None:
    """The example's program on the sandbox's nodes: each eviction saves, and the last pod ends what the first began."""
    await nodes.ready_node(await nodes.launch())
    # Python sleeps in the sandbox's time, a hundred times as fast.
    settings = {"CHECKPOINTS": "/checkpoints/j", "STEPS": "1000", "EVERY": "1000", "STEP_SECONDS": "0.5"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": "default"},
        "spec": {
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [143]}}],
            },
            "template": {"spec": pod_spec("trainings", "python3", "-u", "-c", TRAIN.read_text(), **settings)},
        },
    }
    await nodes.apply(claim("trainings"), job)

    async def log_of(name: str) -> str:
        try:
            return str(await nodes.kube.raw("GET", f"/api/v1/namespaces/default/pods/{name}/log"))
        except ApiError as error:
            if error.code not in (400, 404):  # it has not started yet, or is gone
                raise
            return ""

    evicted: list[str] = []

    async def training() -> str | None:
        for each in await nodes.kube.list("Pod", "default", label_selector="job-name=train"):
            name = str(each["metadata"]["name"])
            if name not in evicted and "finished step" in await log_of(name):
                return name
        return None

    for _ in range(2):
        name = await nodes.until(training, lambda: nodes.kube.list("Pod", "default"))
        evicted.append(name)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
        await nodes.kube.raw("POST", f"/api/v1/namespaces/default/pods/{name}/eviction", body=eviction)
        await nodes.gone("Pod", name, "default")

    async def complete() -> Object | None:
        found: Object = await nodes.kube.get("Job", "train", "default")
        return found if found["status"].get("succeeded") else None

    done = await nodes.until(complete, lambda: nodes.kube.list("Pod", "default"))
    assert "failed" not in done["status"]
    (last,) = await nodes.kube.list("Pod", "default", label_selector="job-name=train")
    text = await log_of(last["metadata"]["name"])
    assert re.search(r"^resumed at step [1-9]\d* of 1000$", text, re.MULTILINE), text[:200]
    assert "result after 1000 steps" in text
    assert text.count("finished step") < 1000
