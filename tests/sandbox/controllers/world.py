"""A cluster for one test: the sandbox's API server, its controllers, and a kubelet of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.apiserver import serve
from sandbox.apiserver.access.auth import refuse_tokens
from sandbox.controllers import run
from sandbox.controllers.objects import is_finished, meta
from sandbox.kube.client import Kube
from sandbox.kube.informers import Informer, SharedInformers
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now
from sandbox.pki import Pki
from sandbox.settings import Clock, Settings

Object = dict[str, Any]
#: Real seconds after which an expectation of a test has failed.
TIMEOUT = 8.0


@dataclass
class World:
    settings: Settings
    kube: Kube
    informers: SharedInformers
    #: Pods of these images never become ready.
    broken: set[str] = field(default_factory=set)
    #: Nodes whose kubelet does nothing any more.
    dead: set[str] = field(default_factory=set)
    #: Seconds that a pod takes to stop.
    stopping: float = 0.0
    #: Starts the controllers.
    start: Callable[[], Coroutine[Any, Any, None]] | None = None
    running: asyncio.Task[None] | None = None

    async def restart_controllers(self) -> None:
        """Kill the controllers, wherever they are, and start them with empty caches."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        if self.start is not None:
            self.running = asyncio.create_task(self.start())

    async def create(self, *objects: Object) -> Object:
        """Create objects; a Node gets its status too. The last one, as created."""
        answer: Object = {}
        for obj in objects:
            answer = await self.kube.create(obj)
            if obj["kind"] == "Node":
                answer = await self.kube.patch_status("Node", meta(obj)["name"], obj["status"])
        return answer

    async def patch(self, kind: str, name: str, body: Object, namespace: str | None = None) -> None:
        """Patch, and wait until the test's own cache shows it."""
        answer = await self.kube.patch(kind, name, body, namespace)
        await self.informers(kind).caught_up(answer)

    async def until(
        self, kind: str, predicate: Callable[[Informer], Any], *, within: float = TIMEOUT, what: str = ""
    ) -> Any:
        informer = self.informers(kind)
        await informer.synced.wait()
        try:
            return await informer.wait_until(predicate, within)
        except TimeoutError:
            present = [(meta(obj)["name"], meta(obj).get("finalizers"), obj.get("status")) for obj in informer.items()]
            raise AssertionError(f"{what or kind} never came; there is {present}") from None

    async def object(self, kind: str, name: str, namespace: str | None, holds: Callable[[Object], Any]) -> Object:
        """Wait until one object looks as wanted."""

        def look(informer: Informer) -> Object | None:
            obj = informer.get(name, namespace)
            return obj if obj is not None and holds(obj) else None

        found: Object = await self.until(kind, look, what=f"{kind} {name}")
        return found

    async def gone(self, kind: str, name: str, namespace: str | None = None) -> None:
        await self.until(kind, lambda informer: informer.get(name, namespace) is None, what=f"end of {kind} {name}")

    async def pods(self, count: int, holds: Callable[[Object], Any], *, namespace: str = "default") -> list[Object]:
        """Wait until exactly ``count`` pods look as wanted."""

        def look(informer: Informer) -> list[Object] | None:
            found = [pod for pod in informer.items(namespace) if holds(pod)]
            return found if len(found) == count else None

        found: list[Object] = await self.until("Pod", look, what=f"{count} pods") if count else []
        if not count:
            await self.until("Pod", lambda informer: not any(map(holds, informer.items(namespace))))
        return found

    async def event(self, reason: str, holds: Callable[[Object], Any] = bool) -> Object:
        def look(informer: Informer) -> Object | None:
            return next((each for each in informer.items() if each["reason"] == reason and holds(each)), None)

        found: Object = await self.until("Event", look, what=f"event {reason}")
        return found

    # --- the kubelet -------------------------------------------------------------------------------------------

    async def kubelet(self) -> None:
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        pods = self.informers("Pod")
        pods.add_handler(lambda _change, pod, _old: queue.put_nowait((meta(pod)["namespace"], meta(pod)["name"])))
        while True:
            namespace, name = await queue.get()
            pod = pods.get(name, namespace)
            if pod is None or not pod["spec"].get("nodeName") or pod["spec"]["nodeName"] in self.dead:
                continue
            with contextlib.suppress(ApiError):
                if meta(pod).get("deletionTimestamp"):
                    await asyncio.sleep(self.stopping)
                    await self.kube.delete("Pod", name, namespace, grace_seconds=0, uid=meta(pod)["uid"])
                elif not is_finished(pod) and not (pod.get("status") or {}).get("startTime"):
                    await self.kube.patch_status("Pod", name, self._status(pod), namespace)

    def _status(self, pod: Object) -> Object:
        image = pod["spec"]["containers"][0]["image"]
        phase = {"succeed": "Succeeded", "fail": "Failed"}.get(image, "Running")
        ready = phase == "Running" and image not in self.broken
        kept = [each for each in pod["status"].get("conditions") or [] if each["type"] != "Ready"]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now()}
        return {"phase": phase, "startTime": now(), "conditions": [*kept, condition]}


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    *,
    speed: float = 10.0,
) -> AsyncIterator[World]:
    settings = Settings(state_dir=folder, speed=speed)
    pki = Pki(folder / "pki")
    server = await serve(settings, pki, refuse_tokens)
    config = pki.write_kubeconfig(folder / "kubeconfig", server.url)
    kube = Kube.from_kubeconfig(config, user_agent="test")
    part = Kube.from_kubeconfig(config, user_agent="controllers")
    informers = SharedInformers(kube)
    place = World(settings, kube, informers)
    place.start = lambda: run(settings, Clock(speed), part)
    kubelet = asyncio.create_task(place.kubelet())
    await place.restart_controllers()
    try:
        yield place
    finally:
        tasks = [kubelet] + ([place.running] if place.running else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await informers.close()
        await part.close()
        await kube.close()
        await server.close()
