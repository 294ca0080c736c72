"""Wires Karpenter's controllers: which change wakes which controller, and what runs concurrently."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.aws.client import Aws
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.claimconditions import ClaimConditions
from sandbox.karpenter.controllers.disruption import Disruption
from sandbox.karpenter.controllers.garbagecollection import GarbageCollection
from sandbox.karpenter.controllers.instancestatus import InstanceStatus
from sandbox.karpenter.controllers.interruption import Interruption
from sandbox.karpenter.controllers.lifecycle import ClaimLifecycle
from sandbox.karpenter.controllers.nodeclass import NodeClassController
from sandbox.karpenter.controllers.nodepool import NodePoolController
from sandbox.karpenter.controllers.overlays import ALL, NodeOverlays
from sandbox.karpenter.controllers.podevents import PodEvents
from sandbox.karpenter.controllers.provisioner import Provisioner
from sandbox.karpenter.controllers.reservedcapacity import ReservedCapacity
from sandbox.karpenter.controllers.termination import NodeTermination
from sandbox.karpenter.objects import POOL, Object, deleting, labels, name
from sandbox.kube.client import Kube
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.karpenter")


class Karpenter:
    """One life of the controller: its parts, what wakes them, and their loops.

    :param queue: of SQS, with interruption messages; ``None`` without one.
    :param overlays: the feature gate NodeOverlay.
    :param reserved: the feature gate ReservedCapacity.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        kube: Kube,
        aws: Aws,
        queue: str | None,
        *,
        overlays: bool = False,
        reserved: bool = True,
    ) -> None:
        self._context = context = Context(settings, clock, kube, aws, reserved_capacity=reserved)
        self._overlays = NodeOverlays(context, enabled=overlays)
        self._pod_events = PodEvents(context)
        self._provisioner = Provisioner(context, self._overlays)
        self._lifecycle = ClaimLifecycle(context, self._overlays)
        self._claim_conditions = ClaimConditions(context, self._pod_events)
        self._disruption = Disruption(context, self._provisioner, self._pod_events)
        self._termination = NodeTermination(context)
        self._garbage = GarbageCollection(context)
        self._instance_status = InstanceStatus(context)
        self._reserved = ReservedCapacity(context)
        self._interruption = Interruption(context, queue) if queue else None

    async def run(self) -> None:
        """Until cancelled."""
        context, tasks = self._context, list[asyncio.Task[Any]]()
        try:
            if self._overlays.enabled:
                context.overlays.add_handler(self._overlays_changed)
            await context.informers.synced()
            self._wire()
            await self._disruption.tidy()
            work = [
                context.recorder.run(),
                context.node_class_queue.run(NodeClassController(context).reconcile, 2),
                context.pool_queue.run(NodePoolController(context).reconcile, 2),
                context.claim_queue.run(self._lifecycle.reconcile, 20),
                context.expire_queue.run(self._lifecycle.expire, 1),
                context.condition_queue.run(self._claim_conditions.reconcile, 4),
                context.node_queue.run(self._termination.reconcile, 10),
                context.eviction_queue.run(self._termination.evict, 4),
                context.overlay_queue.run(self._overlays.reconcile, 1),
                self._again("provisioner", self._provisioner.run),
                self._again("disruption", self._disruption.run),
                self._again("garbage collection", self._garbage.run),
                self._again("instance status", self._instance_status.run),
                self._again("capacity reservations", self._reserved.run),
            ]
            if self._interruption is not None:
                work.append(self._again("interruption", self._interruption.run))
            tasks = [asyncio.create_task(each) for each in work]
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await context.informers.close()

    async def _again(self, what: str, loop: Any) -> None:
        """Run a loop, and start it again shortly after each failure."""
        while True:
            try:
                await loop()
            except (ApiError, ClientError, BotoCoreError, OSError) as error:
                log.warning("%s: %s", what, error)
            except Exception:
                log.exception("%s failed; starting it again", what)
            await asyncio.sleep(max(0.2, self._context.clock.real(1)))

    def _wire(self) -> None:
        self._context.node_classes.add_handler(self._class_changed)
        self._context.pools.add_handler(self._pool_changed)
        self._context.claims.add_handler(self._claim_changed)
        self._context.nodes.add_handler(self._node_changed)
        self._context.pods.add_handler(self._pod_changed)

    def _overlays_changed(self, change: Change, obj: Object, old: Object | None) -> None:
        """A change of an overlay, a pool or a node class starts a new evaluation; a change of their status does not."""
        generation = obj["metadata"].get("generation")
        if self._overlays.enabled and (
            change != "MODIFIED" or old is None or old["metadata"].get("generation") != generation
        ):
            self._context.overlay_queue.add(ALL)

    def _class_changed(self, _change: Change, node_class: Object, old: Object | None) -> None:
        self._context.node_class_queue.add(name(node_class))
        if self._overlays.enabled and _subnets(node_class) != _subnets(old):
            self._context.overlay_queue.add(ALL)  # until then its pools had no instance types to compare
        for pool in self._context.pools.items():
            if pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] == name(node_class):
                self._context.pool_queue.add(name(pool))
        for claim in self._context.claims.items():
            self._context.condition_queue.add(name(claim))

    def _pool_changed(self, change: Change, pool: Object, old: Object | None) -> None:
        self._overlays_changed(change, pool, old)
        self._context.pool_queue.add(name(pool))
        for claim in self._context.claims.items():
            if labels(claim).get(POOL) == name(pool):
                self._context.condition_queue.add(name(claim))

    def _claim_changed(self, change: Change, claim: Object, old: Object | None) -> None:
        if change == "DELETED":
            self._context.node_class_queue.add(claim["spec"]["nodeClassRef"]["name"])
        self._context.claim_queue.add(name(claim))
        self._context.condition_queue.add(name(claim))
        if change == "MODIFIED" and deleting(claim) and old is not None and not deleting(old):
            self._provisioner.trigger()

    def _node_changed(self, change: Change, node: Object, _old: Object | None) -> None:
        if deleting(node) and change != "DELETED":
            self._context.node_queue.add(name(node))
        for claim in self._context.claims.by_index("provider", node["spec"].get("providerID") or ""):
            self._context.claim_queue.add(name(claim))

    def _pod_changed(self, change: Change, pod: Object, old: Object | None) -> None:
        if change != "DELETED":
            self._provisioner.pod_changed(pod)
        self._pod_events.changed(change, pod, old)
        node_name = pod["spec"].get("nodeName")
        if not node_name:
            return
        node = self._context.nodes.get(node_name)
        if node is not None and deleting(node):
            self._context.node_queue.add(node_name)


def _subnets(node_class: Object | None) -> Any:
    return ((node_class or {}).get("status") or {}).get("subnets")
