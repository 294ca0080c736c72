"""Karpenter's controllers put together, and the leader that runs them while a Karpenter pod is Ready."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.aws.client import Aws
from sandbox.informers import Change, Informer, SharedInformers, WorkQueue
from sandbox.karpenter.catalog import Catalog
from sandbox.karpenter.cloud import Cloud, instance_id
from sandbox.karpenter.conditions import condition, is_true
from sandbox.karpenter.disruption import Disruption
from sandbox.karpenter.durations import epoch, timestamp
from sandbox.karpenter.events import Events
from sandbox.karpenter.interruption import Interruption
from sandbox.karpenter.lifecycle import ClaimLifecycle
from sandbox.karpenter.marks import ClaimMarks
from sandbox.karpenter.nodeclass import NodeClassController
from sandbox.karpenter.nodepool import NodePoolController
from sandbox.karpenter.objects import POOL, deleting, labels, name, provider_id, terminal, uid
from sandbox.karpenter.overlays import ALL, NodeOverlays, gate
from sandbox.karpenter.provisioner import Provisioner
from sandbox.karpenter.state import State
from sandbox.karpenter.termination import NodeTermination
from sandbox.kube import Kube, now
from sandbox.nodes.recorder import Recorder
from sandbox.resources import ApiError
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

# Simulated seconds.
_NOMINATION = 20.0  # how long a node counts as nominated (``state.NominationWindow``: 2 x BATCH_MAX)
_POD_EVENT_QUIET = 10.0
_COLLECT = 120.0
_EVICTION_RETRY, _EVICTION_LARGEST = 0.1, 10.0


class Karpenter:
    """One life of the controller: informers, queues, loops.

    :ivar registrations: by pool, whether the last node registered (True) or never did (False); taken by the pool's
        next reconcile.
    """

    def __init__(
        self, settings: Settings, clock: Clock, kube: Kube, aws: Aws, queue: str | None, *, overlays: bool = False
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.kube = kube
        self.aws = aws
        self.informers = SharedInformers(kube)
        self.pods, self.nodes = self.informers("Pod"), self.informers("Node")
        self.claims, self.pools = self.informers("NodeClaim"), self.informers("NodePool")
        self.node_classes = self.informers("EC2NodeClass")
        self.pdbs = self.informers("PodDisruptionBudget")
        self.node_overlays = NodeOverlays(self, enabled=overlays)
        self.overlay_queue = WorkQueue()
        self.state = State(self.pods, self.nodes, self.claims, self.informers("DaemonSet"))
        self.recorder = Recorder(kube, "karpenter")
        self.events = Events(self.recorder, clock.speed)
        self.cloud = Cloud(settings, clock, aws)
        self.catalog = Catalog(aws, settings.region)
        self.registrations: dict[str, bool] = {}
        largest = max(0.2, clock.real(60))
        self.node_class_queue = WorkQueue(largest_delay=largest)
        self.pool_queue, self.claim_queue = WorkQueue(), WorkQueue()
        self.mark_queue, self.node_queue, self.expire_queue = WorkQueue(), WorkQueue(), WorkQueue()
        self.eviction_queue = WorkQueue()
        self.provisioner = Provisioner(self)
        self._disruption = Disruption(self)
        self._termination = NodeTermination(self)
        self._interruption = Interruption(self, queue) if queue else None
        self._nominations: dict[str, float] = {}
        self._evictions: dict[Any, int] = {}
        self._turns: dict[tuple[str, str, str], float] = {}
        self._pod_events: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()

    @property
    def overlays(self) -> Informer:
        """Watched only with the feature gate: without it the kind need not even exist."""
        return self.informers("NodeOverlay")

    # --- run -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            if self.node_overlays.enabled:
                self.overlays.add_handler(self._overlays_changed)
            await self.informers.synced()
            self._wire()
            lifecycle = ClaimLifecycle(self)
            await self._disruption.tidy()
            work = [
                self.recorder.run(),
                self.node_class_queue.run(NodeClassController(self).reconcile, 2),
                self.pool_queue.run(NodePoolController(self).reconcile, 2),
                self.claim_queue.run(lifecycle.reconcile, 20),
                self.expire_queue.run(lifecycle.expire, 1),
                self.mark_queue.run(ClaimMarks(self).reconcile, 4),
                self.node_queue.run(self._termination.reconcile, 10),
                self.eviction_queue.run(self._termination.evict, 4),
                self.overlay_queue.run(self.node_overlays.reconcile, 1),
                self._again("provisioner", self.provisioner.run),
                self._again("disruption", self._disruption.run),
                self._again("garbage collection", self._collect),
            ]
            if self._interruption is not None:
                work.append(self._again("interruption", self._interruption.run))
            tasks = [asyncio.create_task(each) for each in work]
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.informers.close()

    async def _again(self, what: str, loop: Any) -> None:
        """A loop that fails starts again after a moment."""
        while True:
            try:
                await loop()
            except (ApiError, ClientError, BotoCoreError, OSError) as error:
                log.warning("%s: %s", what, error)
            except Exception:
                log.exception("%s stopped; it starts again", what)
            await asyncio.sleep(max(0.2, self.clock.real(1)))

    def _wire(self) -> None:
        self.node_classes.add_handler(self._class_changed)
        self.pools.add_handler(self._pool_changed)
        self.claims.add_handler(self._claim_changed)
        self.nodes.add_handler(self._node_changed)
        self.pods.add_handler(self._pod_changed)

    def _overlays_changed(self, change: Change, obj: Object, old: Object | None) -> None:
        """Any change of an overlay, a pool or a node class makes all be compared again; their status changes none."""
        generation = obj["metadata"].get("generation")
        if self.node_overlays.enabled and (
            change != "MODIFIED" or old is None or old["metadata"].get("generation") != generation
        ):
            self.overlay_queue.add(ALL)

    def _class_changed(self, _change: Change, node_class: Object, old: Object | None) -> None:
        self.node_class_queue.add(name(node_class))
        if self.node_overlays.enabled and _subnets(node_class) != _subnets(old):
            self.overlay_queue.add(ALL)  # until then its pools had no instance types to compare
        for pool in self.pools.items():
            if pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] == name(node_class):
                self.pool_queue.add(name(pool))
        for claim in self.claims.items():
            self.mark_queue.add(name(claim))

    def _pool_changed(self, change: Change, pool: Object, old: Object | None) -> None:
        self._overlays_changed(change, pool, old)
        self.pool_queue.add(name(pool))
        for claim in self.claims.items():
            if labels(claim).get(POOL) == name(pool):
                self.mark_queue.add(name(claim))

    def _claim_changed(self, change: Change, claim: Object, old: Object | None) -> None:
        if change == "DELETED":
            self.node_class_queue.add(claim["spec"]["nodeClassRef"]["name"])
        self.claim_queue.add(name(claim))
        self.mark_queue.add(name(claim))
        if change == "MODIFIED" and deleting(claim) and old is not None and not deleting(old):
            self.provisioner.trigger()

    def _node_changed(self, change: Change, node: Object, _old: Object | None) -> None:
        if deleting(node) and change != "DELETED":
            self.node_queue.add(name(node))
        for claim in self.claims.by_index("provider", node["spec"].get("providerID") or ""):
            self.claim_queue.add(name(claim))

    def _pod_changed(self, change: Change, pod: Object, old: Object | None) -> None:
        if change != "DELETED":
            self.provisioner.pod_changed(pod)
        node_name = pod["spec"].get("nodeName")
        if not node_name:
            return
        bound = old is None or not old["spec"].get("nodeName")
        ended = old is not None and not terminal(old) and terminal(pod)
        going = old is not None and not deleting(old) and deleting(pod)
        if (bound and change != "DELETED") or ended or going or change == "DELETED":
            self._pod_event(node_name)
        node = self.nodes.get(node_name)
        if node is not None and deleting(node):
            self.node_queue.add(node_name)

    # --- helpers of the controllers ------------------------------------------------------------------------------

    def ours(self, reference: Object) -> bool:
        """Whether a nodeClassRef is of this provider; others are none of our business."""
        return bool(reference.get("group") == "karpenter.k8s.aws" and reference.get("kind") == "EC2NodeClass")

    async def write_status(self, obj: Object, status: Object) -> Object:
        """Bring the status to ``status`` if it is not so; the newest version of the object.

        :raises ApiError: Conflict when somebody else wrote in between.
        """
        before = obj.get("status") or {}
        if before == status:
            return obj
        patch = {key: value for key, value in status.items() if before.get(key) != value}
        patch |= dict.fromkeys(set(before) - set(status))
        body = {"metadata": {"resourceVersion": obj["metadata"]["resourceVersion"]}, "status": patch}
        answer = await self.kube.patch(obj["kind"], name(obj), body, subresource="status")
        for item in status.get("conditions") or []:
            if condition(obj, item["type"]).get("status") != item["status"]:
                self._turns[uid(obj), item["type"], item["status"]] = time.monotonic()
        await self._informer(obj["kind"]).caught_up(answer)
        return answer

    async def patch_metadata(self, obj: Object, metadata: Object, *, gone: bool = False) -> Object:
        """Merge into the metadata; ``gone`` says that the object may vanish by it."""
        body = {"metadata": {"resourceVersion": obj["metadata"]["resourceVersion"], **metadata}}
        try:
            answer = await self.kube.patch(obj["kind"], name(obj), body)
        except ApiError as error:
            if gone and error.not_found:
                return obj
            raise
        if not gone:
            await self._informer(obj["kind"]).caught_up(answer)
        return answer

    async def patch_node(self, node: Object, body: Object, *, locked: bool = True, gone: bool = False) -> Object:
        """Merge into a Node; ``locked`` with its version, because lists are replaced whole."""
        meta = dict(body.get("metadata") or {})
        if locked:
            meta["resourceVersion"] = node["metadata"]["resourceVersion"]
        try:
            answer = await self.kube.patch("Node", name(node), {**body, "metadata": meta})
        except ApiError as error:
            if gone and error.not_found:
                return node
            raise
        if not gone:
            await self.nodes.caught_up(answer)
        return answer

    def _informer(self, kind: str) -> Informer:
        return self.informers(kind)

    def age(self, obj: Object, condition_type: str) -> float:
        """Real seconds since a condition took its present status; exact when this process saw it."""
        found = condition(obj, condition_type)
        if not found:
            return 0.0
        seen = self._turns.get((uid(obj), condition_type, found["status"]))
        return time.monotonic() - seen if seen is not None else time.time() - epoch(found["lastTransitionTime"])

    def deadline(self, claim: Object, limit: float) -> str:
        """The moment ``limit`` simulated seconds after the claim's deletion."""
        return timestamp(epoch(claim["metadata"]["deletionTimestamp"]) + self.clock.real(limit))

    def moment(self, seconds: float) -> str:
        return timestamp(seconds)

    # --- nominations, quiet times, retries -----------------------------------------------------------------------

    def nominate(self, claim_name: str) -> None:
        """A pod is expected there: the claim is not disrupted for a while."""
        self._nominations[claim_name] = time.monotonic()

    def nominated(self, claim_name: str) -> bool:
        return time.monotonic() - self._nominations.get(claim_name, -1e9) < self.clock.real(_NOMINATION)

    def _pod_event(self, node_name: str) -> None:
        """A pod came to a node or left it: its claim is not consolidatable for a while."""
        node = self.nodes.get(node_name)
        claim = self.state.claim_of(node) if node is not None else None
        if claim is None or deleting(claim):
            return
        last = self._pod_events.get(uid(claim))
        self._pod_events[uid(claim)] = time.monotonic()
        self.mark_queue.add(name(claim))
        if last is None or time.monotonic() - last > self.clock.real(_POD_EVENT_QUIET):
            task = asyncio.create_task(self._write_pod_event(name(claim)))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _write_pod_event(self, claim_name: str) -> None:
        try:
            await self.kube.patch_status("NodeClaim", claim_name, {"lastPodEventTime": now()})
        except (ApiError, OSError) as error:
            log.debug("claim %s: %s", claim_name, error)

    def quiet_for(self, claim: Object) -> float:
        """Real seconds since a pod last came or went, or since the claim was initialized."""
        initialized = self.age(claim, "Initialized")
        event = self._pod_events.get(uid(claim))
        if event is not None:
            return min(initialized, time.monotonic() - event)
        stamp = (claim.get("status") or {}).get("lastPodEventTime")
        return min(initialized, time.time() - epoch(stamp)) if stamp else initialized

    def retry_eviction(self, key: Any) -> None:
        """Exponential back-off as the real eviction queue's: 100 ms to 10 s."""
        tries = self._evictions[key] = self._evictions.get(key, 0) + 1
        delay = min(_EVICTION_LARGEST, _EVICTION_RETRY * 2.0 ** min(tries, 10))
        self.eviction_queue.add_after(key, self.clock.real(delay))

    def eviction_succeeded(self, key: Any) -> None:
        self._evictions.pop(key, None)

    # --- garbage -------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Claims whose instance is gone without their doing (``nodeclaim/garbagecollection``)."""
        while True:
            await asyncio.sleep(max(1.0, self.clock.real(_COLLECT)))
            registered = [each for each in self.claims.items() if is_true(each, "Registered") and not deleting(each)]
            if not registered:
                continue
            alive = {
                key for key, value in (await self.cloud.owned()).items() if value["State"]["Name"] != "shutting-down"
            }
            for claim in registered:
                node = self.state.node_of(claim)
                ready = node is not None and condition(node, "Ready").get("status") == "True"
                if instance_id(provider_id(claim)) not in alive and not ready:
                    await self.kube.delete("NodeClaim", name(claim), uid=uid(claim))


