"""What all of Karpenter's controllers share: caches, work queues, clients, and what they have seen of the cluster.

The controllers import this module and receive one :class:`Context`; :mod:`sandbox.karpenter.controller` connects them.
"""

from __future__ import annotations

import time
from typing import Any

from sandbox.aws.client import Aws
from sandbox.karpenter.cloudprovider.catalog import Catalog
from sandbox.karpenter.cloudprovider.cloud import Cloud
from sandbox.karpenter.cloudprovider.reserved import Reservation, from_status
from sandbox.karpenter.conditions import condition
from sandbox.karpenter.durations import epoch, timestamp
from sandbox.karpenter.events import Events
from sandbox.karpenter.objects import name, uid
from sandbox.karpenter.state import State
from sandbox.kube.client import Kube
from sandbox.kube.informers import Informer, SharedInformers
from sandbox.kube.recorder import Recorder
from sandbox.kube.resources import ApiError
from sandbox.kube.workqueue import WorkQueue
from sandbox.settings import Clock, Settings

Object = dict[str, Any]

#: Simulated seconds for which a node counts as nominated (``state.NominationWindow``: 2 x BATCH_MAX).
_NOMINATION = 20.0


class Context:
    """The shared ground of one life of Karpenter.

    :ivar reserved_capacity: the feature gate ReservedCapacity.
    :ivar registrations: by pool, whether the last node registered (True) or never did (False); taken by the pool's
        next reconcile.
    """

    def __init__(
        self, settings: Settings, clock: Clock, kube: Kube, aws: Aws, *, reserved_capacity: bool = True
    ) -> None:
        self.settings = settings
        self.reserved_capacity = reserved_capacity
        self.clock = clock
        self.kube = kube
        self.aws = aws
        self.informers = SharedInformers(kube)
        self.pods, self.nodes = self.informers("Pod"), self.informers("Node")
        self.claims, self.pools = self.informers("NodeClaim"), self.informers("NodePool")
        self.node_classes = self.informers("EC2NodeClass")
        self.pdbs = self.informers("PodDisruptionBudget")
        self.state = State(self.pods, self.nodes, self.claims, self.informers("DaemonSet"))
        self.recorder = Recorder(kube, "karpenter")
        self.events = Events(self.recorder, clock.speed)
        self.cloud = Cloud(settings, clock, aws)
        self.catalog = Catalog(aws, settings.region)
        self.registrations: dict[str, bool] = {}
        self.node_class_queue = WorkQueue(largest_delay=max(0.2, clock.real(60)))
        self.overlay_queue = WorkQueue()
        self.pool_queue, self.claim_queue = WorkQueue(), WorkQueue()
        self.condition_queue, self.node_queue, self.expire_queue = WorkQueue(), WorkQueue(), WorkQueue()
        self.eviction_queue = WorkQueue()
        self._nominations: dict[str, float] = {}
        self._transitions: dict[tuple[str, str, str], float] = {}

    @property
    def overlays(self) -> Informer:
        """Watched only with the feature gate: without it the kind need not even exist."""
        return self.informers("NodeOverlay")

    def reservations_of(self, node_class: Object | None) -> tuple[Reservation, ...]:
        """The capacity reservations that a class has found; none without the feature gate."""
        return from_status(node_class) if self.reserved_capacity else ()

    # --- writing -------------------------------------------------------------------------------------------------

    async def write_status(self, obj: Object, status: Object) -> Object:
        """Set the status unless it is ``status`` already; the newest version of the object.

        :raises ApiError: Conflict when another client wrote in between.
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
                self._transitions[uid(obj), item["type"], item["status"]] = time.monotonic()
        await self.informers(obj["kind"]).caught_up(answer)
        return answer

    async def patch_metadata(self, obj: Object, metadata: Object, *, gone: bool = False) -> Object:
        """Merge into the metadata; with ``gone`` the object may be deleted by it (its last finalizer is removed)."""
        body = {"metadata": {"resourceVersion": obj["metadata"]["resourceVersion"], **metadata}}
        try:
            answer = await self.kube.patch(obj["kind"], name(obj), body)
        except ApiError as error:
            if gone and error.not_found:
                return obj
            raise
        if not gone:
            await self.informers(obj["kind"]).caught_up(answer)
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

    def age(self, obj: Object, condition_type: str) -> float:
        """Real seconds since a condition took its present status; exact when this process saw it."""
        found = condition(obj, condition_type)
        if not found:
            return 0.0
        seen = self._transitions.get((uid(obj), condition_type, found["status"]))
        return time.monotonic() - seen if seen is not None else time.time() - epoch(found["lastTransitionTime"])

    def deadline(self, claim: Object, limit: float) -> str:
        """The moment ``limit`` simulated seconds after the claim's deletion."""
        return timestamp(epoch(claim["metadata"]["deletionTimestamp"]) + self.clock.real(limit))

    # --- nominations ---------------------------------------------------------------------------------------------

    def nominate(self, claim_name: str) -> None:
        """A pod is expected on this claim's node: the claim is not disrupted for a while."""
        self._nominations[claim_name] = time.monotonic()

    def nominated(self, claim_name: str) -> bool:
        return time.monotonic() - self._nominations.get(claim_name, -1e9) < self.clock.real(_NOMINATION)
