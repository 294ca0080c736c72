"""The time stamps that a node leaves while it comes, against the waits that the sandbox has injected.

Real components write them as whole seconds (``metav1.Time``, and EC2's ``LaunchTime``: API reference, Instance), so a
moment may be up to a second before the wait's end, and as much after it as a controller needs to see it.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gpu_fleet.core.stages.arrivals import arrivals
from gpu_fleet.core.stages.moments import Moment, NodeTimes, Stage
from sandbox.karpenter.conditions import condition, is_true
from tests.sandbox.karpenter.talk import PAUSE, claims, ready_pool
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool, simulated

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.full]

POOL, SPEED = "timed", 12.0
WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Arrived:
    """One node that a placeholder has asked for, and a user's pod that came later."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node: dict[str, Any] = {}
        self.claim: dict[str, Any] = {}
        self.pods: list[dict[str, Any]] = []
        self.instance: dict[str, Any] = {}

    async def come(self) -> Arrived:
        cluster = self.cluster
        await ready_pool(cluster, node_pool(POOL))
        selector = {"karpenter.sh/nodepool": POOL}
        asking = gpu_pod("asks", 1, PAUSE, labels={"gpu-fleet.io/component": "placeholder"}, nodeSelector=selector)
        await cluster.apply(asking)
        [self.claim] = await claims(cluster, POOL, 1, "Initialized")
        await cluster.pod_phase("asks", "Running")
        # What the pod leaves when it goes is not needed: its successor is a user's.
        self.pods = [await cluster.kube.get("Pod", "asks", "default")]
        await cluster.kube.delete("Pod", "asks", "default", grace_seconds=0)
        await asyncio.sleep(2.0)
        await cluster.apply(gpu_pod("job", 1, PAUSE, nodeSelector=selector))
        self.pods.append(await cluster.pod_phase("job", "Running"))
        self.node = await cluster.kube.get("Node", self.claim["status"]["nodeName"])
        [self.instance] = await cluster.instances("running")
        return self

    def ended(self, label: str) -> float:
        """When the injected wait with this label was over."""
        [wait] = [wait for wait in self.cluster.clock.waits if re.fullmatch(label, wait.label)]
        return wait.ended

    @property
    def times(self) -> NodeTimes:
        launches = {self.instance["InstanceId"]: self.instance["LaunchTime"].timestamp()}
        return arrivals([self.node], [self.claim], self.pods, launches)[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arrived(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arrived]:
    async with simulated(tmp_path_factory.mktemp("stages"), speed=SPEED) as cluster:
        await cluster.install_karpenter()
        await cluster.install_plugin()
        await cluster.apply(node_class())
        yield await Arrived(cluster).come()


async def test_every_moment_but_the_proof_is_known(arrived: Arrived) -> None:
    found = arrived.times
    assert [moment for moment in Moment if moment not in found.at] == [Moment.PROVEN]
    moments = [found.at[moment] for moment in Moment if moment in found.at]
    assert moments == sorted(moments)
    assert (found.pod, found.asked) == ("default/asks", True)


async def test_each_moment_is_within_a_second_of_the_end_of_its_wait(arrived: Arrived) -> None:
    name, found = arrived.node["metadata"]["name"], arrived.times
    instance = arrived.instance["InstanceId"]
    ends = {
        Moment.REGISTERED: arrived.ended(f"{instance} joined as {name}"),
        Moment.READY: arrived.ended(f"{name} became ready"),
        Moment.PLUGIN: arrived.ended(f"GPU of {name} announced"),
    }
    late = {moment: found.at[moment] - end for moment, end in ends.items()}
    assert {moment: seconds for moment, seconds in late.items() if not -1.0 <= seconds <= 1.0} == {}
    # The same rounding on both sides: then a stage differs by a second at most.
    for stage in (Stage.READY, Stage.PLUGIN):
        first, last = stage.ends
        injected = math.floor(ends[last]) - math.floor(ends[first])
        assert abs((found.seconds(stage) or 0.0) - injected) <= 1.0, stage
    assert found.seconds(Stage.JOIN) == found.at[Moment.REGISTERED] - found.at[Moment.LAUNCHED]
    assert (found.seconds(Stage.JOIN) or 0.0) * SPEED >= 90 - SPEED  # what the latency model has for GPU types


async def test_all_time_stamps_are_whole_seconds(arrived: Arrived) -> None:
    stamps = [
        arrived.claim["metadata"]["creationTimestamp"],
        *(condition(arrived.claim, kind)["lastTransitionTime"] for kind in ("Launched", "Registered", "Initialized")),
        condition(arrived.node, "Ready")["lastTransitionTime"],
        *(condition(pod, "PodScheduled")["lastTransitionTime"] for pod in arrived.pods),
    ]
    assert [stamp for stamp in stamps if not WHOLE_SECONDS.fullmatch(stamp)] == []
    assert arrived.instance["LaunchTime"].microsecond == 0


async def test_a_bound_pod_says_when_it_was_bound_and_no_longer_since_when_it_waited(arrived: Arrived) -> None:
    """kubernetes v1.35 ``pkg/registry/core/pod/storage/storage.go``, BindingREST: PodScheduled becomes True."""
    asked = arrived.pods[0]
    assert is_true(asked, "PodScheduled")
    assert condition(asked, "PodScheduled")["lastTransitionTime"] > asked["metadata"]["creationTimestamp"]
    assert "reason" not in condition(asked, "PodScheduled")
