"""Probes on nodes that run users' pods, too: nobody is slowed down or driven out of memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gpu_fleet.core.probes.plan import Probe
from tests.unit.operators.nodes_world import NodesWorld, checks, nodes_world, users_work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodesWorld]:
    with nodes_world(tmp_path_factory.mktemp("users")) as found:
        yield found


@contextmanager
def company(world: NodesWorld) -> Iterator[list[int]]:
    """How many processes have had a context on one GPU, look by look, while the block lasts."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            seen.append(max(world.gpu_processes().values(), default=0))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_users_inference_is_not_slowed_by_a_measurement(world: NodesWorld) -> None:
    """Before: 'PartlyBusy', and the user had a quarter of the GPU for a minute."""
    world.users_pod("inference", **users_work(3000))
    world.until(lambda: max(world.gpu_processes().values(), default=0) == 1)
    with company(world) as seen:
        report = world.probe(Probe.THROUGHPUT)
    assert not report["raised"], report
    world.remove("inference")
    assert max(seen, default=1) == 1, "the user had company"
    assert report["outcome"] == "Busy"
    room = checks(report)["room"]
    assert (room["outcome"], room["reason"]) == ("Busy", "Busy")
    assert "users' pods hold 1 of its 4 shares of GPUs" in room["message"]
    assert checks(report)["throughput"]["reason"] == "NotReached"


def test_the_last_free_memory_of_a_users_gpu_is_left_to_the_user(world: NodesWorld) -> None:
    """Time-slicing isolates no memory: three contexts would take what the user is about to allocate."""
    process = """mkdir -p "$SANDBOX_GPU_USE/$NVIDIA_VISIBLE_DEVICES" && cd "$SANDBOX_GPU_USE/$NVIDIA_VISIBLE_DEVICES" &&
        printf '%s\\ttrain\\t22000\\n' $$$$ >$$$$ && sleep 100000"""
    world.users_pod("training", command=["sh", "-c", process])
    world.until(lambda: max(world.gpu_processes().values(), default=0) == 1)
    with company(world) as seen:
        report = world.probe(Probe.SHARING)
    world.remove("training")
    assert not report["raised"], report
    assert max(seen, default=1) == 1, "a probe made a CUDA context"
    assert report["outcome"] == "Busy"
    found = checks(report)["probes"]
    assert (found["outcome"], found["reason"]) == ("Busy", "MemoryInUse")
    assert "1028 MiB of GPU" in found["message"]


def test_sharing_is_proven_beside_a_user_with_room_to_spare(world: NodesWorld) -> None:
    world.users_pod("notebook")
    report = world.probe(Probe.SHARING)
    world.remove("notebook")
    assert (report["outcome"], report["raised"]) == ("Passed", ""), report
    assert checks(report)["concurrency"]["figures"]["containers"] == 3


def test_a_pod_that_takes_gpus_without_asking_is_named_and_left_alone(world: NodesWorld) -> None:
    """The scheduler does not count it: every share is free, and yet a measurement would slow it down."""
    world.users_pod("thief", gpus=0, env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}], **users_work(3000))
    world.until(lambda: max(world.gpu_processes().values(), default=0) == 1)
    with company(world) as seen:
        measured = world.probe(Probe.THROUGHPUT)
    assert max(seen, default=1) == 1, "the pod had company"
    assert not measured["raised"], measured
    (room,) = measured["nodes"][0]["checks"]
    assert (measured["outcome"], room["reason"]) == ("Busy", "Busy")
    assert "default/thief (NVIDIA_VISIBLE_DEVICES=all)" in room["message"]
    proven = world.probe(Probe.SHARING)
    world.remove("thief")
    assert (proven["outcome"], proven["raised"]) == ("Passed", ""), proven
    told = checks(proven)["unasked"]
    assert (told["outcome"], told["reason"]) == ("Skipped", "GpusSeenUnasked")
    assert any("default/thief" in note for note in proven["notes"])


def test_a_user_who_comes_meanwhile_has_the_gpu_alone_at_once(world: NodesWorld) -> None:
    """The pod takes one probe's place; the other three would compute beside it for minutes."""
    with ThreadPoolExecutor(1) as worker:
        measuring = worker.submit(world.probe, Probe.THROUGHPUT, duration="5m")
        world.until(lambda: max(world.gpu_processes().values(), default=0) == 4)
        began = time.monotonic()
        world.users_pod("urgent", nodeName=None, **users_work(3000))
        report = measuring.result(timeout=60)
        took = time.monotonic() - began
    world.until(lambda: set(world.gpu_processes().values()) == {1})
    world.remove("urgent")
    assert took < 7, "real seconds; the measurement would have lasted 18"
    (room,) = report["nodes"][0]["checks"]
    assert (report["outcome"], room["reason"], report["raised"]) == ("Busy", "TakenMeanwhile", "")
    assert "were ended at once" in room["message"]
