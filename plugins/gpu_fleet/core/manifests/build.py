"""Kubernetes manifests of a cluster spec: templates of ``include/manifests`` completed in code, no Jinja.

Each builder has a name in :data:`BUILDERS`, so that a task can say ``builder="node_pool", builder_args={"pool": …}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.names import (
    BUILT_IN,
    GPU_RESOURCE,
    LABEL_CAPACITY_TYPE,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_DEVICE_PLUGIN,
    LABEL_GPU_PRESENT,
    LABEL_INSTANCE_TYPE,
    LABEL_MPS_CAPABLE,
    LABEL_NODE_POOL,
    LABEL_PLUGIN_CONFIG,
    LABEL_POOL,
    LABEL_RESERVATION_TYPE,
    RESERVATION_BLOCK,
    RESERVATION_DEFAULT,
    SERVED,
    SYSTEM_NAMESPACE,
    TAINT_UNPROVEN,
)
from gpu_fleet.core.manifests.node_class import complete_class
from gpu_fleet.core.manifests.overlays import WEIGHT, overlaid, overlay_name, shares
from gpu_fleet.core.manifests.pool_facts import UNKNOWN, PoolFacts, limits_of, physical, weights
from gpu_fleet.core.manifests.templates import template
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.spec.budgets import budgets_of
from gpu_fleet.core.spec.capacity import ReservationTerm
from gpu_fleet.core.spec.instances import architecture

#: The startup taint of gated pools. It is in ``startupTaints`` and not in ``taints``, so that Karpenter buys a node for
#: pods that do not tolerate it, and counts on a node that still has it instead of buying another one
#: (kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/state/statenode.go``, ``Taints``).
UNPROVEN = {"key": TAINT_UNPROVEN, "effect": "NoSchedule"}

Manifest = dict[str, Any]
#: ``(spec, **builder_args) -> manifests`` in the order in which they are to be applied.
Builder = Callable[..., list[Manifest]]


def _architectures(instance_types: Iterable[str]) -> list[str]:
    """All architectures of the types: a single one would exclude the other types of a mixed pool without a message."""
    return sorted({architecture(name) for name in instance_types})


def build(name: str, spec: ClusterSpec, **args: Any) -> list[Manifest]:
    """The manifests of the builder of that name.

    :raises KeyError: with the known names, if there is none.
    :raises SpecError: if an argument names a pool that the spec does not have.
    """
    if name not in BUILDERS:
        raise KeyError(f"no manifest builder {name!r}; known: {', '.join(sorted(BUILDERS))}")
    return BUILDERS[name](spec, **args)


def labels(spec: ClusterSpec, *, component: str = "manifest", pool: str | None = None) -> dict[str, str]:
    """Our labels on every object that the package applies."""
    mine = {LABEL_CLUSTER: spec.name, LABEL_COMPONENT: component}
    return mine if pool is None else {**mine, LABEL_POOL: pool}


def _complete(spec: ClusterSpec, name: str, *, object_name: str | None = None, pool: str | None = None) -> Manifest:
    manifest = template(f"manifests/{name}")
    metadata = manifest["metadata"]
    if object_name is not None:
        metadata["name"] = object_name
    metadata["labels"] = {**metadata.get("labels", {}), **labels(spec, pool=pool)}
    return manifest


def runtime_class(spec: ClusterSpec) -> list[Manifest]:
    """RuntimeClass ``nvidia``; without it no device-plugin pod can even be created."""
    return [_complete(spec, "runtime-class")]


def system_namespaces(spec: ClusterSpec) -> list[Manifest]:
    """The package's own namespaces, and the device plugin's where we manage it (so that helm need not create it)."""
    wanted = [SYSTEM_NAMESPACE, spec.validation.namespace]
    if spec.device_plugin.manage and spec.device_plugin.namespace != "kube-system":
        wanted.append(spec.device_plugin.namespace)
    return [_complete(spec, "namespace", object_name=name) for name in dict.fromkeys(wanted)]


def placeholder_priority(spec: ClusterSpec) -> list[Manifest]:
    """The PriorityClass of placeholders and probes: below all others, and without preemption."""
    return [_complete(spec, "placeholder-priority")]


def node_class(spec: ClusterSpec, *, pool: str) -> list[Manifest]:
    """A pool's EC2NodeClass (karpenter.k8s.aws/v1), of the same name."""
    this = spec.pool(pool)
    manifest = _complete(spec, "node-class", object_name=this.name, pool=this.name)
    complete_class(manifest["spec"], spec, this)
    manifest["spec"]["tags"] |= {LABEL_CLUSTER: spec.name, LABEL_POOL: this.name}
    if terms := spec.reservations(this):
        manifest["spec"]["capacityReservationSelectorTerms"] = [_reservation(term) for term in terms]
    return [manifest]


def _reservation(term: ReservationTerm) -> dict[str, Any]:
    if term.id is not None:
        return {"id": term.id}
    return {"tags": dict(term.tags), **({"ownerID": term.owner} if term.owner else {})}


