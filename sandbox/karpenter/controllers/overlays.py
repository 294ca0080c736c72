"""NodeOverlays: user-defined changes of an instance type's capacity (``pkg/controllers/nodeoverlay``).

After kubernetes-sigs/karpenter v1.14.1: ``controller.go`` and ``store.go`` there, ``pkg/cloudprovider/overlay`` for who
asks, ``pkg/apis/v1alpha1/nodeoverlay_validation.go``. Alpha: without effect unless the controller's feature gate
``NodeOverlay`` is on.

Two things differ on purpose. Prices are not overlaid. And a pool is compared with its own instance types and those that
overlays name, not with all that EC2 has: asking for those takes seconds, and no overlay of a test depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import INSTANCE_TYPE, InstanceType
from sandbox.karpenter.conditions import Conditions
from sandbox.karpenter.context import Context
from sandbox.karpenter.objects import POOL, deleting, name, ours
from sandbox.karpenter.requirements import Requirements, from_entries, from_labels, requirement
from sandbox.karpenter.scheduling.validation import label_refusal
from sandbox.kube.quantities import Resources, parse_all
from sandbox.kube.resources import ApiError

Object = dict[str, Any]

APPLIED = "karpenter.sh/capacity-overlay-applied"
CONFLICT = ("Conflict", "conflict with another overlay")
DEPENDENTS = ("ValidationSucceeded",)
#: One key for all: a reconcile compares every overlay with every other.
ALL = "all"
_RESTRICTED = ("cpu", "memory", "ephemeral-storage", "pods")


class Unevaluated(Exception):
    """The pool is newer than the last evaluation of the overlays: Karpenter plans nothing for it until the next one."""


@dataclass
class _Update:
    """What overlays say of one instance type in one pool.

    :ivar lowest: weight and resources of the overlay that was taken in last; only with it an overlay can conflict.
    """

    capacity: Resources = field(default_factory=dict)
    lowest: tuple[int, frozenset[str]] | None = None


@dataclass
class Store:
    """The result of one reconcile, exchanged as a whole.

    :ivar evaluated: names of the pools that were looked at.
    """

    evaluated: set[str] = field(default_factory=set)
    updates: dict[tuple[str, str], _Update] = field(default_factory=dict)

    def conflicts(self, pool: str, type_name: str, overlay: Object) -> bool:
        update = self.updates.get((pool, type_name))
        if update is None or update.lowest is None:
            return False
        weight, resources = update.lowest
        return weight == weight_of(overlay) and not resources.isdisjoint(capacity_of(overlay))

    def take(self, pool: str, type_name: str, overlay: Object) -> None:
        capacity = capacity_of(overlay)
        if not capacity:
            return
        update = self.updates.setdefault((pool, type_name), _Update())
        update.capacity = {**capacity, **update.capacity}
        update.lowest = weight_of(overlay), frozenset(capacity)

    def apply(self, pool: str, types: Iterable[InstanceType]) -> list[InstanceType]:
        """
        :raises Unevaluated: as ``ApplyAll`` does.
        """
        if pool not in self.evaluated:
            raise Unevaluated(f"nodepool {pool} has not been evaluated against the NodeOverlays")
        return [self._applied(pool, each) for each in types]

    def _applied(self, pool: str, offered: InstanceType) -> InstanceType:
        update = self.updates.get((pool, offered.name))
        if update is None:
            return offered
        return replace(
            offered,
            capacity=offered.capacity | update.capacity,
            allocatable=offered.allocatable | update.capacity,
            overlaid=True,
        )


def weight_of(overlay: Object) -> int:
    return int(overlay["spec"].get("weight") or 0)


def capacity_of(overlay: Object) -> Resources:
    return parse_all(overlay["spec"].get("capacity"))


def by_weight(overlays: Iterable[Object]) -> list[Object]:
    """The heaviest first; of equal weights the name that is *last* in the alphabet (``OrderByWeight``)."""
    return sorted(sorted(overlays, key=name, reverse=True), key=weight_of, reverse=True)


def invalid(overlay: Object) -> str | None:
    """What the CRD lets pass and is refused at run time (``RuntimeValidate``)."""
    found = []
    for item in overlay["spec"].get("requirements") or []:
        if refusal := label_refusal(item["key"]):
            found.append(f"invalid value: {refusal} in requirements, restricted")
    found += [f"invalid capacity: {key} in resource, restricted" for key in capacity_of(overlay) if key in _RESTRICTED]
    return "; ".join(found) or None


def selects(overlay: Object, pool: Object, offered: InstanceType) -> bool:
    """Whether an overlay is about an instance type in a pool (``getOverlaidOfferings``): by the pool's name, the labels
    of its template, and what the type is and has an offering of. Its *requirements* are not looked at."""
    wanted = from_entries(overlay["spec"].get("requirements"))
    known = Requirements().add(requirement(POOL, "In", [name(pool)]))
    known.add(*from_labels((pool["spec"]["template"].get("metadata") or {}).get("labels")).values())
    known.add(*offered.requirements.values())
    return known.compatible(wanted, frozenset()) and bool(offered.offered(wanted))


def evaluate(
    overlays: Iterable[Object], pools: list[tuple[Object, list[InstanceType]]]
) -> tuple[Store, dict[str, Any]]:
    """
    :param pools: each with its instance types.
    :returns: the store, and by overlay what is wrong with it: ``None`` or (reason, message).
    """
    store = Store({name(pool) for pool, _ in pools})
    verdicts: dict[str, Any] = {}
    for overlay in by_weight(overlays):
        if (refusal := invalid(overlay)) is not None:
            verdicts[name(overlay)] = ("RuntimeValidation", refusal)
            continue
        selected = [
            (name(pool), offered.name) for pool, types in pools for offered in types if selects(overlay, pool, offered)
        ]
        # All or nothing: a conflict in one pool keeps the overlay from every other.
        if any(store.conflicts(*place, overlay) for place in selected):
            verdicts[name(overlay)] = CONFLICT
            continue
        for place in selected:
            store.take(*place, overlay)
        verdicts[name(overlay)] = None
    return store, verdicts


class NodeOverlays:
    """Keeps the store and the overlays' conditions.

    :ivar enabled: the feature gate; without it overlays are stored and ignored.
    """

    def __init__(self, context: Context, *, enabled: bool) -> None:
        self._context = context
        self.enabled = enabled
        self._store = Store()

    def applied(self, pool: str, types: list[InstanceType]) -> list[InstanceType]:
        """The instance types as the pool's overlays have them.

        :param pool: its name; empty for a NodeClaim of none, for which there are no overlays (AWS ``Create``).
        :raises Unevaluated: see :class:`Store`.
        """
        return self._store.apply(pool, types) if self.enabled and pool else types

    async def reconcile(self, _key: str) -> None:
        context = self._context
        overlays = [each for each in context.overlays.items() if not deleting(each)]
        named = {
            value
            for overlay in overlays
            for item in overlay["spec"].get("requirements") or []
            if item["key"] == INSTANCE_TYPE and item["operator"] == "In"
            for value in item.get("values") or []
        }
        pools = []
        for pool in sorted(context.pools.items(), key=name):
            types = await self._types(pool, named)
            if types is not None:
                pools.append((pool, types))
        store, verdicts = evaluate(overlays, pools)
        for overlay in overlays:
            await self._report(overlay, verdicts[name(overlay)])
        self._store = store

    async def _types(self, pool: Object, named: set[str]) -> list[InstanceType] | None:
        """``None`` for a pool whose class is missing or not ready: it stays unevaluated."""
        context = self._context
        reference = pool["spec"]["template"]["spec"]["nodeClassRef"]
        node_class = context.node_classes.get(reference["name"])
        subnets = ((node_class or {}).get("status") or {}).get("subnets") or []
        if not ours(reference) or not subnets:
            return None
        zones = {each["zone"] for each in subnets}
        own = from_entries(pool["spec"]["template"]["spec"].get("requirements"))
        found = {each.name: each for each in await context.catalog.of_pool(own, zones)}
        if missing := named - set(found):
            others = Requirements().add(requirement(INSTANCE_TYPE, "In", missing))
            found |= {each.name: each for each in await context.catalog.of_pool(others, zones)}
        return list(found.values())

    async def _report(self, overlay: Object, refusal: tuple[str, str] | None) -> None:
        conditions = Conditions(overlay, DEPENDENTS)
        if refusal is None:
            conditions.set_true("ValidationSucceeded")
        else:
            conditions.set_false("ValidationSucceeded", *refusal)
        if conditions.changed:
            try:
                await self._context.write_status(
                    overlay, {**(overlay.get("status") or {}), "conditions": conditions.shown()}
                )
            except ApiError as error:
                if not error.not_found:
                    raise


def gate(pod: Object, wanted: str, *, default: bool = False) -> bool:
    """Whether a feature gate is on in a controller's pod: the chart writes them into ``FEATURE_GATES``
    (aws/karpenter-provider-aws v1.14.1 ``charts/karpenter/templates/deployment.yaml``).

    :param default: for a pod that does not say (kubernetes-sigs/karpenter v1.14.1 ``pkg/operator/options``).
    """
    for container in pod["spec"]["containers"]:
        for item in container.get("env") or []:
            if item["name"] == "FEATURE_GATES":
                gates = dict(part.partition("=")[::2] for part in str(item.get("value") or "").split(","))
                return gates.get(wanted, str(default)).strip().lower() == "true"
    return default
