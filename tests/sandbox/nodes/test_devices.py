from __future__ import annotations

from collections import Counter

import pytest

from sandbox.aws.shapes import Shape
from sandbox.nodes.gpus.devices import AdmissionError, DeviceManager
from sandbox.nodes.gpus.physical import gpus_of
from sandbox.nodes.gpus.plugin_config import Sharing, Strategy


def _gpus(count: int):
    shape = Shape("x", 8, 1000, 10, "amd64", count, "A100", 40960, ("on-demand",), "nitro", 0)
    return gpus_of("i-1", shape)


def _pod(name: str, gpus: int, resource: str = "nvidia.com/gpu"):
    container = {"name": "main", "resources": {"limits": {resource: str(gpus)}}}
    return {"metadata": {"uid": name}, "spec": {"containers": [container]}}


_SHARED = Sharing(Strategy.TIME_SLICING, 4)


def _manager(gpus: int, sharing: Sharing = _SHARED) -> DeviceManager:
    manager = DeviceManager()
    manager.register(_gpus(gpus), sharing, sharing.replicas)
    return manager


def test_uuids_belong_to_the_instance():
    assert [gpu.uuid for gpu in _gpus(2)] == [gpu.uuid for gpu in _gpus(2)]
    assert len({gpu.uuid for gpu in _gpus(8)}) == 8


def test_announced_devices_are_gpus_times_replicas():
    assert _manager(2).allocatable() == {"nvidia.com/gpu": "8"}


def test_before_the_plugin_there_is_no_resource_and_the_pod_gets_nothing():
    manager = DeviceManager()
    manager.admit(_pod("a", 1))
    assert manager.allocatable() == {}
    assert manager.visible_gpus("a", "main") == []


def test_while_the_plugin_is_away_nothing_is_allocatable_and_pods_are_refused():
    manager = _manager(1)
    manager.admit(_pod("a", 1))
    manager.unregister("nvidia.com/gpu")
    assert manager.capacity() == {"nvidia.com/gpu": "4"}
    assert manager.allocatable() == {"nvidia.com/gpu": "0"}
    assert manager.visible_gpus("a", "main"), "a running pod keeps its GPU"
    with pytest.raises(AdmissionError) as error:
        manager.admit(_pod("b", 1))
    assert str(error.value) == (
        "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu, "
        "which is unexpected"
    )


def test_more_than_there_are():
    manager = _manager(1)
    manager.admit(_pod("a", 3))
    with pytest.raises(AdmissionError, match=r"Requested: 2, Available: 1, which is unexpected"):
        manager.admit(_pod("b", 2))


def test_a_shared_device_cannot_be_asked_for_twice():
    manager = _manager(1, Sharing(Strategy.TIME_SLICING, 4, one_only=True))
    with pytest.raises(AdmissionError, match="maximum request size for shared resources is 1; found 2"):
        manager.admit(_pod("a", 2))


def test_sharers_are_spread_over_the_gpus():
    manager = _manager(2)
    for number in range(6):
        manager.admit(_pod(str(number), 1))
    used = Counter(manager.visible_gpus(str(number), "main")[0] for number in range(6))
    assert sorted(used.values()) == [3, 3]


def test_whole_gpus_are_exclusive():
    manager = _manager(8, Sharing())
    seen = []
    for number in range(4):
        manager.admit(_pod(str(number), 2))
        seen += manager.visible_gpus(str(number), "main")
    assert len(set(seen)) == 8


def test_a_pod_that_has_ended_gives_its_gpu_back():
    manager = _manager(1, Sharing())
    manager.admit(_pod("a", 1))
    manager.free("a")
    manager.admit(_pod("b", 1))
    assert len(manager.visible_gpus("b", "main")) == 1


def test_renamed_the_old_name_stays_at_zero():
    manager = _manager(1)
    renamed = Sharing(Strategy.TIME_SLICING, 2, "nvidia.com/gpu.shared")
    manager.unregister("nvidia.com/gpu")  # the plugin ends what it served before it serves anew
    manager.register(_gpus(1), renamed, 2)
    assert manager.allocatable() == {"nvidia.com/gpu": "0", "nvidia.com/gpu.shared": "2"}
