"""From unschedulable pods to NodeClaims (``pkg/controllers/provisioning``)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import CAPACITY_TYPE, InstanceType
from sandbox.karpenter.cloudprovider.reserved import RESERVATION_ID, RESERVED
from sandbox.karpenter.conditions import is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers import nodeclass
from sandbox.karpenter.controllers.blocking import movable
from sandbox.karpenter.controllers.overlays import APPLIED, NodeOverlays, Unevaluated
from sandbox.karpenter.objects import (
    HASH,
    HASH_VERSION_KEY,
    POOL,
    annotations_of,
    deleting,
    name,
    ours,
    provider_id,
    provisionable,
    uid,
)
from sandbox.karpenter.requirements import WELL_KNOWN, Requirements, from_entries, from_labels, requirement
from sandbox.karpenter.scheduling.simulation import HOSTNAME, NODES, Plan, Planned, Simulation, Template
from sandbox.karpenter.scheduling.validation import refusal
from sandbox.kube.quantities import Resources, parse_all, render_all

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

# Simulated seconds: the batch ends after this long without a new pod, or after that long in all; pods that are still
# pending are looked at again (``BATCH_IDLE_DURATION``, ``BATCH_MAX_DURATION``, requeue of the pod controller).
BATCH_IDLE, BATCH_MAX, AGAIN = 1.0, 10.0, 10.0
_STALLED = 1.0
#: Real seconds; the shortest pause between two checks, or a fast sandbox would only poll.
LEAST_PAUSE = 0.25
#: At most so many instance types in a claim's requirements (``MaxInstanceTypes``).
MAX_TYPES = 60


class Provisioner:
    """Collects pods into batches, simulates, creates claims."""

    def __init__(self, context: Context, overlays: NodeOverlays) -> None:
        self._context = context
        self._overlays = overlays
        self._trigger = asyncio.Event()
        self._seen: set[str] = set()
        self._extra_for: set[str] = set()

    def pod_changed(self, pod: Object) -> None:
        if provisionable(pod) and uid(pod) not in self._seen:
            self._seen.add(uid(pod))
            self._trigger.set()

    def trigger(self) -> None:
        """Provision again for another reason: a node is being deleted, or capacity has changed."""
        self._trigger.set()

    async def run(self) -> None:
        clock = self._context.clock
        while True:
            pending = self._pending()
            try:
                async with asyncio.timeout(max(LEAST_PAUSE, clock.real(AGAIN)) if pending else None):
                    await self._trigger.wait()
            except TimeoutError:
                pass
            await self._batch()
            await self._provision()

    def _pending(self) -> list[Object]:
        return [pod for pod in self._context.pods.items() if provisionable(pod)]

    async def _batch(self) -> None:
        clock = self._context.clock
        loop = asyncio.get_running_loop()
        end = loop.time() + clock.real(BATCH_MAX)
        while loop.time() < end:
            self._trigger.clear()
            try:
                async with asyncio.timeout(min(clock.real(BATCH_IDLE), end - loop.time())):
                    await self._trigger.wait()
            except TimeoutError:
                break
        self._trigger.clear()
        self._seen.clear()
        self._seen |= {uid(pod) for pod in self._pending()}

    async def _provision(self) -> None:
        context = self._context
        # Nothing is planned while the outcome of a launch is unknown.
        while any(not provider_id(claim) and ours(claim["spec"]["nodeClassRef"]) for claim in context.claims.items()):
            changed = context.claims.changed
            try:
                async with asyncio.timeout(context.clock.real(_STALLED)):
                    await changed.wait()
            except TimeoutError:
                pass
        templates = await self.templates()
        # From here to the plan nothing may be awaited: pods and rooms have to be of the same moment.
        pending = self._pending()
        pods = [pod for pod in pending if self._valid(pod)]
        moving = [pod for pod in context.state.deleting_pods() if movable(context, pod)]
        if not templates or not (pending or moving):
            return
        plan = Simulation(
            context.state.rooms(), templates, context.cloud.available, context.cloud.reservations.left
        ).run([*pods, *moving])
        by_uid = {uid(pod): pod for pod in [*pods, *moving]}
        for pod_uid, error in plan.errors.items():
            context.events.failed_scheduling(by_uid[pod_uid], error)
        for pod, room in plan.placed:
            if provisionable(pod):
                context.nominate(room.claim or room.name)
                context.events.nominated(pod, claim=room.claim, node=room.name if room.has_node else None)
        # All claims of a pass are created side by side, so none of them counts yet when the next is checked.
        exceeded = {name(each.pool) for each in templates if self._exceeded(each.pool)}
        for planned in plan.new:
            if name(planned.template.pool) in exceeded:
                log.warning(
                    "creating node claim, resource usage exceeds limit of nodepool %s", name(planned.template.pool)
                )
                continue
            claim = await self.create(planned)
            context.nominate(name(claim))
            for pod in planned.pods:
                context.events.nominated(pod, claim=name(claim))
        await self._extra_node(plan, pending, templates)

    def _valid(self, pod: Object) -> bool:
        """Whether Karpenter considers a pending pod; records an event if it does not."""
        why = refusal(pod)
        if why is not None:
            self._context.events.failed_scheduling(pod, why)
        return why is None

    async def create(self, planned: Planned) -> Object:
        """One claim; waits until the cache has it, so that the next simulation counts it."""
        created = await self._context.kube.create(manifest(planned, self._context.node_classes))
        await self._context.claims.caught_up(created)
        return created

    async def _extra_node(self, plan: Plan, pods: list[Object], templates: list[Template]) -> None:
        """Fault ``extra-node``: one superfluous node for each new pod."""
        fresh = {uid(pod) for pod in pods} - self._extra_for
        if fresh and self._context.settings.faults.take("extra-node") is not None:
            self._extra_for |= fresh
            template = plan.new[0].template if plan.new else templates[0]
            planned = plan.new[0] if plan.new else Planned(
                template, Requirements(template.requirements), template.types, dict(template.daemons)
            )  # fmt: skip
            await self.create(planned)

    # --- templates -----------------------------------------------------------------------------------------------

    async def templates(self, without: frozenset[str] = frozenset()) -> list[Template]:
        """The pools that are ready, heaviest first; of equal weights the name that is *last* in the alphabet
        (core v1.14.1 ``pkg/utils/nodepool/nodepool.go``, ``OrderByWeight``).

        :param without: names of claims that are left out of what the limits count (they are about to go).
        """
        context = self._context
        pools = [
            pool
            for pool in context.pools.items()
            if not deleting(pool)
            and is_true(pool, "Ready")
            and ours(pool["spec"]["template"]["spec"]["nodeClassRef"])
            and pool["spec"].get("replicas") is None
        ]
        pools.sort(key=name, reverse=True)
        pools.sort(key=lambda pool: pool["spec"].get("weight") or 0, reverse=True)
        found = []
        for pool in pools:
            try:
                template = await self._template(pool, without)
            except Unevaluated as error:
                log.debug("skipping, awaiting nodeoverlay evaluation: %s", error)
                continue
            if not template.types:
                context.events.no_compatible_types(pool)
                continue
            found.append(template)
        return found

    async def _template(self, pool: Object, without: frozenset[str]) -> Template:
        context = self._context
        requirements = pool_requirements(pool)
        spec = pool["spec"]["template"]["spec"]
        node_class = context.node_classes.get(spec["nodeClassRef"]["name"])
        subnets = ((node_class or {}).get("status") or {}).get("subnets") or []
        types: list[InstanceType] = await context.catalog.of_pool(
            requirements, {each["zone"] for each in subnets}, context.reservations_of(node_class)
        )
        types = self._overlays.applied(name(pool), types)
        taints = list(spec.get("taints") or [])
        daemons = context.state.daemon_requests(requirements, taints, WELL_KNOWN)
        return Template(pool, requirements, taints, types, daemons, self._remaining(pool, without))

    def _remaining(self, pool: Object, without: frozenset[str] = frozenset()) -> Resources | None:
        limits = parse_all(pool["spec"].get("limits"))
        if not limits:
            return None
        used, count = self._context.state.pool_usage(name(pool), without)
        return {key: limit - (count * 1000 if key == NODES else used.get(key, 0)) for key, limit in limits.items()}

    def _exceeded(self, pool: Object) -> bool:
        """Whether a pool has more than its limits now; asked again when a claim is created (``provisioner.Create``)."""
        latest = self._context.pools.get(name(pool)) or pool
        return any(left < 0 for left in (self._remaining(latest) or {}).values())


def pool_requirements(pool: Object) -> Requirements:
    """What is certain of a pool's nodes: its requirements, its labels, its name."""
    template = pool["spec"]["template"]
    requirements = from_entries(template["spec"].get("requirements"))
    requirements.add(*from_labels((template.get("metadata") or {}).get("labels")).values())
    reference = template["spec"]["nodeClassRef"]
    return requirements.add(
        requirement(POOL, "In", [name(pool)]),
        requirement("karpenter.k8s.aws/ec2nodeclass", "In", [reference["name"]]),
    )


