"""One EC2 instance as a node: it registers, becomes ready, renews its Lease, and runs the pods that are bound to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now
from sandbox.losses import Loss
from sandbox.nodes import nodeobject
from sandbox.nodes.host import REQUEST_ERRORS, RETRY, Host
from sandbox.nodes.pods import builtin
from sandbox.nodes.pods.pod import PodWorker
from sandbox.nodes.runtime.processes import Simulated

log = logging.getLogger("sandbox.nodes")

LEASE_NAMESPACE = "kube-node-lease"
#: The kubelet renews its Lease every 10 s, which may last 40 s (``nodeLeaseDurationSeconds``). Simulated seconds; the
#: real pause has a minimum, or a fast sandbox would do nothing but renew Leases.
LEASE_SECONDS, LEASE_INTERVAL, LEAST_PAUSE = 40, 10.0, 1.0
#: Simulated seconds between two attempts of a kubelet whose registration is refused (``registerWithAPIServer``: up to
#: 7 s).
_REGISTRATION_PAUSE = 7.0
_FAULT_LOOK = 2.0


class Machine:
    """
    :param existing: it joined long before the sandbox's first look.
    :param registration: labels and taints that its user data asks for.
    :param registered_as: called when its Node is registered: pods that are bound to it may start.
    :param pods_on: the pods that are bound to a node, by its name.
    """

    def __init__(
        self,
        host: Host,
        *,
        existing: bool,
        registration: tuple[dict[str, str], list[dict[str, str]]] = ({}, []),
        registered_as: Callable[[Machine], None],
        pods_on: Callable[[str], list[dict[str, Any]]],
    ) -> None:
        self.host = host
        self._existing = existing
        self._registration = registration
        self._registered_as = registered_as
        self._pods_on = pods_on
        self._ready = False
        self._ready_since = ""
        self._plugin: Simulated | None = None
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._finished: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"node-{self.host.name}")

    async def stop(self) -> None:
        """Power off: nothing is reported to the API server, and no process is left running."""
        tasks = [task for task in (self._task, *(task for _, task in self._workers.values())) if task is not None]
        for worker, _ in self._workers.values():
            worker.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self.host.stop(), return_exceptions=True)
        self._workers.clear()

    def running(self, state: str) -> list[Loss]:
        """The pods that would be lost if the machine went now.

        :param state: of the instance.
        """
        moment = time.time()
        found = []
        for worker, _ in self._workers.values():
            since = worker.running_since()
            if since is None:
                continue
            meta = worker.pod["metadata"]
            found.append(
                Loss(
                    namespace=meta["namespace"],
                    name=meta["name"],
                    uid=meta["uid"],
                    node=self.host.name,
                    instance=self.host.instance["InstanceId"],
                    pool=self.host.pool or "",
                    time=moment,
                    seconds=moment - since,
                    terminating="deletionTimestamp" in meta,
                    state=state,
                )
            )
        return found

    async def _run(self) -> None:
        self.host.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._register()
        self._registered_as(self)
        self.host.faults_changed()
        lease = asyncio.create_task(self._beat())
        try:
            if not self._ready:
                await self._become_ready()
            if self.host.boot.sharing is not None and self.host.gpus:
                self._plugin = builtin.start(self.host, self.host.boot.sharing)
            await lease
        finally:
            if self._plugin is not None:
                self._plugin.kill()
            lease.cancel()
            await asyncio.gather(lease, return_exceptions=True)

    async def _register(self) -> None:
        if not self._existing and not await self._known():
            step = "node_register_gpu" if self.host.gpus else "node_register_cpu"
            await self.host.clock.sleep(
                self.host.latencies.sample(step), f"{self.host.instance['InstanceId']} joined as {self.host.name}"
            )
        while True:
            pause = RETRY
            try:
                if not await self._admitted():
                    pause = max(LEAST_PAUSE, self.host.clock.real(_REGISTRATION_PAUSE))
                elif await self._registered():
                    return
            except (*REQUEST_ERRORS, ClientError, BotoCoreError) as error:
                log.warning("node %s: registration: %s", self.host.name, error)
            await asyncio.sleep(pause)

    async def _admitted(self) -> bool:
        """Whether EKS accepts this kubelet's identity; once it has registered it stays in."""
        return self._existing or await self._known() or await self.host.context.identity.joins(self.host.instance)

    async def _known(self) -> bool:
        """Whether the Node exists already: this process was restarted."""
        found = await self.host.kube.find("Node", self.host.name)
        return found is not None and found["spec"].get("providerID") == nodeobject.provider_id(self.host.instance)

    async def _registered(self) -> bool:
        provider = nodeobject.provider_id(self.host.instance)
        found = await self.host.kube.find("Node", self.host.name)
        if found is not None:
            if found["spec"].get("providerID") != provider:
                return False  # an earlier node with the same address still exists
            self._adopt(found)
            return True
        node = nodeobject.node_of(self.host.instance, self.host.shape, self.host.context.settings, *self._registration)
        moment = now()
        self._ready_since = moment
        status = nodeobject.status_of(self.host.instance, self.host.shape, self.host.context.settings, moment)
        boot = self.host.boot
        if boot.os_image:
            status["nodeInfo"]["osImage"] = boot.os_image
            node["metadata"]["labels"].pop(nodeobject.GPU_PRESENT, None)  # it is nodeadm that sets it
        if boot.raid:
            size = f"{self.host.shape.local_disk_gb}G"
            status["capacity"]["ephemeral-storage"] = status["allocatable"]["ephemeral-storage"] = size
        created = await self.host.kube.create(node | {"status": status})
        # A real API server drops the status of a POST for kinds with a status subresource; nodes keep it. Either way:
        self.host.node = created
        if not (created.get("status") or {}).get("nodeInfo", {}).get("kubeletVersion"):
            self.host.node = await self.host.kube.patch_status("Node", self.host.name, status)
        self.host.recorder.event(created, "Starting", "Starting kubelet.")
        self.host.recorder.event(
            created, "RegisteredNode", f"Node {self.host.name} event: Registered Node {self.host.name} in Controller"
        )
        return True

    def _adopt(self, node: dict[str, Any]) -> None:
        """A node that this process (restarted) had registered before."""
        self.host.node = node
        ready = nodeobject.ready_condition(node)
        self._ready = ready.get("status") == "True"
        self._ready_since = ready.get("lastTransitionTime") or now()

    async def _become_ready(self) -> None:
        if not self._existing:
            await self.host.clock.sleep(self.host.latencies.sample("node_ready"), f"{self.host.name} became ready")
        while self._never_ready():  # noqa: ASYNC110 - faults are polled here
            await asyncio.sleep(self.host.clock.real(_FAULT_LOOK))
        self._ready, self._ready_since = True, now()
        await self._put_conditions()
        if self.host.node is not None:
            self.host.recorder.event(self.host.node, "NodeReady", f"Node {self.host.name} status is now: NodeReady")

    def _never_ready(self) -> bool:
        """The fault is about nodes of pools; the cluster's own nodes stay as they are."""
        return bool(self.host.pool) and self.host.fault("node-never-ready") is not None

    async def _beat(self) -> None:
        """Renew the Lease; report the conditions again when the API server shows a different state."""
        while True:
            try:
                if self.host.fault("kubelet-dead") is None:
                    await self._renew()
                shown = nodeobject.ready_condition(self.host.node or {})
                if shown and shown["status"] == "Unknown" and self.host.fault("kubelet-dead") is None:
                    self._ready_since = now()
                    await self._put_conditions()
            except REQUEST_ERRORS as error:
                log.debug("node %s: heartbeat: %r", self.host.name, error)
            await asyncio.sleep(max(self.host.clock.real(LEASE_INTERVAL), LEAST_PAUSE))

    async def _renew(self) -> None:
        renewed = {"renewTime": now(micro=True)}
        try:
            await self.host.kube.patch("Lease", self.host.name, {"spec": renewed}, LEASE_NAMESPACE)
        except ApiError as error:
            if not error.not_found or self.host.node is None:
                raise
            meta = self.host.node["metadata"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": self.host.name, "uid": meta["uid"]}
            spec = {"holderIdentity": self.host.name, "leaseDurationSeconds": LEASE_SECONDS} | renewed
            await self.host.kube.create(
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self.host.name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                    "spec": spec,
                }
            )

    async def _put_conditions(self) -> None:
        while True:
            try:
                shown = nodeobject.conditions(self._ready, self._ready_since, now())
                await self.host.patch_conditions(shown)
                return
            except REQUEST_ERRORS as error:
                if isinstance(error, ApiError) and error.not_found:
                    return
                log.warning("node %s: conditions: %s", self.host.name, error)
                await asyncio.sleep(RETRY)

    # --- pods ----------------------------------------------------------------------------------------------------

    def pod_changed(self, change: Change, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        known = self._workers.get(uid)
        if change == "DELETED":
            self._finished.discard(uid)
            if known is not None:
                known[0].removed()
            return
        if uid in self._finished:
            # A finalizer keeps the object: a pod that has been terminated is not started again
            # (kubernetes v1.36 ``pkg/kubelet/pod_workers.go``, ``podSyncStatus.finished``).
            return
        if known is not None:
            known[0].update(pod)
            return
        worker = PodWorker(self.host, pod)
        task = asyncio.create_task(worker.run(), name=f"pod-{worker.name}")
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._pod_done(uid, done))

    def _pod_done(self, uid: str, task: asyncio.Task[None]) -> None:
        known = self._workers.pop(uid, None)
        if task.cancelled():
            return
        if task.exception() is None and known is not None and not known[0].gone:
            self._finished.add(uid)
        if (error := task.exception()) is not None:
            log.error("node %s: pod %s: %r; restarting its worker", self.host.name, uid, error, exc_info=error)
            self.host.keep(self._again(uid), f"again-{uid}")

    async def _again(self, uid: str) -> None:
        """Replace a worker that failed, as a restarted kubelet would take over the pod."""
        await asyncio.sleep(RETRY)
        for pod in self._pods_on(self.host.name):
            if pod["metadata"]["uid"] == uid:
                self.pod_changed("MODIFIED", pod)
