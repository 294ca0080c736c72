"""One container on its node: pull, create, start, end, and again as the restart policy says.

Reasons, messages and back-offs after kubernetes/kubernetes ``pkg/kubelet/kuberuntime`` and ``pkg/kubelet/images``.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from sandbox.kube.recorder import EventType
from sandbox.kube.times import now
from sandbox.nodes.host import Host
from sandbox.nodes.identity import without_credentials
from sandbox.nodes.pods.launch import KARPENTER_IMAGE, Start, container_id, is_probe, launch
from sandbox.nodes.pods.plugin import PluginPod
from sandbox.nodes.pods.podstatus import ContainerState
from sandbox.nodes.pods.probeoutput import altered
from sandbox.nodes.runtime import images
from sandbox.nodes.runtime.environment import MissingReference, resolve_env
from sandbox.nodes.runtime.processes import Process

# Simulated seconds.
BACKOFF_FIRST, BACKOFF_LARGEST = 10.0, 300.0
BACKOFF_RESET = 600.0
_REFERENCE_RETRY = 5.0
_REGISTRY_ANSWERS = 1.0
_SETTLE = 0.5
_MESSAGE_BYTES, _FALLBACK_BYTES, _FALLBACK_LINES = 4096, 2048, 80


class Worker(Protocol):
    """The pod of a container, as the container knows it.

    :ivar over: no container is started again.
    """

    host: Host
    pod: dict[str, Any]
    uid: str
    name: str
    has_init: bool
    over: bool
    pod_ip: str

    def folder(self, container: str) -> Path:
        """Private files of one container."""

    def plugin_pod(self) -> PluginPod | None:
        """What the containers share if this is the pod of a device plugin."""

    def event(self, reason: str, message: str, kind: EventType = "Normal") -> None:
        """Record an event about the pod."""

    def sync_soon(self) -> None:
        """A container's state has changed: write the pod's status."""


class ContainerRun:
    """Drives one container of a pod; its state is in :attr:`state`."""

    def __init__(self, worker: Worker, spec: dict[str, Any], *, init: bool = False) -> None:
        self.worker = worker
        self.host = worker.host
        self.spec = spec
        self.sidecar = init and spec.get("restartPolicy") == "Always"
        self.init = init and not self.sidecar
        creating = "PodInitializing" if worker.has_init else "ContainerCreating"
        self.state = ContainerState(spec["name"], spec["image"], state={"waiting": {"reason": creating}})
        self.process: Process | None = None
        #: Epoch seconds at which the newest process began.
        self.since = 0.0
        self.first_started = asyncio.Event()

    async def run(self) -> int:
        """Until the container will not be started again; its last exit code."""
        backoff = 0.0
        while True:
            await self._pull()
            started = asyncio.get_running_loop().time()
            code = await self._start_and_wait()
            if not self._again(code):
                self.state.done = True
                self.worker.sync_soon()
                return code
            if asyncio.get_running_loop().time() - started > self.host.clock.real(BACKOFF_RESET):
                backoff = 0.0
            await self._back_off(backoff)
            backoff = min(backoff * 2, BACKOFF_LARGEST) if backoff else BACKOFF_FIRST
            self.state.restarts += 1

    def _again(self, code: int) -> bool:
        if self.worker.over:
            return False
        if self.sidecar:
            return True
        policy = self.worker.pod["spec"].get("restartPolicy", "Always")
        if self.init:
            return code != 0 and policy != "Never"
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    async def _back_off(self, seconds: float) -> None:
        self.state.last_state = {"terminated": self.state.state["terminated"]}
        if not seconds:  # the first restart is at once
            return
        meta = self.worker.pod["metadata"]
        where = f"{self.state.name} in pod {meta['name']}_{meta['namespace']}({meta['uid']})"
        self._wait_for(
            "CrashLoopBackOff",
            f"back-off {_span(seconds)} restarting failed container={self.state.name} "
            f"pod={meta['name']}_{meta['namespace']}({meta['uid']})",
        )
        self.worker.event("BackOff", f"Back-off restarting failed container {where}", "Warning")
        await self.host.clock.sleep(seconds)

    def _wait_for(self, reason: str, message: str | None = None) -> None:
        self.state.state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        self.state.ready = False
        self.worker.sync_soon()

    # --- image -------------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        """Until the node has the image."""
        image, policy = self.spec["image"], self.spec.get("imagePullPolicy", "IfNotPresent")
        store = self.host.images
        backoff = BACKOFF_FIRST
        while True:
            if store.has(image) and policy != "Always":
                self.worker.event("Pulled", f'Container image "{image}" already present on machine')
                break
            if policy == "Never":
                self._failed_pull(
                    "ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never'
                )
            else:
                try:
                    await self._pull_once(image)
                    break
                except images.PullError as error:
                    message = f"rpc error: code = NotFound desc = {error}"
                    self.worker.event("Failed", f'Failed to pull image "{image}": {message}', "Warning")
                    self._failed_pull("ErrImagePull", message)
            await self.host.clock.sleep(_REGISTRY_ANSWERS)
            last = self.state.state["waiting"]
            if last["reason"] == "ErrImagePull":
                self.worker.event("BackOff", f'Back-off pulling image "{image}"')
                self.worker.event("Failed", "Error: ImagePullBackOff", "Warning")
                self._wait_for("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {last["message"]}')
            await self.host.clock.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_LARGEST)
        self.state.image_id = store.image_id(image)

    def _failed_pull(self, reason: str, message: str) -> None:
        self.worker.event("Failed", f"Error: {reason}", "Warning")
        self._wait_for(reason, message)

    async def _pull_once(self, image: str) -> None:
        clock, store = self.host.clock, self.host.images
        self.worker.event("Pulling", f'Pulling image "{image}"')
        began = asyncio.get_running_loop().time()
        fault = self.host.fault("image-unpullable")
        if fault is not None and str(fault.get("image", "")) in image:
            await clock.sleep(_REGISTRY_ANSWERS)
            reference = images.parse_reference(image)
            raise images.PullError(
                f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
                f"{reference}: not found"
            )
        async with self.host.pull_lock(image):
            if not store.has(image):
                try:
                    repository = images.resolve(image)
                except images.PullError:
                    await clock.sleep(_REGISTRY_ANSWERS)
                    raise
                if (step := images.pull_step(repository)) is not None:
                    large = repository.megabytes >= images.LARGE_MB
                    seconds = (
                        images.pull_seconds(repository, self.host.boot.disk)
                        if large
                        else self.host.latencies.sample(step)
                    )
                    await clock.sleep(seconds, f"{image} pulled on {self.host.name}")
                store.keep(image, repository)
        took = (asyncio.get_running_loop().time() - began) * clock.speed
        size = store.present[str(images.parse_reference(image))].megabytes * 1_000_000
        self.worker.event(
            "Pulled",
            f'Successfully pulled image "{image}" in {took:.3f}s ({took:.3f}s including waiting). '
            f"Image size: {size} bytes.",
        )

    # --- process -----------------------------------------------------------------------------------------------

    async def _start_and_wait(self) -> int:
        clock, name = self.host.clock, self.state.name
        start = await self._prepared()
        self.state.container_id = container_id(self.worker.uid, name, self.state.restarts)
        self.worker.event("Created", f"Created container: {name}")
        seconds = self.host.latencies.sample("container_start")
        await clock.sleep(seconds, f"{self.worker.name}/{name} started")
        began = now()
        self.process = await self._launched(start)
        self.since = time.time()
        self.process.listen(lambda: self.host.logs.changed(self.worker.pod, name, self.output))
        self.worker.event("Started", f"Started container {name}")
        self.state.ever_started = True
        self.first_started.set()
        ending = asyncio.ensure_future(self.process.wait())
        leading: asyncio.Future[None] | None = None
        if KARPENTER_IMAGE in self.spec["image"]:
            seconds = self.host.latencies.sample("karpenter_start")
            leading = asyncio.ensure_future(clock.sleep(seconds, f"{self.worker.name} leads"))
        try:
            # What ends at once is never seen running: the kubelet looks at its runtime once a second.
            await asyncio.wait({ending}, timeout=clock.real(_SETTLE))
            if not ending.done():
                self.state.state = {"running": {"startedAt": began}}
                self.state.ready = leading is None and not self.init
                self.worker.sync_soon()
            if leading is not None:
                both: set[asyncio.Future[Any]] = {ending, leading}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not ending.done():
                    self.state.ready = True
                    self.worker.sync_soon()
            code = await ending
        finally:
            for task in (ending, leading):
                if task is not None:
                    task.cancel()
        await self.ended(code, began)
        return code

    async def _launched(self, start: Start) -> Process:
        """The container's process; Karpenter's controller ends at once where nothing gives it AWS credentials."""
        if KARPENTER_IMAGE in self.spec["image"]:
            identity = self.host.context.identity
            if not await identity.has_credentials(self.worker.pod, start.env):
                return without_credentials(start.env)
        return await launch(start)

    async def ended(self, code: int, began: str | None = None) -> None:
        """Take over the end of the process into the state."""
        if began is None:
            began = self.state.state.get("running", {}).get("startedAt") or now()
        ended: dict[str, Any] = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": began,
            "finishedAt": now(),
            "containerID": self.state.container_id,
        }
        if message := self._message(code):
            ended["message"] = message
        self.state.state = {"terminated": ended}
        self.state.ready = self.init and code == 0
        await self.host.logs.upload(self.worker.pod, self.state.name, self.output)
        self.worker.sync_soon()

    def output(self) -> str:
        return self.process.output() if self.process else ""

    def _message(self, code: int) -> str:
        """The termination message: its file, else (if the pod wants so) the end of a failed container's log."""
        path = self.worker.folder(self.state.name) / "termination-log"
        content = path.read_bytes() if path.is_file() else b""
        fault = self.host.fault("probe-output")
        if fault is not None and is_probe(self.spec) and str(fault.get("image", "")) in self.spec["image"]:
            content = altered(content.decode(errors="replace"), fault).encode()
        written = content[:_MESSAGE_BYTES].decode(errors="replace")
        if not written and code != 0 and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.output().splitlines(keepends=True)[-_FALLBACK_LINES:]
            return "".join(lines).encode()[-_FALLBACK_BYTES:].decode(errors="replace")
        return written

    async def _prepared(self) -> Start:
        """Environment resolved; waits with CreateContainerConfigError while something it names is missing."""
        addresses = {"podIP": self.worker.pod_ip, "hostIP": self.host.ip}
        while True:
            try:
                env = await resolve_env(self.host.kube, self.worker.pod, self.spec, addresses)
                break
            except MissingReference as error:
                self.worker.event("Failed", f"Error: {error}", "Warning")
                self._wait_for("CreateContainerConfigError", str(error))
                await self.host.clock.sleep(_REFERENCE_RETRY)
        folder = self.worker.folder(self.state.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "termination-log").unlink(missing_ok=True)
        return Start(self.host, self.worker.pod, self.spec, env, folder, self.worker.plugin_pod())


def _span(seconds: float) -> str:
    """A Go duration: ``10s``, ``2m40s``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