def pool_labels(pool: NodePool) -> dict[str, str]:
    """Labels of a pool's nodes.

    The first makes our device plugin run there, or says that the AMI brings one, which ours must keep off. Nodes have
    it also where the plugin belongs to others, so that these can distinguish our nodes from theirs, and a change of
    owner drifts no node. The second says that there are GPUs,
    the third selects the plugin's config (an entry that others have named where the plugin is theirs), and the fourth,
    of MPS pools, makes the chart's MPS control daemon run there (GPU Feature Discovery, which would set it too, is not
    installed).
    """
    entry = pool.labels.get(LABEL_PLUGIN_CONFIG, pool.config_entry)
    served = BUILT_IN if pool.built_in_plugin else SERVED
    mine = {LABEL_DEVICE_PLUGIN: served, LABEL_GPU_PRESENT: "true", LABEL_PLUGIN_CONFIG: entry}
    return {**pool.labels, **mine, **({LABEL_MPS_CAPABLE: "true"} if pool.mps else {})}


def pool_taints(pool: NodePool) -> list[dict[str, str]]:
    """The pool's taints, as Kubernetes writes them (an empty value is left out)."""
    return [{"key": t.key, **({"value": t.value} if t.value else {}), "effect": t.effect} for t in pool.taints]


def _disruption(pool: NodePool) -> dict[str, Any]:
    disruption = pool.disruption
    budgets: list[dict[str, Any]] = []
    for budget in budgets_of(disruption):
        entry: dict[str, Any] = {"nodes": budget.nodes}
        if budget.reasons:
            entry["reasons"] = list(budget.reasons)
        if budget.schedule is not None and budget.duration is not None:
            entry |= {"schedule": budget.schedule, "duration": str(budget.duration)}
        budgets.append(entry)
    body: dict[str, Any] = {
        "consolidationPolicy": disruption.consolidation_policy,
        "consolidateAfter": str(disruption.consolidate_after),
    }
    return {**body, "budgets": budgets}


def node_pool(spec: ClusterSpec, *, pool: str, facts: PoolFacts = UNKNOWN) -> list[Manifest]:
    """A pool's NodePool (karpenter.sh/v1).

    Applying it also undoes a freeze: it has the pool's own limits, and none of the annotations of a freeze.

    :param facts: hardware and prices, which determine limits and weight, but nothing in the template.
    """
    this = spec.pool(pool)
    manifest = _complete(spec, "node-pool", object_name=this.name, pool=this.name)
    body = manifest["spec"]
    node = body["template"]
    # Jobs select their pool by its name. Nothing on the node depends on that label: a node without it has no defect.
    node["metadata"]["labels"] = {**pool_labels(this), LABEL_POOL: this.name}
    node["spec"]["nodeClassRef"]["name"] = this.name
    node["spec"]["requirements"] = [
        _in(LABEL_INSTANCE_TYPE, *this.instance_types),
        _in(LABEL_CAPACITY_TYPE, *this.capacity_types),
        _in("kubernetes.io/arch", *_architectures(this.instance_types)),
        _in("kubernetes.io/os", "linux"),
    ]
    if this.capacity_types == ("reserved",):
        # A block ends with its nodes, so none is launched into by a pool that does not expect that, and vice versa.
        kind = RESERVATION_DEFAULT if this.capacity_block is None else RESERVATION_BLOCK
        node["spec"]["requirements"].append(_in(LABEL_RESERVATION_TYPE, kind))
    taints = pool_taints(this)
    if taints:
        node["spec"]["taints"] = taints
    if spec.gated(this):
        node["spec"]["startupTaints"] = [dict(UNPROVEN)]
    node["spec"]["expireAfter"] = str(this.expire_after)
    if this.termination_grace_period is not None:
        node["spec"]["terminationGracePeriod"] = str(this.termination_grace_period)
    body["disruption"] = _disruption(this)
    body["limits"] = limits_of(this, facts)
    weight = weights(spec, facts.prices or PriceList.unknown(spec.region))[this.name]
    if weight is not None:
        body["weight"] = weight
    return [manifest]


def node_overlay(spec: ClusterSpec, *, pool: str, facts: PoolFacts = UNKNOWN) -> list[Manifest]:
    """A shared pool's NodeOverlay (karpenter.sh/v1alpha1): how many GPUs a node of it will advertise. Empty for a pool
    without an overlay.

    :raises SpecError: if the number of GPUs of the instance types is neither known from EC2 nor in the table.
    """
    this = spec.pool(pool)
    if not overlaid(spec, this):
        return []
    count = physical(this, facts)
    if count is None:
        raise SpecError(
            f"the number of GPUs of {', '.join(this.instance_types)} is unknown without asking EC2",
            field="nodePools[].instanceTypes",
            remedy="build the NodeOverlay with what EC2 says",
        )
    manifest = _complete(spec, "node-overlay", object_name=overlay_name(this.name), pool=this.name)
    manifest["spec"] = {
        "weight": WEIGHT,
        "requirements": [_in(LABEL_NODE_POOL, this.name), _in(LABEL_INSTANCE_TYPE, *this.instance_types)],
        "capacity": {GPU_RESOURCE: str(shares(this, count))},
    }
    return [manifest]


def _in(key: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


BUILDERS: Mapping[str, Builder] = {
    "node_class": node_class,
    "node_overlay": node_overlay,
    "node_pool": node_pool,
    "placeholder_priority": placeholder_priority,
    "runtime_class": runtime_class,
    "system_namespaces": system_namespaces,
}
