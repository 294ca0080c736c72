"""Measures first aid: ``python -m bench.first_aid [--singles 30] [--storms 5] [--nodes 100] [--later]``.

From just before a message is sent to SQS until a watch of the nodes shows the node cordoned: for one message at a time,
and for one on each of 100 nodes at once. The trigger runs in Airflow's own shared stream, against the sandbox's AWS
(moto) and API server. Those two, this trigger and the watch share this machine, and all but moto share this process, so
the figures are upper bounds; what EventBridge needs before SQS has a message is not in them.

``--later`` adds the nodes just before their messages: the trigger has not seen them yet, and has to list them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess, KubeClient, KubernetesHook
from tests.unit.sandboxed import SandboxCloud, define_karpenter, sandbox_cloud
from tests.unit.triggers.interruption_world import (
    CONNECTION,
    SPOT,
    Queue,
    add_node,
    event,
    new_instance,
    running,
    trigger_of,
)

PATIENCE_S = 60.0
NODES = KubeQuery("nodes", NODE)


class Watch:
    """When each node was first seen cordoned, by this machine's clock."""

    def __init__(self, access: ClusterAccess) -> None:
        self._client = AsyncKubeClient(access)
        self._seen = asyncio.Event()
        self.cordoned: dict[str, float] = {}

    async def run(self) -> None:
        _, version = await self._client.list(NODES)
        async for _, item in self._client.watch(NODES, version):
            if (item.get("spec") or {}).get("unschedulable"):
                self.cordoned.setdefault(item["metadata"]["name"], time.time())
                self._seen.set()

    async def all_of(self, names: Iterable[str]) -> None:
        wanted = set(names)
        async with asyncio.timeout(PATIENCE_S):
            while not wanted <= set(self.cordoned):
                self._seen.clear()
                await self._seen.wait()

    async def close(self) -> None:
        await self._client.close()


class Nodes:
    """Nodes to be interrupted, each once; made beforehand, or just before their message."""

    def __init__(self, kube: KubeClient, count: int, *, later: bool) -> None:
        self._kube = kube
        self._later = later
        self._left = [(f"n{number}", new_instance()) for number in range(count)]
        if not later:
            for name, instance in self._left:
                add_node(kube, name, instance)

    def take(self, count: int) -> list[tuple[str, str]]:
        taken, self._left = self._left[:count], self._left[count:]
        if self._later:
            for name, instance in taken:
                add_node(self._kube, name, instance)
        return taken


async def measure(cloud: SandboxCloud, singles: int, storms: int, size: int, *, later: bool) -> None:
    access = ClusterAccess("kubeconfig", None, None, None, path=str(cloud.kubeconfig))
    kube = KubernetesHook(access).client()
    define_karpenter(kube)
    nodes = await asyncio.to_thread(Nodes, kube, singles + storms * size, later=later)
    queue, watch = Queue(cloud), Watch(access)
    watching = asyncio.create_task(watch.run())
    async with running(trigger_of(access, queue.name)) as triggerer:
        await asyncio.sleep(2.5)  # until the stream is open

        async def interrupt(count: int) -> list[float]:
            taken = await asyncio.to_thread(nodes.take, count)
            bodies = {name: event(SPOT, instance) for name, instance in taken}
            begun: dict[str, float] = {}

            def send() -> None:
                names = list(bodies)
                for first in range(0, len(names), 10):
                    part = names[first : first + 10]
                    begun.update(dict.fromkeys(part, time.time()))
                    queue.send(*(bodies[name] for name in part))

            await asyncio.to_thread(send)
            await watch.all_of(bodies)
            return [watch.cordoned[name] - begun[name] for name in bodies]

        found: list[float] = []
        for _ in range(singles):
            found += await interrupt(1)
            await asyncio.sleep(0.3)
        report(f"one message at a time, {singles} times", found)
        of_storms: list[float] = []
        last: list[float] = []
        before = len(triggerer.payloads)
        for _ in range(storms):
            begun = time.time()
            of_storms += await interrupt(size)
            last.append(time.time() - begun)
            await asyncio.sleep(1.0)
        report(f"{size} messages at once, {storms} times", of_storms)
        problems = sum(bool(case["problem"]) for case in triggerer.cases)
        events = (len(triggerer.payloads) - before) / max(1, storms)
        print(
            f"  first send to the last of {size} cordons: median {statistics.median(last):.2f} s, max {max(last):.2f} s"
        )
        print(f"  asset events per storm: {events:.1f}; with a problem: {problems}")
        await asyncio.sleep(2)
        print(f"  messages left in the queue: {await asyncio.to_thread(queue.left)}")
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    await watch.close()
    queue.close()


def report(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    print(
        f"{what}: message sent to node cordoned p50 {statistics.median(ordered):.3f} s, p95 {p95:.3f} s, "
        f"max {ordered[-1]:.3f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--singles", type=int, default=30)
    parser.add_argument("--storms", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=100, help="nodes of one storm")
    parser.add_argument("--later", action="store_true", help="nodes that the trigger has not seen before their message")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sandbox_cloud(Path(folder)) as cloud:
        os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}"] = cloud.connection
        asyncio.run(measure(cloud, options.singles, options.storms, options.nodes, later=options.later))
    return 0


if __name__ == "__main__":
    sys.exit(main())
