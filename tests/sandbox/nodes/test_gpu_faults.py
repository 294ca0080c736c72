"""Faults of GPUs while their node is up: they take effect at once, and are gone when they are cleared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.karpenter.conditions import condition
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, plugin_objects, slicing

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRESENT = {"nvidia.com__gpu.present": "true"}
CONDITION = "AcceleratedHardwareReady"
QUERY = "nvidia-smi --query-gpu=uuid,driver_version --format=csv,noheader > /dev/termination-log"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return {}


async def _node(nodes: Cluster, made: dict[str, str], kind: str = "g5.xlarge", slots: str = "4") -> str:
    """A node whose GPUs are announced four times each."""
    if not made:
        await nodes.apply(*plugin_objects({"four": slicing(4)}, "four"))
    if kind not in made:
        made[kind] = await nodes.ready_node(await nodes.launch(kind), **PRESENT)
    await nodes.allocatable(made[kind], slots)
    return made[kind]


@contextmanager
def _fault(nodes: Cluster, name: str, **params: Any) -> Iterator[None]:
    nodes.settings.faults.set(name, params)
    try:
        yield
    finally:
        nodes.settings.faults.clear(name)


async def _messages(nodes: Cluster, node: str, count: int, script: str) -> list[str]:
    """The termination messages of pods that share the node's GPUs, in order of their names."""
    names = [f"probe-{number}" for number in range(count)]
    await nodes.apply(*(gpu_pod(name, command=["sh", "-c", f"{script}; sleep 50"], nodeName=node) for name in names))
    found = []
    for name in names:
        pod = await nodes.pod_phase(name, "Succeeded")
        found.append(pod["status"]["containerStatuses"][0]["state"]["terminated"].get("message", ""))
    for name in names:
        await nodes.kube.delete("Pod", name, "default")
        await nodes.gone("Pod", name, "default")
    return found


@pytest.mark.parametrize(
    ("kind", "slots", "count", "left"),
    [("g5.xlarge", "4", 1, "0"), ("g5.12xlarge", "16", 1, "12"), ("g5.12xlarge", "16", 3, "4")],
)
async def test_a_lost_gpu_is_not_allocatable_and_the_capacity_stays(nodes: Cluster, made, kind, slots, count, left):
    name = await _node(nodes, made, kind, slots)
    with _fault(nodes, "gpu-lost", node=name, count=count):
        node = await nodes.allocatable(name, left)
        assert node["status"]["capacity"]["nvidia.com/gpu"] == slots
    await nodes.allocatable(name, slots)


async def test_a_lost_gpu_is_not_listed_by_nvidia_smi(nodes: Cluster, made):
    name = await _node(nodes, made, "g5.12xlarge", "16")
    count = "NVIDIA_VISIBLE_DEVICES=all nvidia-smi -L | wc -l > /dev/termination-log"
    with _fault(nodes, "gpu-lost", node=name):
        await nodes.allocatable(name, "12")
        assert [text.strip() for text in await _messages(nodes, name, 1, count)] == ["3"]
    await nodes.allocatable(name, "16")
    assert [text.strip() for text in await _messages(nodes, name, 1, count)] == ["4"]


async def test_a_fault_of_one_node_leaves_the_others_alone(nodes: Cluster, made):
    one, other = await _node(nodes, made), await _node(nodes, made, "g5.12xlarge", "16")
    with _fault(nodes, "gpu-lost", node=one):
        await nodes.allocatable(one, "0")
        await nodes.allocatable(other, "16")
    await nodes.allocatable(one, "4")
    with _fault(nodes, "gpu-lost", node=[one, other]):
        await nodes.allocatable(one, "0")
        await nodes.allocatable(other, "12")
    await nodes.allocatable(other, "16")


async def test_faults_of_one_kind_may_differ_from_node_to_node(nodes: Cluster, made):
    one, other = await _node(nodes, made), await _node(nodes, made, "g5.12xlarge", "16")
    with _fault(nodes, "gpu-lost:one", node=one), _fault(nodes, "gpu-lost:other", node=other, count=2):
        await nodes.allocatable(one, "0")
        await nodes.allocatable(other, "8")
    await nodes.allocatable(one, "4")
    await nodes.allocatable(other, "16")


@pytest.mark.parametrize(("code", "left"), [(79, "3"), (48, "3"), (109, "4")])
async def test_a_terminal_xid_is_a_condition_and_takes_one_device(nodes: Cluster, made, code, left):
    """109 is an application's error to the device plugin, and terminal to the monitoring agent."""
    name = await _node(nodes, made)
    with _fault(nodes, "xid", node=name, code=code):

        async def reported():
            found = condition(await nodes.kube.get("Node", name), CONDITION) or {}
            return found if found.get("status") == "False" else None

        found = await nodes.until(reported)
        assert found["reason"] == f"NvidiaXID{code}Error"
        assert found["message"].startswith(f"detected XID-{code} on the instance")
        await nodes.allocatable(name, left)
        assert condition(await nodes.kube.get("Node", name), "Ready")["status"] == "True"

    async def repaired():
        found = condition(await nodes.kube.get("Node", name), CONDITION)
        return (found["status"], found["reason"]) == ("True", "NvidiaGPUIsReady")

    await nodes.until(repaired)
    await nodes.allocatable(name, "4")


async def test_an_xid_that_is_not_terminal_is_an_event(nodes: Cluster, made):
    name = await _node(nodes, made)
    with _fault(nodes, "xid", node=name, code=13):
        text = await nodes.event(name, CONDITION)
        assert text.startswith("NvidiaXID13Warning: detected unknown XID-13 on the instance")
        await nodes.allocatable(name, "4")


