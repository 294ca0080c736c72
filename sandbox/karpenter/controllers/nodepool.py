"""NodePool: readiness, hash, and the resources of its nodes (``pkg/controllers/nodepool``)."""

from __future__ import annotations

import re
from typing import Any

from sandbox.karpenter.conditions import Conditions, condition
from sandbox.karpenter.context import Context
from sandbox.karpenter.hashes import template_hash
from sandbox.karpenter.objects import HASH, HASH_VERSION, HASH_VERSION_KEY, POOL, annotations_of, deleting, name, ours
from sandbox.kube.quantities import render_all

Object = dict[str, Any]

DEPENDENTS = ("ValidationSucceeded", "NodeClassReady")
#: Simulated seconds between two counts of a pool's resources.
RECOUNT = 5.0
_BASE = {"cpu": "0", "memory": "0", "pods": "0", "ephemeral-storage": "0", "nodes": "0"}
_QUALIFIED = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def runtime_errors(pool: Object) -> str:
    """What passes the schema and is still wrong (``nodepool_validation.go``); empty when all is well."""
    template = pool["spec"]["template"]
    spec = template["spec"]
    errors = []
    found = (template.get("metadata") or {}).get("labels") or {}
    for key in found:
        if key == POOL:
            errors.append(f'invalid key name "{key}" in labels, restricted')
        elif not _QUALIFIED.match(key):
            errors.append(f'invalid key name "{key}" in labels')
    seen: set[tuple[str, str]] = set()
    for field in ("taints", "startupTaints"):
        for taint in spec.get(field) or []:
            if taint.get("effect") not in _EFFECTS:
                errors.append(f'invalid value: "{taint.get("effect", "")}" in {field}')
            pair = (taint["key"], taint.get("effect", ""))
            if pair in seen:
                errors.append(f"duplicate taint Key/Effect pair {pair[0]}={pair[1]}")
            seen.add(pair)
    for entry in spec.get("requirements") or []:
        if entry["key"] == POOL:
            errors.append(f'invalid key: "{POOL}" in requirements, restricted')
        if entry["operator"] == "In" and not entry.get("values"):
            errors.append(f"key {entry['key']} with operator In must have a value defined")
    return "; ".join(errors)


class NodePoolController:
    """Reconciles one NodePool at a time. It never puts a finalizer on a pool."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def reconcile(self, pool_name: str) -> None:
        context = self._context
        pool = context.pools.get(pool_name)
        if pool is None or not ours(pool["spec"]["template"]["spec"]["nodeClassRef"]):
            return
        pool = await self._hashed(pool)
        conditions = Conditions(pool, DEPENDENTS)
        complaint = runtime_errors(pool)
        if complaint:
            conditions.set_false("ValidationSucceeded", "NodePoolValidationFailed", complaint)
        else:
            conditions.set_true("ValidationSucceeded")
        node_class = context.node_classes.get(pool["spec"]["template"]["spec"]["nodeClassRef"]["name"])
        _class_ready(conditions, node_class)
        status = dict(pool.get("status") or {})
        if node_class is not None:
            self._registration_health(pool, node_class, conditions)
            status["nodeClassObservedGeneration"] = node_class["metadata"].get("generation", 1)
        used, count = context.state.pool_usage(pool_name)
        status |= {"resources": {**_BASE, **render_all(used), "nodes": str(count)}, "nodes": count}
        status["conditions"] = conditions.shown()
        await context.write_status(pool, status)
        context.pool_queue.add_after(pool_name, max(0.5, context.clock.real(RECOUNT)))

    async def _hashed(self, pool: Object) -> Object:
        wanted = {HASH: template_hash(pool), HASH_VERSION_KEY: HASH_VERSION}
        if all(annotations_of(pool).get(key) == value for key, value in wanted.items()):
            return pool
        return await self._context.patch_metadata(pool, {"annotations": wanted})

    def _registration_health(self, pool: Object, node_class: Object, conditions: Conditions) -> None:
        """Unknown until a node registers; again after a change of pool or class. Informational."""
        known = conditions.get("NodeRegistrationHealthy")
        observed = (pool.get("status") or {}).get("nodeClassObservedGeneration")
        generation = pool["metadata"].get("generation", 1)
        if (
            known is None
            or observed != node_class["metadata"].get("generation", 1)
            or known.get("observedGeneration") != generation
        ):
            conditions.set_unknown("NodeRegistrationHealthy")
        verdict = self._context.registrations.pop(name(pool), None)
        if verdict is True:
            conditions.set_true("NodeRegistrationHealthy")
        elif verdict is False and not conditions.is_true("NodeRegistrationHealthy"):
            conditions.set_false("NodeRegistrationHealthy", "RegistrationFailed", "Failed to register node")


def _class_ready(conditions: Conditions, node_class: Object | None) -> None:
    if node_class is None:
        conditions.set_false("NodeClassReady", "NodeClassNotFound", "NodeClass not found on cluster")
    elif deleting(node_class):
        conditions.set_false("NodeClassReady", "NodeClassTerminating", "NodeClass is Terminating")
    else:
        ready = condition(node_class, "Ready")
        if ready.get("status") == "True":
            conditions.set_true("NodeClassReady")
        elif ready.get("status") == "False":
            conditions.set_false("NodeClassReady", ready.get("reason", ""), ready.get("message", ""))
        else:
            conditions.set_false("NodeClassReady", "NodeClassReadinessUnknown", "Node Class Readiness Unknown")
