"""A NodeClaim's lifecycle: launched, registered, initialized; or given up (``pkg/controllers/nodeclaim/lifecycle``)."""

from __future__ import annotations

import logging
import time
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import InstanceType, instance_type
from sandbox.karpenter.cloudprovider.cloud import Launched, NodeClassNotReady, labels_of_launch, provider_id_of
from sandbox.karpenter.cloudprovider.refusals import InsufficientCapacity, LaunchError
from sandbox.karpenter.cloudprovider.reserved import RESERVATION_ID, Reservation
from sandbox.karpenter.conditions import Conditions, condition
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.overlays import NodeOverlays, Unevaluated
from sandbox.karpenter.durations import epoch, seconds
from sandbox.karpenter.objects import (
    DEADLINE,
    INITIALIZED,
    POOL,
    REGISTERED,
    TERMINATION,
    UNREGISTERED_TAINT,
    annotations_of,
    deleting,
    ephemeral,
    labels,
    merge_taints,
    name,
    ours,
    provider_id,
    same_taint,
    show_taint,
    uid,
)
from sandbox.karpenter.requirements import from_entries, from_labels
from sandbox.kube.quantities import fits, parse, parse_all, render_all

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

DEPENDENTS = ("Launched", "Registered", "Initialized")
# Simulated seconds.
LAUNCH_TIMEOUT, REGISTRATION_TIMEOUT = 300.0, 900.0
_SETTLE = 1.0  # the real controller sleeps so after each write, which is why conditions lag
_LAUNCH_RETRY = 5.0
_INSTANCE_POLL = 5.0


