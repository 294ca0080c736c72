"""The asset that unproven nodes are events of, and the trigger that watches for them.

A gated pool's nodes that a lifecycle brings are proven by that lifecycle. For those that Karpenter adds for users' pods
this trigger starts a run of ``gpu_admit``: it watches the nodes of the gated pools and the record of the cluster lock,
and only reads. When a node needs a run, it waits a moment for others, and emits one event for all. A node is announced
again while it has no verdict, at growing intervals; with its verdict, which every run leaves on the node at the end of
its time box at the latest, it is not (:mod:`gpu_fleet.core.admission.due`).

What is announced twice costs one run that finds nothing to do: Airflow starts this trigger again whenever it has ended,
and a triggerer that was paused may run beside the one that took over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from gpu_fleet.core.admission.due import due_at
from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.lock import LOCK_REF, read_holder
from gpu_fleet.core.queries import KubeQuery

if TYPE_CHECKING:
    from airflow.sdk import Asset

    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient

log = logging.getLogger(__name__)

#: Seconds to wait for more nodes before an event: the nodes that a burst of pods buys join within seconds.
COALESCE_S = 5.0
#: Seconds until a node without a verdict is announced again, and at most so many after it was announced often: a run
#: may have been killed, or skipped because another one held the lock.
AGAIN_S, MOST_AGAIN_S = 120.0, 900.0
#: Seconds between looks without a change: what is due follows from the clock, too.
LOOK_S = 15.0
#: Seconds before a trigger that may not read the cluster ends, and Airflow starts it again.
REFUSED_S = 60.0


def unproven_asset(spec: ClusterSpec) -> Asset | None:
    """The asset ``gpu-fleet://<cluster>/unproven`` with the watcher of the cluster's nodes, for a DAG's schedule.

    :returns: ``None`` if no pool is gated, or the cluster is to be absent.
    """
    from airflow.sdk import Asset, AssetWatcher

    pools = sorted(pool.name for pool in spec.node_pools if spec.gated(pool))
    if not pools or spec.state == "absent":
        return None
    from gpu_fleet.hooks.kubernetes.access import ClusterAccess

    trigger = UnprovenTrigger(
        cluster=spec.name,
        access=ClusterAccess.from_spec(spec).to_json(),
        pools=pools,
        box_s=float(spec.validation.admit_within.seconds),
    )
    name = f"gpu-fleet://{spec.name}/unproven"
    return Asset(name=name, uri=name, watchers=[AssetWatcher(name="nodes", trigger=trigger)])


class UnprovenTrigger(BaseEventTrigger):
    """Announces nodes of gated pools that no run has proven; each event's payload is ``{"cluster", "nodes"}``.

    :param cluster: name of the cluster file.
    :param access: ``ClusterAccess.to_json()``; no credentials.
    :param pools: names of the gated pools.
    :param box_s: ``validation.admitWithin`` in seconds.
    """

    def __init__(self, cluster: str, access: dict[str, Any], pools: Sequence[str], box_s: float) -> None:
        super().__init__()
        self.cluster = cluster
        self.access = dict(access)
        self.pools = list(pools)
        self.box_s = box_s
        #: UID of a node -> how often it was announced, and until when (this machine's clock) it is not announced again.
        self._announced: dict[str, tuple[int, float]] = {}
        self._client: AsyncKubeClient | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Everything in a fixed order: Airflow compares a watcher's arguments as JSON text (Airflow 3.3.2
        airflow/triggers/base.py, ``BaseEventTrigger.hash``)."""
        return (
            f"{UnprovenTrigger.__module__}.{UnprovenTrigger.__qualname__}",
            {
                "cluster": self.cluster,
                "access": dict(sorted(self.access.items())),
                "pools": self.pools,
                "box_s": self.box_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
        from gpu_fleet.triggers.observers import KubeWatcher

        self._client = client = KubernetesHook(ClusterAccess.from_json(self.access)).async_client()
        changed = asyncio.Event()
        selector = f"{LABEL_NODE_POOL} in ({','.join(self.pools)})"
        nodes = KubeWatcher(KubeQuery("nodes", NODE, label_selector=selector), client, changed)
        lock = KubeWatcher(KubeQuery("turn", LOCK_REF.kind, LOCK_REF.namespace, name=LOCK_REF.name), client, changed)
        watches = [asyncio.ensure_future(watcher.run()) for watcher in (nodes, lock)]
        try:
            while not any(watch.done() for watch in watches):
                changed.clear()
                if self.due(nodes.objects, lock.objects, client.now()):
                    await asyncio.sleep(COALESCE_S)
                    if names := self.due(nodes.objects, lock.objects, client.now()):
                        self._note(nodes.objects or [], names)
                        log.info("cluster %s: unproven nodes: %s", self.cluster, ", ".join(names))
                        yield TriggerEvent({"cluster": self.cluster, "nodes": names})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_S)
            # An error that waiting does not cure: no permission, for example.
            error: GpuFleetError | None = nodes.error or lock.error
            log.error("cluster %s: cannot watch for unproven nodes: %s", self.cluster, error)
            await asyncio.sleep(REFUSED_S)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    def due(
        self, nodes: Sequence[dict[str, Any]] | None, lock: Sequence[dict[str, Any]] | None, now: float
    ) -> list[str]:
        """The names of the nodes that a run has to look at now; none while the cluster cannot be seen.

        :param now: epoch seconds by the API server's clock.
        """
        if nodes is None or lock is None:
            return []
        locked = any(read_holder(record) is not None for record in lock)
        here = time.monotonic()
        found = []
        for node in nodes:
            when = due_at(node, self.pools, self.box_s, locked=locked, now=now)
            _, silent_until = self._announced.get(str(node["metadata"].get("uid")), (0, 0.0))
            if when is not None and when <= now and silent_until <= here:
                found.append(str(node["metadata"]["name"]))
        return sorted(found)

    def _note(self, nodes: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        here = time.monotonic()
        there = {str(node["metadata"].get("uid")): str(node["metadata"]["name"]) for node in nodes}
        self._announced = {uid: noted for uid, noted in self._announced.items() if uid in there}
        for uid, name in there.items():
            if name in names:
                often = self._announced.get(uid, (0, 0.0))[0]
                self._announced[uid] = (often + 1, here + min(AGAIN_S * 2**often, MOST_AGAIN_S))

    async def cleanup(self) -> None:
        """Close the connections; harmless to repeat."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def on_kill(self) -> None:
        """Nothing: it is also called when a paused triggerer wakes up after others have taken over its triggers."""


__all__ = ["UnprovenTrigger", "unproven_asset"]
