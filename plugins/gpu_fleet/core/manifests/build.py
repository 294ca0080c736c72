"""Kubernetes manifests of a cluster spec: templates of ``include/manifests`` completed in code, no Jinja.

Builders are registered under a name, so that a task can say ``builder="node_pool", builder_args={"pool": …}``; other
modules add their own with :func:`builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.names import (
    DISCOVERY_TAG,
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
    SERVED,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.manifests.overlays import WEIGHT, overlaid, overlay_name, shares
from gpu_fleet.core.manifests.pool_facts import UNKNOWN, PoolFacts, limits_of, physical, weights
from gpu_fleet.core.manifests.templates import template
from gpu_fleet.core.spec import ClusterSpec, NodePool
from gpu_fleet.core.spec.budgets import budgets_of

Manifest = dict[str, Any]
#: ``(spec, **builder_args) -> manifests`` in the order in which they are to be applied.
Builder = Callable[..., list[Manifest]]
BUILDERS: dict[str, Builder] = {}
_B = TypeVar("_B", bound=Builder)

#: Instance families with Arm processors (AWS Graviton, NVIDIA Grace) among those with NVIDIA GPUs.
_ARM_FAMILIES = frozenset({"g5g", "p6e-gb200", "p6e-gb300"})


def _architectures(instance_types: Iterable[str]) -> list[str]:
    """All that the types have: one alone would silently take the others out of a pool that mixes them."""
    return sorted({"arm64" if name.partition(".")[0] in _ARM_FAMILIES else "amd64" for name in instance_types})


def builder(name: str) -> Callable[[_B], _B]:
    """Register a function ``(spec, **args) -> list of manifests`` under a new name."""

    def register(function: _B) -> _B:
        if name in BUILDERS:
            raise ValueError(f"manifest builder {name!r} is registered twice")
        BUILDERS[name] = function
        return function

    return register


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


@builder("runtime_class")
def runtime_class(spec: ClusterSpec) -> list[Manifest]:
    """RuntimeClass ``nvidia``; without it no device-plugin pod can even be created."""
    return [_complete(spec, "runtime-class")]


@builder("system_namespaces")
def system_namespaces(spec: ClusterSpec) -> list[Manifest]:
    """The package's own namespaces, and the device plugin's where we manage it (so that helm need not create it)."""
    wanted = [SYSTEM_NAMESPACE, spec.validation.namespace]
    if spec.device_plugin.manage and spec.device_plugin.namespace != "kube-system":
        wanted.append(spec.device_plugin.namespace)
    return [_complete(spec, "namespace", object_name=name) for name in dict.fromkeys(wanted)]


@builder("placeholder_priority")
def placeholder_priority(spec: ClusterSpec) -> list[Manifest]:
    """The PriorityClass of placeholders and probes: below everything, and preempting nobody."""
    return [_complete(spec, "placeholder-priority")]


@builder("node_class")
def node_class(spec: ClusterSpec, *, pool: str) -> list[Manifest]:
    """A pool's EC2NodeClass (karpenter.k8s.aws/v1), of the same name."""
    this = spec.pool(pool)
    manifest = _complete(spec, "node-class", object_name=this.name, pool=this.name)
    body = manifest["spec"]
    alias = spec.ami_alias(this)
    body["role"] = spec.node_class.role
    body["amiSelectorTerms"] = [{"alias": alias}]
    for selector in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
        body[selector] = [{"tags": {DISCOVERY_TAG: spec.node_class.discovery_tag}}]
    for mapping in body["blockDeviceMappings"]:
        mapping["ebs"]["volumeSize"] = f"{spec.node_class.volume_size}Gi"
        if alias.startswith("bottlerocket@"):
            # Bottlerocket keeps the operating system on xvda (small, fixed) and images and pods on xvdb.
            mapping["deviceName"] = "/dev/xvdb"
    body["tags"] = {**spec.node_class.tags, LABEL_CLUSTER: spec.name, LABEL_POOL: this.name}
    return [manifest]


def pool_labels(pool: NodePool) -> dict[str, str]:
    """Labels of a pool's nodes.

    The first makes our device plugin want pods there. Nodes have it also where the plugin belongs to others: so these
    can tell our nodes from theirs, and a change of owner drifts no node. The second says that there are GPUs, the third
    picks the plugin's config (an entry of others' naming where the plugin is theirs), and the fourth, of MPS pools,
    makes the chart's MPS control daemon want a pod (GPU Feature Discovery, which would set it too, is not installed).
    """
    entry = pool.labels.get(LABEL_PLUGIN_CONFIG, pool.config_entry)
    mine = {LABEL_DEVICE_PLUGIN: SERVED, LABEL_GPU_PRESENT: "true", LABEL_PLUGIN_CONFIG: entry}
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


@builder("node_pool")
def node_pool(spec: ClusterSpec, *, pool: str, facts: PoolFacts = UNKNOWN) -> list[Manifest]:
    """A pool's NodePool (karpenter.sh/v1).

    Applying it also undoes a freeze: it carries the pool's own limits, and no trace of the frozen ones.

    :param facts: hardware and prices, on which limits and weight rest; nothing of the template does.
    """
    this = spec.pool(pool)
    manifest = _complete(spec, "node-pool", object_name=this.name, pool=this.name)
    body = manifest["spec"]
    node = body["template"]
    # Jobs pick their pool by its name. Nothing on the node depends on that label, so one without it is no defect.
    node["metadata"]["labels"] = {**pool_labels(this), LABEL_POOL: this.name}
    node["spec"]["nodeClassRef"]["name"] = this.name
    node["spec"]["requirements"] = [
        _in(LABEL_INSTANCE_TYPE, *this.instance_types),
        _in(LABEL_CAPACITY_TYPE, *this.capacity_types),
        _in("kubernetes.io/arch", *_architectures(this.instance_types)),
        _in("kubernetes.io/os", "linux"),
    ]
    taints = pool_taints(this)
    if taints:
        node["spec"]["taints"] = taints
    node["spec"]["expireAfter"] = str(this.expire_after)
    if this.termination_grace_period is not None:
        node["spec"]["terminationGracePeriod"] = str(this.termination_grace_period)
    body["disruption"] = _disruption(this)
    body["limits"] = limits_of(this, facts)
    weight = weights(spec, facts.prices or PriceList.unknown(spec.region))[this.name]
    if weight is not None:
        body["weight"] = weight
    return [manifest]


@builder("node_overlay")
def node_overlay(spec: ClusterSpec, *, pool: str, facts: PoolFacts = UNKNOWN) -> list[Manifest]:
    """A shared pool's NodeOverlay (karpenter.sh/v1alpha1): how many GPUs a node of it will advertise. Empty for a pool
    that has none.

    :raises SpecError: if neither EC2 was asked nor the table knows how many GPUs the instance types have.
    """
    this = spec.pool(pool)
    if not overlaid(spec, this):
        return []
    count = physical(this, facts)
    if count is None:
        raise SpecError(
            f"how many GPUs {', '.join(this.instance_types)} have is not known without asking EC2",
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