class ClaimLifecycle:
    """Reconciles one NodeClaim at a time."""

    def __init__(self, context: Context, overlays: NodeOverlays) -> None:
        self._context = context
        self._overlays = overlays

    async def reconcile(self, claim_name: str) -> None:
        context = self._context
        claim = context.claims.get(claim_name)
        if claim is None or not ours(claim["spec"]["nodeClassRef"]):
            return
        if deleting(claim):
            await self._finalize(claim)
            return
        finalizers = claim["metadata"].get("finalizers") or []
        if TERMINATION not in finalizers:
            claim = await context.patch_metadata(claim, {"finalizers": [*finalizers, TERMINATION]})
        conditions = Conditions(claim, DEPENDENTS)
        status = dict(claim.get("status") or {})
        if not condition(claim, "Launched"):  # everything is Unknown before anything is done
            claim = await self._write(claim, conditions, status)
            status = dict(claim.get("status") or {})
        if conditions.is_unknown("Launched"):
            launched = await self._launch(claim, conditions, status)
            if launched is None:
                return
            claim = launched
        registered_before = conditions.is_true("Registered")
        await self._register(claim, conditions, status)
        if not registered_before and conditions.is_true("Registered"):
            pool = labels(claim).get(POOL, "")
            context.registrations[pool] = True
            context.pool_queue.add(pool)
        await self._initialize(claim, conditions)
        if await self._gave_up(claim, conditions):
            return
        before = claim
        claim = await self._write(claim, conditions, status)
        self._schedule_expiry(claim)
        if claim is not before:
            await context.clock.sleep(_SETTLE)
            context.claim_queue.add(claim_name)

    async def _write(self, claim: Object, conditions: Conditions, status: Object) -> Object:
        status["conditions"] = conditions.shown()
        return await self._context.write_status(claim, status)

    # --- launch --------------------------------------------------------------------------------------------------

    async def _launch(self, claim: Object, conditions: Conditions, status: Object) -> Object | None:
        """The claim with its instance's labels, or None when it was deleted or the launch must be tried again."""
        context = self._context
        try:
            launched = await self._create(claim)
        except InsufficientCapacity as error:
            context.events.insufficient_capacity(claim, str(error))
            await context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
            return None
        except NodeClassNotReady as error:
            log.warning("claim %s: %s", name(claim), error)
            await context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
            return None
        except LaunchError as error:
            conditions.set_unknown("Launched", error.reason, str(error)[:300])
            await self._gave_up(claim, conditions)
            if context.claims.get(name(claim)) is not None:
                await self._write(claim, conditions, status)
            context.claim_queue.add_after(name(claim), context.clock.real(_LAUNCH_RETRY))
            return None
        resolved = launched.instance_type
        found = {**labels_of_launch(launched), **labels(claim)}
        claim = await context.patch_metadata(claim, {"labels": found})
        status |= {
            "providerID": provider_id_of(launched.instance),
            "imageID": launched.image_id,
            "capacity": render_all(resolved.capacity),
            "allocatable": render_all(resolved.allocatable),
        }
        conditions.set_true("Launched")
        conditions.set_unknown("Registered", "NodeNotFound", "Node not registered with cluster")
        return await self._write(claim, conditions, status)

    async def _create(self, claim: Object) -> Launched:
        context = self._context
        class_name = claim["spec"]["nodeClassRef"]["name"]
        node_class = context.node_classes.get(class_name)
        if node_class is None or deleting(node_class):
            text = f'resolving nodeclass, ec2nodeclasses.karpenter.k8s.aws "{class_name}" not found'
            raise InsufficientCapacity(text)
        ready = condition(node_class, "Ready")
        if ready.get("status") == "False":
            raise NodeClassNotReady(ready.get("message", ""))
        if ready.get("status") != "True":
            raise LaunchError("NodeClassReadinessUnknown", "NodeClass is in Ready=Unknown")
        wanted = from_entries(claim["spec"].get("requirements")).merged(from_labels(labels(claim)))
        adopted = await context.cloud.launched_for(claim)
        zones = {each["zone"] for each in node_class["status"]["subnets"]}
        types = self._overlaid(claim, await context.catalog.of_pool(wanted, zones, context.reservations_of(node_class)))
        requests = parse_all((claim["spec"].get("resources") or {}).get("requests"))
        types = [each for each in types if fits(requests, each.allocatable)]
        if adopted is not None:
            return await self._adopt(claim, adopted, context.reservations_of(node_class))
        if not types:
            raise InsufficientCapacity("creating instance, all requested instance types were unavailable during launch")
        return await context.cloud.launch(claim, node_class, types, wanted)

    def _overlaid(self, claim: Object, types: list[InstanceType]) -> list[InstanceType]:
        """
        :raises LaunchError: for a pool that has not been compared with the overlays yet.
        """
        try:
            return self._overlays.applied(labels(claim).get(POOL, ""), types)
        except Unevaluated as error:
            raise LaunchError("LaunchFailed", f"creating instance, {error}") from error

    async def _adopt(self, claim: Object, instance: Object, reservations: tuple[Reservation, ...]) -> Launched:
        context = self._context
        shape = await context.catalog.shape(instance["InstanceType"])
        if shape is None:
            raise LaunchError("InstanceTypeResolutionFailed", "Error resolving instance types")
        zone = instance["Placement"]["AvailabilityZone"]
        [resolved] = self._overlaid(claim, [instance_type(shape, [zone], context.settings.region, reservations)])
        inside = instance.get("CapacityReservationId")
        kind = "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"
        reserved = (each for each in resolved.offerings if each.reservation and each.reservation.id == inside)
        others = (each for each in resolved.offerings if each.capacity_type == kind)
        offering = next(reserved, None) or next(others)
        return Launched(instance, resolved, offering, instance["ImageId"])

    # --- registration and initialization -------------------------------------------------------------------------

    async def _register(self, claim: Object, conditions: Conditions, status: Object) -> None:
        if not conditions.is_unknown("Registered") or not provider_id(claim):
            return
        node = self._context.state.node_of(claim)
        if node is None:
            conditions.set_unknown("Registered", "NodeNotFound", "Node not registered with cluster")
            return
        taints = list(node["spec"].get("taints") or [])
        if labels(node).get(REGISTERED) is None and not any(same_taint(each, UNREGISTERED_TAINT) for each in taints):
            self._context.events.unregistered_taint_missing(claim)
        await self._context.patch_node(node, registration_patch(claim, node))
        conditions.set_true("Registered")
        status["nodeName"] = name(node)

    async def _initialize(self, claim: Object, conditions: Conditions) -> None:
        """Never taken back once True."""
        if not conditions.is_unknown("Initialized") or not conditions.is_true("Registered"):
            return
        node = self._context.state.node_of(claim)
        if node is None:
            conditions.set_unknown("Initialized", "NodeNotFound", "Node not registered with cluster")
            return
        complaint = initialization_complaint(claim, node)
        if complaint is not None:
            conditions.set_unknown("Initialized", *complaint)
            return
        if labels(node).get(INITIALIZED) != "true":
            await self._context.patch_node(node, {"metadata": {"labels": {INITIALIZED: "true"}}}, locked=False)
        conditions.set_true("Initialized")

    # --- giving up -----------------------------------------------------------------------------------------------

    async def _gave_up(self, claim: Object, conditions: Conditions) -> bool:
        """Delete a claim that did not launch in 5 minutes or register in 15. Initialization has no limit."""
        context = self._context
        if conditions.is_true("Registered"):
            return False
        launched = conditions.is_true("Launched")
        limit = context.clock.real(REGISTRATION_TIMEOUT if launched else LAUNCH_TIMEOUT)
        left = limit - context.age(claim, "Registered" if launched else "Launched")
        if left > 0:
            context.claim_queue.add_after(name(claim), left)
            return False
        pool = labels(claim).get(POOL, "")
        context.registrations[pool] = False
        context.pool_queue.add(pool)
        await context.kube.delete("NodeClaim", name(claim), uid=uid(claim))
        return True

    def _schedule_expiry(self, claim: Object) -> None:
        context = self._context
        limit = seconds(claim["spec"].get("expireAfter"))
        if limit is None:
            return
        left = epoch(claim["metadata"]["creationTimestamp"]) + context.clock.real(limit) - time.time()
        if left < 7 * 86400:
            context.expire_queue.add_after(name(claim), left)

    async def expire(self, claim_name: str) -> None:
        """Delete a claim that has reached ``expireAfter``; no budget protects it."""
        context = self._context
        claim = context.claims.get(claim_name)
        if claim is None or deleting(claim):
            return
        limit = seconds(claim["spec"].get("expireAfter"))
        if limit is None:
            return
        left = epoch(claim["metadata"]["creationTimestamp"]) + context.clock.real(limit) - time.time()
        if left > 0:
            context.expire_queue.add_after(claim_name, left)
            return
        await context.kube.delete("NodeClaim", claim_name, uid=uid(claim))

    # --- end -----------------------------------------------------------------------------------------------------

    async def _finalize(self, claim: Object) -> None:
        """The node drains (:mod:`~sandbox.karpenter.controllers.termination`), then instance and claim are deleted."""
        context = self._context
        finalizers = claim["metadata"].get("finalizers") or []
        if TERMINATION not in finalizers:
            return
        claim = await self._with_deadline(claim)
        node = context.state.node_of(claim)
        if condition(claim, "Registered").get("status") == "True" and node is not None:
            if not deleting(node):
                await context.kube.delete("Node", name(node), uid=uid(node))
            return  # the node's deletion queues this claim again
        if provider_id(claim):
            there = await context.cloud.terminate(provider_id(claim))
            conditions = Conditions(claim, DEPENDENTS)
            conditions.set_true("InstanceTerminating")
            claim = await self._write(claim, conditions, dict(claim.get("status") or {}))
            if there:
                context.claim_queue.add_after(name(claim), context.clock.real(_INSTANCE_POLL))
                return
        if RESERVATION_ID in labels(claim):
            context.cloud.reservations.terminated(labels(claim)[RESERVATION_ID])
        left = [each for each in claim["metadata"].get("finalizers") or [] if each != TERMINATION]
        await context.patch_metadata(claim, {"finalizers": left}, gone=True)

    async def _with_deadline(self, claim: Object) -> Object:
        """With a terminationGracePeriod the claim is annotated with the moment at which its pods are forced."""
        limit = seconds(claim["spec"].get("terminationGracePeriod"))
        if limit is None or DEADLINE in annotations_of(claim):
            return claim
        context = self._context
        moment = context.deadline(claim, limit)
        claim = await context.patch_metadata(claim, {"annotations": {DEADLINE: moment}})
        context.events.grace_expiring(claim, moment)
        return claim


