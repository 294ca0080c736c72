"""The leader: runs Karpenter's controllers while a Karpenter pod is Ready."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sandbox.aws.client import Aws
from sandbox.karpenter.conditions import is_true
from sandbox.karpenter.controller import Karpenter
from sandbox.karpenter.controllers.overlays import gate
from sandbox.karpenter.objects import deleting, uid
from sandbox.kube.client import Kube
from sandbox.kube.informers import SharedInformers
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]


class Leader:
    """Runs :class:`Karpenter` while a pod of its Deployment is Ready, and stops it when none is."""

    def __init__(self, settings: Settings, clock: Clock, kube: Kube, aws: Aws) -> None:
        self._settings = settings
        self._clock = clock
        self._kube = kube
        self._aws = aws
        self._informers = SharedInformers(kube)
        self._life: asyncio.Task[None] | None = None
        self._leader: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        pods = self._informers("Pod", label_selector="app.kubernetes.io/name=karpenter")
        await self._informers.synced()
        try:
            while True:
                changed = pods.changed
                await self._follow([pod for pod in pods.items() if _leads(pod)])
                # Setting a fault is not signalled; apart from that, only changes of the pods matter.
                try:
                    async with asyncio.timeout(1.0):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            await self._stop()
            await self._informers.close()

    async def _follow(self, pods: list[Object]) -> None:
        """
        :param pods: the pods that could lead. The leader keeps leading until its pod is deleted; the next has its own
            settings.
        """
        leader = next((pod for pod in pods if uid(pod) == self._leader), None)
        if leader is None or self._settings.faults.active("stopped") is not None:
            await self._stop()
            leader = pods[0] if pods else None
        if self._life is not None and self._life.done():
            error = self._life.exception() if not self._life.cancelled() else None
            log.error("Karpenter crashed; restarting it", exc_info=error)
            self._life = None
        if self._life is None and leader is not None and self._settings.faults.active("stopped") is None:
            self._leader = uid(leader)
            overlays = gate(leader, "NodeOverlay")
            karpenter = Karpenter(
                self._settings,
                self._clock,
                self._kube,
                self._aws,
                _queue_of(leader),
                overlays=overlays,
                reserved=gate(leader, "ReservedCapacity", default=True),
            )
            self._life = asyncio.create_task(karpenter.run(), name="karpenter")

    async def _stop(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            self._life = None


def _leads(pod: Object) -> bool:
    return is_true(pod, "Ready") and not deleting(pod)


def _queue_of(pod: Object) -> str | None:
    """The chart hands ``settings.interruptionQueue`` to the controller in its environment."""
    for container in pod["spec"]["containers"]:
        for item in container.get("env") or []:
            if item["name"] == "INTERRUPTION_QUEUE" and item.get("value"):
                return str(item["value"])
    return None
