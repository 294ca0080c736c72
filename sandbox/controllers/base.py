"""What every controller is made of: shared caches, a work queue, an event recorder, and a way to be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sandbox.controllers.allkinds import AllKinds
from sandbox.controllers.objects import Object, status_patch
from sandbox.kube.client import Kube
from sandbox.kube.informers import Change, Handler, Informer, SharedInformers
from sandbox.kube.workqueue import WorkQueue
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.controllers")


class Recorder:
    """Posts events in the background, in order: a slow event must not hold up the controller that reports it."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._queue: asyncio.Queue[tuple[Object, str, str, str, Any]] = asyncio.Queue(maxsize=1000)

    def event(
        self,
        involved: Object,
        reason: str,
        message: str,
        *,
        component: str,
        kind: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # client-go's broadcaster drops too
            self._queue.put_nowait((involved, reason, message, component, kind))

    async def run(self) -> None:
        while True:
            involved, reason, message, component, kind = await self._queue.get()
            await self._kube.post_event(involved, reason, message, component=component, type=kind)


@dataclass
class Context:
    """What the controllers of one process share."""

    settings: Settings
    clock: Clock
    kube: Kube
    informers: SharedInformers = field(init=False)
    recorder: Recorder = field(init=False)
    all_kinds: AllKinds = field(init=False)

    def __post_init__(self) -> None:
        self.informers = SharedInformers(self.kube)
        self.recorder = Recorder(self.kube)
        self.all_kinds = AllKinds(self.kube, self.informers)


class Controller(ABC):
    """One control loop: handlers put keys into :attr:`queue`, :meth:`reconcile` makes one key true.

    :cvar name: the component named in events, as the real controller's.
    :cvar workers: keys reconciled at the same time.
    """

    name: ClassVar[str]
    workers: ClassVar[int] = 2

    def __init__(self, context: Context) -> None:
        self.context = context
        self.kube = context.kube
        self.clock = context.clock
        self.queue = WorkQueue()
        self._removers: list[Callable[[], None]] = []

    @abstractmethod
    def wire(self) -> None:
        """Name the kinds to watch and what each change puts into the queue."""

    @abstractmethod
    async def reconcile(self, key: Any) -> None:
        """Make one key true; raising means 'again later'."""

    def watch(self, kind: str, handler: Handler | None = None) -> Informer:
        informer = self.context.informers(kind)
        if handler is not None:
            self._removers.append(informer.add_handler(handler))
        return informer

    def watch_keys(self, kind: str) -> Informer:
        """Watch a kind and queue each changed object's own ``(namespace, name)``."""

        def queue(_change: Change, new: Object, _old: Object | None) -> None:
            self.queue.add((new["metadata"].get("namespace") or "", new["metadata"]["name"]))

        return self.watch(kind, queue)

    def event(self, involved: Object, reason: str, message: str, kind: Literal["Normal", "Warning"] = "Normal") -> None:
        self.context.recorder.event(involved, reason, message, component=self.name, kind=kind)

    async def write_status(self, obj: Object, status: Object) -> bool:
        """Bring an object's status to ``status``; False when it was so already."""
        patch = status_patch(obj.get("status"), status)
        if patch is None:
            return False
        metadata = obj["metadata"]
        answer = await self.kube.patch_status(obj["kind"], metadata["name"], patch, metadata.get("namespace"))
        await self.context.informers(obj["kind"]).caught_up(answer)
        return True

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            self.wire()
            await self.context.informers.synced()
            await self.queue.run(self.reconcile, self.workers)
        finally:
            for remove in self._removers:
                remove()
            self._removers.clear()


async def keep_running(make: Callable[[], Controller]) -> None:
    """Run a controller until cancelled; restart it after a crash, with an increasing back-off (0.2 to 10 s)."""
    delay = 0.2
    while True:
        controller = make()
        started = asyncio.get_running_loop().time()
        try:
            await controller.run()
        except Exception:
            log.exception("%s crashed; restarting it", controller.name)
        if asyncio.get_running_loop().time() - started > 60:
            delay = 0.2
        await asyncio.sleep(delay)
        delay = min(delay * 2, 10.0)
