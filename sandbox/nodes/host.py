"""One machine as its kubelet, its pods and their processes see it: identity, GPUs, devices, and the faults that hit it.

Pods, containers and the device plugin import this module; :mod:`sandbox.nodes.machine` runs pods on a :class:`Host`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from sandbox.aws.shapes import Shape
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now
from sandbox.nodes import nodeobject
from sandbox.nodes.boot import Boot
from sandbox.nodes.context import Context
from sandbox.nodes.gpus.devices import DeviceManager
from sandbox.nodes.gpus.faults import GpuFaults, gpu_faults_of
from sandbox.nodes.gpus.physical import gpus_of
from sandbox.nodes.gpus.plugin_config import Sharing
from sandbox.nodes.runtime.images import ImageStore, parse_reference
from sandbox.nodes.runtime.processes import Process

log = logging.getLogger("sandbox.nodes")

#: Simulated seconds after which the kubelet forgets the resources of a plugin that went away (kubernetes
#: ``pkg/kubelet/cm/devicemanager/endpoint.go``, endpointStopGracePeriod).
PLUGIN_GRACE = 300.0
#: What a request of a kubelet may fail with, and the real seconds until it is made again.
REQUEST_ERRORS, RETRY = (ApiError, aiohttp.ClientError, OSError, TimeoutError), 0.5


class ServingPlugin(Protocol):
    """The pod of a device plugin, as the machine knows it."""

    @property
    def hangup(self) -> asyncio.Event:
        """Set to make the plugin start again, as SIGHUP does."""


class Host:
    """
    :ivar folder: private files of this node; removed with it.
    :ivar node: the newest known version of its Node object.
    :ivar connected: the device plugins' processes that the kubelet has a stream of devices from, with their resource.
        One socket is served by one at a time: each removes the file of the other before it listens (NVIDIA/
        k8s-device-plugin v0.20.0 ``internal/plugin/server.go``, Serve), which ends no stream that is open already.
    :ivar plugin_pod: the pod of the plugin that registered last, whose devices the kubelet shows.
    :ivar gpu_faults: what faults do to the GPUs now.
    :ivar gpu_faults_changed: set at the next change of those and then replaced.
    :ivar labels_changed: set at the next change of the node's labels and then replaced.
    """

    def __init__(self, context: Context, instance: dict[str, Any], shape: Shape, boot: Boot | None = None) -> None:
        self.boot = boot or Boot()
        self.context = context
        self.clock = context.clock
        self.kube = context.kube
        self.latencies = context.latencies
        self.recorder = context.recorder
        self.logs = context.logs
        self.instance = instance
        self.shape = shape
        self.name = nodeobject.node_name(instance)
        self.ip: str = instance["PrivateIpAddress"]
        self.gpus = gpus_of(instance["InstanceId"], shape)
        self.devices = DeviceManager()
        self.images = ImageStore()
        self.folder: Path = context.folder / instance["InstanceId"]
        self.node: dict[str, Any] | None = None
        self.connected: dict[Process, str] = {}
        self.plugin_pod: ServingPlugin | None = None
        self.gpu_faults = GpuFaults()
        self.gpu_faults_changed = asyncio.Event()
        self.mps_daemons: set[int] = set()
        self.labels_changed = asyncio.Event()
        self._pulls: dict[str, asyncio.Lock] = {}
        self._publishing = asyncio.Lock()
        self._plugin_losses = 0
        self._accelerator_shown: int | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._pod_number = 0

    # --- background work -----------------------------------------------------------------------------------------

    def keep(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something beside the pods, until the machine stops."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self) -> None:
        """Cancel what :meth:`keep` runs."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the Node object -----------------------------------------------------------------------------------------

    @property
    def pool(self) -> str | None:
        return nodeobject.tags_of(self.instance).get(nodeobject.POOL_TAG)

    def label(self, key: str) -> str | None:
        value = ((self.node or {}).get("metadata", {}).get("labels") or {}).get(key)
        return None if value is None else str(value)

    def node_changed(self, node: dict[str, Any]) -> None:
        """A newer version of the Node object."""
        before = ((self.node or {}).get("metadata", {}).get("labels")) or {}
        self.node = node
        if (node["metadata"].get("labels") or {}) != before:
            changed, self.labels_changed = self.labels_changed, asyncio.Event()
            changed.set()

    async def patch_conditions(self, conditions: list[dict[str, Any]]) -> None:
        """Conditions of other types stay: the list is merged by type."""
        body = {"status": {"conditions": conditions}}
        await self.kube.patch("Node", self.name, body, type="strategic", subresource="status")

    # --- devices -------------------------------------------------------------------------------------------------

    async def publish_devices(self) -> None:
        """Write the announced devices into the node's capacity and allocatable."""
        async with self._publishing:
            while True:
                try:
                    status = {"capacity": self.devices.capacity(), "allocatable": self.devices.allocatable()}
                    await self.kube.patch_status("Node", self.name, status)
                    return
                except REQUEST_ERRORS as error:
                    if isinstance(error, ApiError) and error.not_found:
                        return
                    await asyncio.sleep(RETRY)

    def plugin_serves(self, process: Process, pod: ServingPlugin, sharing: Sharing, replicas: int) -> None:
        """A plugin has registered with the kubelet: of several for one resource the last one's devices count."""
        self.connected[process] = sharing.resource
        self.plugin_pod = pod
        self._plugin_losses += 1
        self.devices.register(self.gpus, sharing, replicas)

    def plugin_ended(self, process: Process) -> None:
        """The kubelet loses a plugin's stream.

        It knows a resource by its name alone: when *any* of the plugins that registered it disconnects, even one whose
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
        fresh.write_text(self.gpu_faults.table(self.gpus))
        fresh.replace(self.folder / "gpus.tsv")

    # --- faults --------------------------------------------------------------------------------------------------

    def fault(self, name: str) -> dict[str, Any] | None:
        """The parameters of the first fault of this kind that is set and applies to this node."""
        return next((params for params in self.context.settings.faults.each(name) if self._meant(params)), None)

    def _meant(self, params: dict[str, Any]) -> bool:
        if not self.name.startswith(str(params.get("nodeNamePrefix", ""))):
            return False
        wanted = params.get("node", self.name)
        here = self.name in (wanted if isinstance(wanted, list) else [wanted])
        return here and params.get("pool", self.pool) == self.pool

    def faults_changed(self) -> None:
        """A fault was set or cleared: apply or undo its effect on the GPUs."""
        before, self.gpu_faults = self.gpu_faults, gpu_faults_of(self.fault, self.gpus, self.instance["InstanceId"])
        if before == self.gpu_faults or not self.folder.exists():
            return
        changed, self.gpu_faults_changed = self.gpu_faults_changed, asyncio.Event()
        changed.set()
        self._write_gpu_table()
        self.devices.lost, self.devices.unhealthy = self.gpu_faults.lost, self.gpu_faults.unhealthy
        if before.announcement != self.gpu_faults.announcement and self.plugin_pod is not None:
            self.plugin_pod.hangup.set()
        self.keep(self._publish_gpu_faults(), f"GPU faults of {self.name}")

    async def _publish_gpu_faults(self) -> None:
        if self.devices.announced:
            await self.publish_devices()
        async with self._publishing:
            xid, shown = self.gpu_faults.xid, self._accelerator_shown
            if xid == shown or self.node is None:
                return
            self._accelerator_shown = xid
            if xid is not None and xid not in nodeobject.TERMINAL_XIDS:
                self.recorder.event(self.node, nodeobject.ACCELERATOR, nodeobject.xid_warning(xid), "Warning")
                return
            await self.patch_conditions([nodeobject.accelerator_condition(xid, now())])

    # --- what pods and containers ask for -----------------------------------------------------------------------

    async def handle_sigterm(self) -> None:
        await self.clock.sleep(self.latencies.sample("pod_terminate"), f"container on {self.name} handled SIGTERM")

    def next_pod_ip(self) -> str:
        """An address in the node's own /16, as the VPC CNI hands them out."""
        self._pod_number += 1
        first, second, third, _ = self.ip.split(".")
        return f"{first}.{second}.{(int(third) + 128) % 256}.{self._pod_number % 254 + 1}"

    def pull_lock(self, image: str) -> asyncio.Lock:
        return self._pulls.setdefault(str(parse_reference(image)), asyncio.Lock())