def registration_patch(claim: Object, node: Object) -> Object:
    """All in one: finalizer, owner, labels, annotations, taints, and the unregistered taint off (``syncNode``)."""
    taints = [each for each in node["spec"].get("taints") or [] if not same_taint(each, UNREGISTERED_TAINT)]
    taints = merge_taints(taints, claim["spec"].get("taints"))
    taints = merge_taints(taints, claim["spec"].get("startupTaints"))
    meta = node["metadata"]
    owner = {
        "apiVersion": claim["apiVersion"],
        "kind": claim["kind"],
        "name": name(claim),
        "uid": uid(claim),
        "blockOwnerDeletion": True,
    }
    owners = [each for each in meta.get("ownerReferences") or [] if each.get("uid") != uid(claim)]
    finalizers = meta.get("finalizers") or []
    return {
        "metadata": {
            "finalizers": finalizers if TERMINATION in finalizers else [*finalizers, TERMINATION],
            "ownerReferences": [*owners, owner],
            "labels": {**labels(claim), REGISTERED: "true"},
            "annotations": annotations_of(claim),
        },
        "spec": {"taints": taints},
    }


def initialization_complaint(claim: Object, node: Object) -> tuple[str, str] | None:
    """Reason and message of what is still missing, in Karpenter's order; None when nothing is."""
    if condition(node, "Ready").get("status") != "True":
        return "NodeNotReady", "Node status is NotReady"
    taints = node["spec"].get("taints") or []
    startup = claim["spec"].get("startupTaints") or []
    for taint in taints:
        if any(same_taint(taint, each) for each in startup):
            return "StartupTaintsExist", f'StartupTaint "{show_taint(taint)}" still exists'
    for taint in taints:
        if ephemeral(taint):
            return "KnownEphemeralTaintsExist", f'KnownEphemeralTaint "{show_taint(taint)}" still exists'
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    requests = (claim["spec"].get("resources") or {}).get("requests") or {}
    for resource, quantity in sorted(requests.items()):
        if parse(quantity) and not parse(allocatable.get(resource, "0")):
            return "ResourceNotRegistered", f'Resource "{resource}" was requested but not registered'
    return None