async def test_another_driver_is_seen_in_containers(nodes: Cluster, made):
    name = await _node(nodes, made)
    with _fault(nodes, "driver-version", value="535.183.01"):
        (message,) = await _messages(nodes, name, 1, QUERY)
        assert message.strip().endswith(", 535.183.01")
    (message,) = await _messages(nodes, name, 1, QUERY)
    assert message.strip().endswith(", 580.95.05")


async def test_split_sharers_see_two_gpus(nodes: Cluster, made):
    name = await _node(nodes, made)
    with _fault(nodes, "split-sharers", node=name):
        assert len(set(await _messages(nodes, name, 4, QUERY))) == 2
    assert len(set(await _messages(nodes, name, 4, QUERY))) == 1


@pytest.mark.parametrize(
    ("fault", "params", "count"),
    [("no-sharing-block", {}, "1"), ("advertise-replicas", {"value": 3}, "3"), ("gpu-never-registers", {}, "0")],
)
async def test_what_the_plugin_announces_changes_while_the_node_is_up(nodes: Cluster, made, fault, params, count):
    name = await _node(nodes, made)
    with _fault(nodes, fault, node=name, **params):
        await nodes.allocatable(name, count)
    await nodes.allocatable(name, "4")


async def test_a_plugin_that_stays_away_is_forgotten_after_the_kubelets_grace(nodes: Cluster, made):
    name = await _node(nodes, made)
    with _fault(nodes, "gpu-never-registers", node=name):
        node = await nodes.allocatable(name, "0")
        assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"

        async def forgotten():
            return (await nodes.kube.get("Node", name))["status"]["capacity"]["nvidia.com/gpu"] == "0"

        await nodes.until(forgotten)
    node = await nodes.allocatable(name, "4")
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"


REPORT = '{"schema":"x/v1","startedAt":1000,"finishedAt":2000,"gpus":[{"memoryTotalMiB":5,"memoryFreeMiB":0}]}'


@pytest.mark.parametrize("kind", ["garbage", "huge", "negative", "skew", "empty"])
async def test_what_a_probe_wrote_is_tampered_with(nodes: Cluster, made, kind):
    name = await _node(nodes, made)
    with _fault(nodes, "probe-output", kind=kind, node=name):
        (message,) = await _messages(nodes, name, 1, f"printf '%s' '{REPORT}' > /dev/termination-log")
    match kind:
        case "garbage":
            assert message.startswith("Segmentation fault")
        case "empty":
            assert message == ""
        case "huge":
            assert len(message) == 4096
            assert message.startswith('{"schema": "x/v1"')
        case "negative":
            assert json.loads(message)["gpus"] == [{"memoryTotalMiB": -6, "memoryFreeMiB": -1}]
            assert json.loads(message)["startedAt"] == 1000
        case "skew":
            assert json.loads(message)["finishedAt"] == 2000 + 3_600_000


async def test_tampering_is_limited_to_an_image(nodes: Cluster, made):
    name = await _node(nodes, made)
    with _fault(nodes, "probe-output", kind="garbage", image="python"):
        assert await _messages(nodes, name, 1, f"printf '%s' '{REPORT}' > /dev/termination-log") == [REPORT]


async def test_an_mps_daemon_that_ends_crashes_again_and_again(nodes: Cluster, made):
    """Written with the sandbox's plugin image; a daemon that is back is healthy again."""
    name = await _node(nodes, made)
    mps = plugin_objects({}, "four")[1]
    mps["metadata"]["name"] = "mps"
    mps["spec"]["selector"]["matchLabels"] = mps["spec"]["template"]["metadata"]["labels"] = {"app": "mps"}
    container = mps["spec"]["template"]["spec"]["containers"][1]
    container |= {"name": "mps-control-daemon", "command": ["mps-control-daemon"]}
    mps["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": name}
    await nodes.apply(mps)

    async def state(wanted: str):
        for pod in await nodes.kube.list("Pod", "kube-system", label_selector="app=mps"):
            for status in pod["status"].get("containerStatuses") or []:
                if status["name"] == "mps-control-daemon" and wanted in status["state"]:
                    return status
        return None

    await nodes.until(lambda: state("running"))
    with _fault(nodes, "mps-daemon-absent", node=name):
        crashing = await nodes.until(lambda: state("waiting"), lambda: nodes.kube.list("Pod", "kube-system"))
        assert crashing["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert crashing["ready"] is False
    running = await nodes.until(lambda: state("running"))
    assert running["restartCount"] >= 1
    await nodes.kube.delete("DaemonSet", "mps", "kube-system")


PYTHON_IMAGE = "public.ecr.aws/docker/library/python:3.12-slim-bookworm"
MEMORY = """
import ctypes
cuda, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
assert cuda.cuInit(0) == 0
cuda.cuDeviceGetAttribute(ctypes.byref(value), 16, 0)
open("/dev/termination-log", "w").write(str(value.value))
"""


@pytest.mark.parametrize(
    ("gpus", "phase", "told"), [(1, "Succeeded", "80"), (0, "Failed", "cannot open shared object file")]
)
async def test_python_finds_the_driver_where_it_has_a_gpu(nodes: Cluster, made, gpus, phase, told):
    name = await _node(nodes, made)
    pod = gpu_pod(f"python-{gpus}", gpus, PYTHON_IMAGE, ["python3", "-c", MEMORY], nodeName=name)
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError"
    await nodes.apply(pod)
    ended = await nodes.pod_phase(f"python-{gpus}", phase)
    assert told in ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