class Leader:
    """Runs :class:`Karpenter` while a pod of its Deployment is Ready, and drops it when none is."""

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
                # Faults are set without a sign; besides that only a change of the pods matters.
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
        :param pods: those that could lead. Who leads goes on until its pod is gone; the next has its own settings.
        """
        leader = next((pod for pod in pods if uid(pod) == self._leader), None)
        if leader is None or self._settings.faults.active("stopped") is not None:
            await self._stop()
            leader = pods[0] if pods else None
        if self._life is not None and self._life.done():
            error = self._life.exception() if not self._life.cancelled() else None
            log.error("Karpenter ended; it starts again", exc_info=error)
            self._life = None
        if self._life is None and leader is not None and self._settings.faults.active("stopped") is None:
            self._leader = uid(leader)
            overlays = gate(leader, "NodeOverlay")
            karpenter = Karpenter(
                self._settings, self._clock, self._kube, self._aws, _queue_of(leader), overlays=overlays
            )
            self._life = asyncio.create_task(karpenter.run(), name="karpenter")

    async def _stop(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            self._life = None


def _leads(pod: Object) -> bool:
    return is_true(pod, "Ready") and not deleting(pod)


def _subnets(node_class: Object | None) -> Any:
    return ((node_class or {}).get("status") or {}).get("subnets")


def _queue_of(pod: Object) -> str | None:
    """The chart hands ``settings.interruptionQueue`` to the controller in its environment."""
    for container in pod["spec"]["containers"]:
        for item in container.get("env") or []:
            if item["name"] == "INTERRUPTION_QUEUE" and item.get("value"):
                return str(item["value"])
    return None