def manifest(planned: Planned, node_classes: Any) -> Object:
    """The NodeClaim of a planned node."""
    pool = planned.template.pool
    template = pool["spec"]["template"]
    spec = template["spec"]
    requirements = Requirements({key: item for key, item in planned.requirements.items() if key != HOSTNAME})
    if planned.reserved:
        # ``FinalizeScheduling``: so that no more are launched into one reservation than were planned.
        requirements.add(
            requirement(CAPACITY_TYPE, "In", [RESERVED]), requirement(RESERVATION_ID, "In", planned.reserved)
        )
    cheapest = sorted(planned.types, key=lambda each: each.offered(requirements)[0].price)[:MAX_TYPES]
    requirements.add(requirement("node.kubernetes.io/instance-type", "In", [each.name for each in cheapest]))
    known = annotations_of(pool)
    node_class = node_classes.get(spec["nodeClassRef"]["name"])
    found = {
        **((template.get("metadata") or {}).get("annotations") or {}),
        **{key: known[key] for key in (HASH, HASH_VERSION_KEY) if key in known},
        **{
            key: annotations_of(node_class)[key]
            for key in (nodeclass.HASH, nodeclass.HASH_VERSION_KEY)
            if node_class is not None and key in annotations_of(node_class)
        },
    }
    if any(each.overlaid for each in planned.types):
        found[APPLIED] = "true"
    claim_spec: Object = {
        "nodeClassRef": dict(spec["nodeClassRef"]),
        "requirements": requirements.entries(),
        "resources": {"requests": render_all(planned.requests)},
        "expireAfter": spec.get("expireAfter", "720h"),
    }
    for field in ("taints", "startupTaints", "terminationGracePeriod"):
        if spec.get(field):
            claim_spec[field] = spec[field]
    owner = {
        "apiVersion": pool["apiVersion"],
        "kind": pool["kind"],
        "name": name(pool),
        "uid": uid(pool),
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "generateName": f"{name(pool)}-",
            "labels": requirements.labels(),
            "annotations": found,
            "ownerReferences": [owner],
        },
        "spec": claim_spec,
    }
