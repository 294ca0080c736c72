"""One EC2 instance as a node: it registers, becomes ready, beats, and runs the pods that are bound to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from sandbox.informers import Change
from sandbox.kube import Kube, now
from sandbox.nodes import nodeobject
from sandbox.nodes.ailments import Ailments, ailments_of
from sandbox.nodes.devices import DeviceManager
from sandbox.nodes.gpus import gpus_of
from sandbox.nodes.images import ImageStore, parse_reference
from sandbox.nodes.plugin_config import Sharing
from sandbox.nodes.pod import PodWorker
from sandbox.nodes.processes import Process
from sandbox.nodes.shapes import Shape
from sandbox.resources import ApiError

if TYPE_CHECKING:
    from sandbox.nodes.fleet import Fleet
    from sandbox.nodes.plugin import PluginPod

log = logging.getLogger("sandbox.nodes")

LEASE_NAMESPACE = "kube-node-lease"
#: The kubelet renews its Lease every 10 s, which may last 40 s (``nodeLeaseDurationSeconds``). Simulated seconds; the
#: real pause has a floor, or a fast sandbox would do nothing else.
LEASE_SECONDS, LEASE_INTERVAL, LEAST_PAUSE = 40, 10.0, 1.0
_RETRY = 0.5
#: Simulated seconds between two attempts of a kubelet that is not let in (``registerWithAPIServer``: up to 7 s).
_REGISTRATION_PAUSE = 7.0
_FAULT_LOOK = 2.0
#: Simulated seconds after which the kubelet forgets the resources of a plugin that went away (kubernetes
#: ``pkg/kubelet/cm/devicemanager/endpoint.go``, endpointStopGracePeriod).
PLUGIN_GRACE = 300.0
_ERRORS = (ApiError, aiohttp.ClientError, OSError, TimeoutError)


class Machine:
    """
    :ivar folder: private files of this node; removed with it.
    :param existing: it joined long before the sandbox's first look.
    :param registration: labels and taints that its user data asks for.
    :ivar connected: the device plugins' processes that the kubelet has a stream of devices from, with their resource.
        One socket is served by one at a time: each removes the file of the other before it listens (NVIDIA/
        k8s-device-plugin v0.20.0 ``internal/plugin/server.go``, Serve), which ends no stream that is open already.
    :ivar plugin_pod: the pod of the plugin that registered last, whose devices the kubelet shows.
    :ivar ailments: what faults do to the GPUs now.
    :ivar ailments_changed: set at the next change of those and then replaced.
    :ivar labels_changed: set at the next change of the node's labels and then replaced.
    """

    def __init__(
        self,
        fleet: Fleet,
        instance: dict[str, Any],
        shape: Shape,
        *,
        existing: bool,
        registration: tuple[dict[str, str], list[dict[str, str]]] = ({}, []),
    ) -> None:
        self.fleet = fleet
        self.clock = fleet.clock
        self.kube: Kube = fleet.kube
        self.latencies = fleet.latencies
        self.recorder = fleet.recorder
        self.logs = fleet.logs
        self.instance = instance
        self.shape = shape
        self.name = nodeobject.node_name(instance)
        self.ip: str = instance["PrivateIpAddress"]
        self.gpus = gpus_of(instance["InstanceId"], shape)
        self.devices = DeviceManager()
        self.images = ImageStore()
        self.folder: Path = fleet.folder / instance["InstanceId"]
        self.connected: dict[Process, str] = {}
        self.plugin_pod: PluginPod | None = None
        self.ailments = Ailments()
        self.ailments_changed = asyncio.Event()
        self.mps_daemons: set[int] = set()
        self.labels_changed = asyncio.Event()
        self._existing = existing
        self._registration = registration
        self._node: dict[str, Any] | None = None
        self._ready = False
        self._ready_since = ""
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._pulls: dict[str, asyncio.Lock] = {}
        self._publishing = asyncio.Lock()
        self._plugin_losses = 0
        self._accelerator_shown: int | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._pod_number = 0

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"node-{self.name}")

    async def stop(self) -> None:
        """Power off: no word to the API server, no process left."""
        tasks = [task for task in (self._task, *(task for _, task in self._workers.values())) if task is not None]
        tasks += self._background
        for worker, _ in self._workers.values():
            worker.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()

    async def _run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._register()
        self.fleet.attach(self)
        self.suffer()
        lease = asyncio.create_task(self._beat())
        try:
            if not self._ready:
                await self._become_ready()
            await lease
        finally:
            lease.cancel()
            await asyncio.gather(lease, return_exceptions=True)

    async def _register(self) -> None:
        if not self._existing and not await self._known():
            step = "node_register_gpu" if self.gpus else "node_register_cpu"
            await self.clock.sleep(self.latencies.sample(step), f"{self.instance['InstanceId']} joined as {self.name}")
        while True:
            pause = _RETRY
            try:
                if not await self._admitted():
                    pause = max(LEAST_PAUSE, self.clock.real(_REGISTRATION_PAUSE))
                elif await self._registered():
                    return
            except (*_ERRORS, ClientError, BotoCoreError) as error:
                log.warning("node %s: registration: %s", self.name, error)
            await asyncio.sleep(pause)

    async def _admitted(self) -> bool:
        """Whether EKS accepts this kubelet's identity; once it has registered it stays in."""
        return self._existing or await self._known() or await self.fleet.identity.joins(self.instance)

    async def _known(self) -> bool:
        """Whether the Node is there already: this process has been started anew."""
        found = await self.kube.find("Node", self.name)
        return found is not None and found["spec"].get("providerID") == nodeobject.provider_id(self.instance)

    async def _registered(self) -> bool:
        provider = nodeobject.provider_id(self.instance)
        found = await self.kube.find("Node", self.name)
        if found is not None:
            if found["spec"].get("providerID") != provider:
                return False  # a predecessor with the same address has not gone yet
            self._adopt(found)
            return True
        node = nodeobject.node_of(self.instance, self.shape, self.fleet.settings, *self._registration)
        moment = now()
        self._ready_since = moment
        status = nodeobject.status_of(self.instance, self.shape, self.fleet.settings, moment)
        created = await self.kube.create(node | {"status": status})
        # A real API server drops the status of a POST for kinds with a status subresource; nodes keep it. Either way:
        self._node = created
        if not (created.get("status") or {}).get("nodeInfo", {}).get("kubeletVersion"):
            self._node = await self.kube.patch_status("Node", self.name, status)
        self.recorder.event(created, "Starting", "Starting kubelet.")
        self.recorder.event(
            created, "RegisteredNode", f"Node {self.name} event: Registered Node {self.name} in Controller"
        )
        return True

    def _adopt(self, node: dict[str, Any]) -> None:
        """A node that this process (restarted) had registered before."""
        self._node = node
        ready = nodeobject.ready_condition(node)
        self._ready = ready.get("status") == "True"
        self._ready_since = ready.get("lastTransitionTime") or now()

    async def _become_ready(self) -> None:
        if not self._existing:
            await self.clock.sleep(self.latencies.sample("node_ready"), f"{self.name} became ready")
        while self._never_ready():  # noqa: ASYNC110 - faults are polled: nobody announces that one is cleared
            await asyncio.sleep(self.clock.real(_FAULT_LOOK))
        self._ready, self._ready_since = True, now()
        await self._put_conditions()
        if self._node is not None:
            self.recorder.event(self._node, "NodeReady", f"Node {self.name} status is now: NodeReady")

    def _never_ready(self) -> bool:
        """The fault is about nodes of pools; the cluster's own nodes stay as they are."""
        return bool(self.pool) and self.fault("node-never-ready") is not None

    async def _beat(self) -> None:
        """Renew the Lease; report again when the API server shows another state than the kubelet's."""
        while True:
            try:
                if self.fault("kubelet-dead") is None:
                    await self._renew()
                shown = nodeobject.ready_condition(self._node or {})
                if shown and shown["status"] == "Unknown" and self.fault("kubelet-dead") is None:
                    self._ready_since = now()
                    await self._put_conditions()
            except _ERRORS as error:
                log.debug("node %s: heartbeat: %r", self.name, error)
            await asyncio.sleep(max(self.clock.real(LEASE_INTERVAL), LEAST_PAUSE))

    async def _renew(self) -> None:
        renewed = {"renewTime": now(micro=True)}
        try:
            await self.kube.patch("Lease", self.name, {"spec": renewed}, LEASE_NAMESPACE)
        except ApiError as error:
            if not error.not_found or self._node is None:
                raise
            meta = self._node["metadata"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": meta["uid"]}
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS} | renewed
            await self.kube.create(
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self.name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                    "spec": spec,
                }
            )

    async def _put_conditions(self) -> None:
        while True:
            try:
                shown = nodeobject.conditions(self._ready, self._ready_since, now())
                await self._patch_conditions(shown)
                return
            except _ERRORS as error:
                if isinstance(error, ApiError) and error.not_found:
                    return
                log.warning("node %s: conditions: %s", self.name, error)
                await asyncio.sleep(_RETRY)

    async def _patch_conditions(self, conditions: list[dict[str, Any]]) -> None:
        """Conditions of other types stay: the list is merged by type."""
        body = {"status": {"conditions": conditions}}
        await self.kube.patch("Node", self.name, body, type="strategic", subresource="status")

    # --- the Node object -----------------------------------------------------------------------------------------

    @property
    def pool(self) -> str | None:
        return nodeobject.tags_of(self.instance).get(nodeobject.POOL_TAG)

    def label(self, key: str) -> str | None:
        value = ((self._node or {}).get("metadata", {}).get("labels") or {}).get(key)
        return None if value is None else str(value)

    def node_changed(self, node: dict[str, Any]) -> None:
        """A newer version of the Node object."""
        before = ((self._node or {}).get("metadata", {}).get("labels")) or {}
        self._node = node
        if (node["metadata"].get("labels") or {}) != before:
            changed, self.labels_changed = self.labels_changed, asyncio.Event()
            changed.set()

    async def publish_devices(self) -> None:
        """Write the announced devices into the node's capacity and allocatable."""
        async with self._publishing:
            while True:
                try:
                    status = {"capacity": self.devices.capacity(), "allocatable": self.devices.allocatable()}
                    await self.kube.patch_status("Node", self.name, status)
                    return
                except _ERRORS as error:
                    if isinstance(error, ApiError) and error.not_found:
                        return
                    await asyncio.sleep(_RETRY)

    def plugin_serves(self, process: Process, pod: PluginPod, sharing: Sharing, replicas: int) -> None:
        """A plugin has registered with the kubelet: of several for one resource the last one's devices count."""
        self.connected[process] = sharing.resource
        self.plugin_pod = pod
        self._plugin_losses += 1
        self.devices.register(self.gpus, sharing, replicas)

    def plugin_ended(self, process: Process) -> None:
        """The kubelet loses a plugin's stream.

        It knows a resource by its name alone: when *any* of the plugins that registered it goes away, also one whose
        devices were replaced long ago, all of the resource's devices become unhealthy (kubernetes
        ``pkg/kubelet/cm/devicemanager/plugin/v1beta1/handler.go``, runClient; ``manager.go``, PluginDisconnected). The
        other one notices nothing: it registers at its start, on SIGHUP and when ``kubelet.sock`` is created, at no
        other time (k8s-device-plugin ``cmd/nvidia-device-plugin/main.go``).
        """
        resource = self.connected.pop(process, None)
        if resource is not None:
            if self.plugin_pod is not None and resource not in self.connected.values():
                self.plugin_pod = None
            self.devices.unregister(resource)
            self._plugin_losses += 1
            self.keep(self.publish_devices(), f"devices of {self.name}")
            self.keep(self._forget_devices(self._plugin_losses), f"grace of {self.name}")

    async def _forget_devices(self, losses: int) -> None:
        await self.clock.sleep(PLUGIN_GRACE)
        if losses == self._plugin_losses:
            self.devices.forget()
            await self.publish_devices()

    def mps_healthy(self) -> bool:
        return bool(self.mps_daemons) and self.label("nvidia.com/mps.capable") == "true"

    def gpu_table(self) -> Path:
        """The file that the fake ``nvidia-smi`` and ``libcuda`` read."""
        table = self.folder / "gpus.tsv"
        if not table.exists():
            self._write_gpu_table()
        return table

    def _write_gpu_table(self) -> None:
        fresh = self.folder / "gpus.tsv.new"
        fresh.write_text(self.ailments.table(self.gpus))
        fresh.replace(self.folder / "gpus.tsv")

    # --- faults --------------------------------------------------------------------------------------------------

    def fault(self, name: str) -> dict[str, Any] | None:
        """The parameters of the first fault of this kind that is set and means this node."""
        return next((params for params in self.fleet.settings.faults.each(name) if self._meant(params)), None)

    def _meant(self, params: dict[str, Any]) -> bool:
        if not self.name.startswith(str(params.get("nodeNamePrefix", ""))):
            return False
        wanted = params.get("node", self.name)
        here = self.name in (wanted if isinstance(wanted, list) else [wanted])
        return here and params.get("pool", self.pool) == self.pool

    def suffer(self) -> None:
        """Some fault was set or cleared: what it does to the GPUs begins or ends now."""
        before, self.ailments = self.ailments, ailments_of(self.fault, self.gpus, self.instance["InstanceId"])
        if before == self.ailments or not self.folder.exists():
            return
        changed, self.ailments_changed = self.ailments_changed, asyncio.Event()
        changed.set()
        self._write_gpu_table()
        self.devices.lost, self.devices.struck = self.ailments.lost, self.ailments.struck
        if before.announcement != self.ailments.announcement and self.plugin_pod is not None:
            self.plugin_pod.hangup.set()
        self.keep(self._show_ailments(), f"ailments of {self.name}")

    async def _show_ailments(self) -> None:
        if self.devices.announced:
            await self.publish_devices()
        async with self._publishing:
            xid, shown = self.ailments.xid, self._accelerator_shown
            if xid == shown or self._node is None:
                return
            self._accelerator_shown = xid
            if xid is not None and xid not in nodeobject.TERMINAL_XIDS:
                self.recorder.event(self._node, nodeobject.ACCELERATOR, nodeobject.xid_warning(xid), "Warning")
                return
            await self._patch_conditions([nodeobject.accelerator_condition(xid, now())])

    # --- pods ---------------------------------------------------------------------------------------------------

    def pod_changed(self, change: Change, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        known = self._workers.get(uid)
        if change == "DELETED":
            if known is not None:
                known[0].removed()
            return
        if known is not None:
            known[0].update(pod)
            return
        worker = PodWorker(self, pod)
        task = asyncio.create_task(worker.run(), name=f"pod-{worker.name}")
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._pod_done(uid, done))

    def _pod_done(self, uid: str, task: asyncio.Task[None]) -> None:
        self._workers.pop(uid, None)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("node %s: pod %s: %r; its worker starts again", self.name, uid, error, exc_info=error)
            self.keep(self._again(uid), f"again-{uid}")

    async def _again(self, uid: str) -> None:
        """A worker that failed is replaced, as a kubelet that is started again would take the pod over."""
        await asyncio.sleep(_RETRY)
        for pod in self.fleet.pods_on(self.name):
            if pod["metadata"]["uid"] == uid:
                self.pod_changed("MODIFIED", pod)

    def keep(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something beside the pods, until the machine stops."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def handle_sigterm(self) -> None:
        await self.clock.sleep(self.latencies.sample("pod_terminate"), f"container on {self.name} handled SIGTERM")

    def next_pod_ip(self) -> str:
        """An address in the node's own /16, as the VPC CNI hands them out."""
        self._pod_number += 1
        first, second, third, _ = self.ip.split(".")
        return f"{first}.{second}.{(int(third) + 128) % 256}.{self._pod_number % 254 + 1}"

    def pull_lock(self, image: str) -> asyncio.Lock:
        return self._pulls.setdefault(str(parse_reference(image)), asyncio.Lock())
