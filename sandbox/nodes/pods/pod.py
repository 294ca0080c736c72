"""One pod on its node, from admission to its end, after kubernetes/kubernetes ``pkg/kubelet/pod_workers.go``."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.kube.recorder import EventType
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now
from sandbox.nodes.gpus.devices import AdmissionError
from sandbox.nodes.host import Host
from sandbox.nodes.pods.container import ContainerRun
from sandbox.nodes.pods.launch import PLUGIN_IMAGE
from sandbox.nodes.pods.plugin import PluginPod
from sandbox.nodes.pods.podstatus import PodFacts, status_of
from sandbox.nodes.runtime.environment import missing_volume
from sandbox.nodes.runtime.execution import clean_up

log = logging.getLogger("sandbox.nodes")

# Simulated seconds between attempts of the kubelet's pod sync.
_SANDBOX_RETRY = 12.0
_VOLUME_RETRY = 2.0
_MIRROR = "kubernetes.io/config.mirror"
_OVER = ("Succeeded", "Failed")


class PodWorker:
    """Owns one pod UID on one machine."""

    def __init__(self, host: Host, pod: dict[str, Any]) -> None:
        self.host = host
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.name: str = pod["metadata"]["name"]
        self.has_init = bool(pod["spec"].get("initContainers"))
        self.over = False
        self.pod_ip = host.ip if pod["spec"].get("hostNetwork") else host.next_pod_ip()
        self._sandboxed = False
        self._verdict: tuple[str, str, str] | None = None
        self._start_time = (pod.get("status") or {}).get("startTime") or now()
        self._deleting = asyncio.Event()
        self._gone = asyncio.Event()
        self._dirty = asyncio.Event()
        self._written: dict[str, Any] | None = None
        self._plugin: PluginPod | None = None
        self._sidecars: list[asyncio.Task[int]] = []
        self.init = [ContainerRun(self, spec, init=True) for spec in pod["spec"].get("initContainers") or []]
        self.main = [ContainerRun(self, spec) for spec in pod["spec"]["containers"]]
        self.update(pod)

    # --- input -------------------------------------------------------------------------------------------------

    def update(self, pod: dict[str, Any]) -> None:
        """A newer version of the object."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()

    def removed(self) -> None:
        """The object was deleted (forced deletion): there is no status left to report to."""
        self._gone.set()
        self._deleting.set()

    @property
    def gone(self) -> bool:
        """Whether the object is."""
        return self._gone.is_set()

    # --- used by containers --------------------------------------------------------------------------------------

    def folder(self, container: str) -> Path:
        return self.host.folder / "pods" / self.uid / container

    def plugin_pod(self) -> PluginPod | None:
        if self._plugin is None and any(PLUGIN_IMAGE in run.spec["image"] for run in [*self.init, *self.main]):
            self._plugin = PluginPod(self.host, self.pod)
        return self._plugin

    def event(self, reason: str, message: str, kind: EventType = "Normal") -> None:
        self.host.recorder.event(self.pod, reason, message, kind)

    def sync_soon(self) -> None:
        self._dirty.set()

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        writer = asyncio.create_task(self._write_status())
        life = asyncio.create_task(self._live())
        deleted = asyncio.create_task(self._deleting.wait())
        try:
            if (self.pod.get("status") or {}).get("phase") in _OVER:
                life.cancel()
                await deleted
            else:
                await asyncio.wait({life, deleted}, return_when=asyncio.FIRST_COMPLETED)
                if not deleted.done():
                    life.result()
                    self.host.devices.free(self.uid)
                    await deleted
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await self._terminate()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            if not self._gone.is_set():
                await self._finalize()
        finally:
            for task in (writer, life, deleted, *self._sidecars):
                task.cancel()
            self.kill()
            self.host.devices.free(self.uid)
            clean_up(self.host.folder / "pods" / self.uid)

    def kill(self) -> None:
        """All processes, now."""
        for run in [*self.init, *self.main]:
            if run.process is not None and not run.process.ended:
                run.process.kill()

    def running_since(self) -> float | None:
        """Since when a container of it runs (epoch seconds); ``None`` if none does, or if the pod belongs to its node.

        The latter are pods of DaemonSets and static pods, which exist for the node's sake.
        """
        meta = self.pod["metadata"]
        owners = {owner["kind"] for owner in meta.get("ownerReferences") or []}
        if owners & {"DaemonSet", "Node"} or _MIRROR in (meta.get("annotations") or {}):
            return None
        runs = [run for run in [*self.init, *self.main] if run.process is not None and not run.process.ended]
        return min((run.since for run in runs if not run.sidecar), default=None)

    async def _live(self) -> None:
        try:
            self.host.devices.admit(self.pod)
        except AdmissionError as error:
            self.event("UnexpectedAdmissionError", str(error), "Warning")
            await self._reject("UnexpectedAdmissionError", f"Pod was rejected: {error}")
            return
        self.sync_soon()
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            async with asyncio.timeout(None if limit is None else self.host.clock.real(limit)):
                await self._sandbox()
                if await self._initialize():
                    await asyncio.gather(*(run.run() for run in self.main))
        except TimeoutError:
            # The verdict first: containers that end before it is set would leave a failed pod without a reason.
            message = "Pod was active on the node longer than the specified deadline"
            self._verdict = ("Failed", "DeadlineExceeded", message)
            self.event("DeadlineExceeded", message)
            await self._stop_all(self.host.clock.real(self._grace()))
        self.over = True
        await self._stop_all(self.host.clock.real(self._grace()), sidecars_only=True)
        self.sync_soon()

    async def _reject(self, reason: str, message: str) -> None:
        self._verdict = ("Failed", reason, message)
        self.over = True
        self.sync_soon()

    async def _sandbox(self) -> None:
        """Volumes and runtime: what must be right before the first container."""
        while (complaint := await missing_volume(self.host.kube, self.pod)) is not None:
            self.event("FailedMount", complaint, "Warning")
            await self.host.clock.sleep(_VOLUME_RETRY)
        while (complaint := await self._runtime_complaint()) is not None:
            self.event("FailedCreatePodSandBox", f"Failed to create pod sandbox: {complaint}", "Warning")
            await self.host.clock.sleep(_SANDBOX_RETRY)
        self._sandboxed = True
        self.sync_soon()

    async def _runtime_complaint(self) -> str | None:
        name = self.pod["spec"].get("runtimeClassName")
        if not name:
            return None
        found = await self.host.kube.find("RuntimeClass", name)
        if found is None:
            return f'RuntimeClass "{name}" not found'
        handler = found["handler"]
        if handler == "runc" or (handler == "nvidia" and self.host.gpus):
            return None
        return (
            f'rpc error: code = Unknown desc = failed to get sandbox runtime: no runtime for "{handler}" is configured'
        )

    async def _initialize(self) -> bool:
        """Init containers one after the other; sidecars stay. False when one failed for good."""
        for run in self.init:
            if run.sidecar:
                self._sidecars.append(asyncio.create_task(run.run()))
                await run.first_started.wait()
            elif await run.run() != 0:
                return False
        return True

    # --- end -----------------------------------------------------------------------------------------------------

    def _grace(self) -> float:
        meta, spec = self.pod["metadata"], self.pod["spec"]
        given = meta.get("deletionGracePeriodSeconds")
        return float(spec.get("terminationGracePeriodSeconds", 30) if given is None else given)

    async def _stop_all(self, grace: float, *, sidecars_only: bool = False) -> None:
        async def stop(run: ContainerRun) -> None:
            process = run.process
            if process is None or process.ended:
                return
            self.event("Killing", f"Stopping container {run.state.name}")
            await process.stop(grace)
            await run.ended(await process.wait())
            run.state.done = True

        runs = [run for run in [*self.init, *self.main] if run.sidecar or not sidecars_only]
        await asyncio.gather(*(stop(run) for run in runs))

    async def _terminate(self) -> None:
        self.over = True
        # A forced deletion leaves no time; the kubelet's own minimum is one second.
        grace = 1.0 if self._gone.is_set() else max(1.0, self._grace())
        await self._stop_all(self.host.clock.real(grace))

    async def _finalize(self) -> None:
        """Last status, then the object itself: only the kubelet ends a bound pod."""
        try:
            await self._put_status()
            namespace = self.pod["metadata"]["namespace"]
            await self.host.kube.delete("Pod", self.name, namespace, uid=self.uid, grace_seconds=0)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise

    # --- status --------------------------------------------------------------------------------------------------

    def _facts(self) -> PodFacts:
        return PodFacts(
            init=[run.state for run in self.init if not run.sidecar],
            sidecars=[run.state for run in self.init if run.sidecar],
            main=[run.state for run in self.main],
            pod_ip=self.pod_ip,
            host_ip=self.host.ip,
            start_time=self._start_time,
            sandboxed=self._sandboxed,
            verdict=self._verdict,
            stopping=not self.over,
        )

    async def _write_status(self) -> None:
        """One write at a time; changes in the meantime are written together."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._put_status()
            except ApiError as error:
                if error.not_found or error.conflict:
                    return
                log.warning("status of pod %s: %s", self.name, error)
                await asyncio.sleep(0.5)
                self._dirty.set()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.debug("status of pod %s: %r", self.name, error)
                await asyncio.sleep(0.5)
                self._dirty.set()

    async def _put_status(self) -> None:
        status = status_of(self.pod, self._facts(), now())
        if status == self._written:
            return
        # With the uid, so that a successor of the same name (StatefulSet) does not get this pod's status.
        body = {"metadata": {"uid": self.uid}, "status": status}
        namespace = self.pod["metadata"]["namespace"]
        answer = await self.host.kube.patch("Pod", self.name, body, namespace, subresource="status")
        if not self._deleting.is_set():
            self.pod = {**self.pod, "status": answer["status"], "metadata": answer["metadata"]}
        self._written = status
