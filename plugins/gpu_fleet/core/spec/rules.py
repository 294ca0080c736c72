"""Rules between fields of a cluster spec: an ordered list of small functions; each yields the problems it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.kubernetes.names import DOMAIN, LABEL_GPU_PRESENT, LABEL_MPS_CAPABLE, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.spec.capacity.admission import gate_is_no_taint, gates_only_own_pools
from gpu_fleet.core.spec.capacity.headroom_rules import HEADROOM
from gpu_fleet.core.spec.capacity.ladder_rules import LADDER
from gpu_fleet.core.spec.capacity.reservation_rules import RESERVED
from gpu_fleet.core.spec.instances import OTHER_ACCELERATORS, is_fractional, physical_gpus
from gpu_fleet.core.spec.node_rules import NODE_RULES
from gpu_fleet.core.spec.owned_values import OWNED_VALUES
from gpu_fleet.core.spec.problems import Problem
from gpu_fleet.core.spec.types.names import version_tuple

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec

#: Oldest Karpenter per Kubernetes version (Karpenter documentation, Upgrading > Compatibility matrix).
OLDEST_KARPENTER: dict[str, str] = {
    "1.30": "1.0",
    "1.31": "1.0.5",
    "1.32": "1.2",
    "1.33": "1.5",
    "1.34": "1.6",
    "1.35": "1.9",
    "1.36": "1.13",
}

#: First Karpenter that launches nothing for a dynamic NodePool whose ``limits.nodes`` is used up, and so nothing past
#: the 0 by which a teardown freezes it (kubernetes-sigs/karpenter#2526, first in v1.11.0; v1.10 looks at such a limit
#: for static NodePools only). It compares between scheduling passes: within one it still launches past any limit but 0,
#: up to and including v1.14.1 (#2915), which is why a NodePool of ours has ``limits.cpu`` too.
FIRST_WITH_NODE_LIMITS = "1.11"
#: First Karpenter that knows the consolidation policy ``Balanced``.
FIRST_WITH_BALANCED = "1.14"

#: Label domains, and a label, that Karpenter's CRD refuses in a NodePool's template.
RESTRICTED_LABEL_DOMAINS = ("karpenter.sh", "karpenter.k8s.aws")
RESTRICTED_LABELS = ("kubernetes.io/hostname",)


def known_kubernetes(spec: ClusterSpec) -> Iterator[Problem]:
    if spec.cluster.version not in OLDEST_KARPENTER:
        yield Problem(
            "cluster.version",
            f"Kubernetes {spec.cluster.version} has no EKS GPU AMI that this package supports",
            f"one of {', '.join(OLDEST_KARPENTER)}",
        )


def karpenter_supports_kubernetes(spec: ClusterSpec) -> Iterator[Problem]:
    supports = OLDEST_KARPENTER.get(spec.cluster.version, FIRST_WITH_NODE_LIMITS)
    oldest = max(supports, FIRST_WITH_NODE_LIMITS, key=version_tuple)
    version = spec.karpenter.chart.version
    if version_tuple(version) < version_tuple(supports):
        why = f"Karpenter {version} does not support Kubernetes {spec.cluster.version}"
    elif version_tuple(version) < version_tuple(oldest):
        why = f"Karpenter {version} ignores limits.nodes, and so launches nodes despite a teardown's freeze"
    else:
        return
    yield Problem("karpenter.chart.version", why, f"use {oldest} or later")


def karpenter_knows_the_policy(spec: ClusterSpec) -> Iterator[Problem]:
    version = spec.karpenter.chart.version
    for index, pool in enumerate(spec.node_pools):
        balanced = pool.manage and pool.disruption.consolidation_policy == "Balanced"
        if balanced and version_tuple(version) < version_tuple(FIRST_WITH_BALANCED):
            yield Problem(
                f"nodePools[{index}].disruption.consolidationPolicy",
                f"Karpenter {version} does not know 'Balanced'",
                f"use WhenEmpty, or Karpenter {FIRST_WITH_BALANCED} or later",
            )


def unique_pools(spec: ClusterSpec) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, pool in enumerate(spec.node_pools):
        if pool.name in seen:
            yield Problem(
                f"nodePools[{index}].name",
                f"{pool.name!r} is already the name of nodePools[{seen[pool.name]}]",
                "give each pool its own name",
            )
        seen.setdefault(pool.name, index)


def unique_entries(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        for key, values in (("instanceTypes", pool.instance_types), ("capacityTypes", pool.capacity_types)):
            double = sorted(value for value, times in Counter(values).items() if times > 1)
            if double:
                yield Problem(f"nodePools[{index}].{key}", f"duplicate entry {double[0]!r}", "remove one")


def nvidia_instances(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        for position, instance_type in enumerate(pool.instance_types):
            other = OTHER_ACCELERATORS.get(instance_type.split(".")[0])
            if other:
                yield Problem(
                    f"nodePools[{index}].instanceTypes[{position}]",
                    f"{instance_type} has {other}, which the NVIDIA device plugin cannot serve",
                    "choose an instance type with NVIDIA GPUs, for example g5.xlarge",
                )
            if is_fractional(instance_type):
                yield Problem(
                    f"nodePools[{index}].instanceTypes[{position}]",
                    f"{instance_type} has only a part of a GPU: EC2 reports 0 GPUs, so Karpenter treats it as a node "
                    "without GPUs",
                    "choose a type with whole GPUs, for example g6.xlarge, and share it",
                )


def same_gpu_count(spec: ClusterSpec) -> Iterator[Problem]:
    """Placeholders ask for a node's physical GPUs, so all nodes of a pool must have the same number.

    For a type that is not in the catalogue, only EC2 knows the number: preflight asks it.
    """
    for index, pool in enumerate(spec.node_pools):
        counts = {name: count for name in pool.instance_types if (count := physical_gpus(name)) is not None}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            yield Problem(
                f"nodePools[{index}].instanceTypes",
                f"pool {pool.name} mixes instance types with different GPU counts ({listed})",
                "make one pool per GPU count",
            )


def limits_cover_wanted(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        if pool.node_limit < pool.wanted_nodes:
            yield Problem(
                f"nodePools[{index}].limits.nodes",
                f"{pool.node_limit} is less than wantedNodes {pool.wanted_nodes}: the rest would never be launched",
                f"at least {pool.wanted_nodes}",
            )


def distinct_taints(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        pairs = [(taint.key, taint.effect) for taint in pool.taints]
        for position, pair in enumerate(pairs):
            if pair in pairs[:position]:
                yield Problem(
                    f"nodePools[{index}].taints[{position}]",
                    f"duplicate taint key and effect {pair[0]}:{pair[1]}, which Karpenter refuses",
                    "remove one",
                )


def labels_are_free(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        for key in pool.labels:
            domain = key.split("/")[0]
            if key == LABEL_PLUGIN_CONFIG and not spec.device_plugin.manage:
                continue  # the name of the entry in the ConfigMap of the plugin's owner
            if key in (LABEL_GPU_PRESENT, LABEL_PLUGIN_CONFIG, LABEL_MPS_CAPABLE):
                yield Problem(
                    f"nodePools[{index}].labels", f"{key} follows from the pool's sharing", f"remove {key}; set sharing"
                )
            elif domain == DOMAIN:
                yield Problem(f"nodePools[{index}].labels", f"{key} is set by the package itself", f"remove {key}")
            elif key in RESTRICTED_LABELS:
                yield Problem(
                    f"nodePools[{index}].labels",
                    f"{key} is specific to each node and restricted by Karpenter",
                    f"remove {key}",
                )
            elif any(domain == part or domain.endswith(f".{part}") for part in RESTRICTED_LABEL_DOMAINS):
                yield Problem(
                    f"nodePools[{index}].labels", f'label domain "{domain}" is restricted by Karpenter', f"remove {key}"
                )


def budgets_are_whole(spec: ClusterSpec) -> Iterator[Problem]:
    for index, pool in enumerate(spec.node_pools):
        for position, budget in enumerate(pool.disruption.budgets):
            if (budget.schedule is None) != (budget.duration is None):
                yield Problem(
                    f"nodePools[{index}].disruption.budgets[{position}]",
                    "'schedule' must be set with 'duration'",
                    "give both or neither",
                )


def gate_of_overlays_is_on(spec: ClusterSpec) -> Iterator[Problem]:
    """Without the feature gate Karpenter ignores the package's NodeOverlays without any message."""
    shared = any(pool.manage and pool.shared for pool in spec.node_pools)
    if not (spec.karpenter.manage and spec.karpenter.node_overlays and shared):
        return
    gates = spec.karpenter.settings.get("featureGates")
    if isinstance(gates, dict) and gates.get("nodeOverlay", True) is not True:
        yield Problem(
            "karpenter.settings.featureGates.nodeOverlay",
            "turns off what karpenter.nodeOverlays has the package rely on",
            "remove it, and write karpenter.nodeOverlays: false if that is what you want",
        )


def drain_fits_its_deadline(spec: ClusterSpec) -> Iterator[Problem]:
    if spec.drain.timeout > spec.deadlines.drain:
        yield Problem(
            "drain.timeout",
            f"{spec.drain.timeout.text} is longer than deadlines.drain {spec.deadlines.drain.text}",
            "raise deadlines.drain or shorten drain.timeout",
        )


def deadlines_are_positive(spec: ClusterSpec) -> Iterator[Problem]:
    for name in type(spec.deadlines).model_fields:
        if getattr(spec.deadlines, name) <= 0:
            alias = type(spec.deadlines).model_fields[name].alias or name
            yield Problem(f"deadlines.{alias}", "must be longer than 0s", "write for example 5m")


def teardown_can_remove_pools(spec: ClusterSpec) -> Iterator[Problem]:
    """Without Karpenter nothing completes the deletion of pools that belong to others."""
    foreign = [pool.name for pool in spec.node_pools if not pool.manage]
    if foreign and spec.karpenter.manage and spec.teardown.uninstall_karpenter:
        yield Problem(
            "teardown.uninstallKarpenter",
            f"pools that the package does not manage need Karpenter after the teardown ({', '.join(foreign)})",
            "set teardown.uninstallKarpenter: false",
        )


#: Seconds besides the measurement itself: pods are scheduled, pull their image, start and are observed.
_SETTLING_S = 60


def measurement_fits_its_deadline(spec: ClusterSpec) -> Iterator[Problem]:
    probes, deadline = spec.validation.probes, spec.deadlines.validation
    duration, overlap = spec.validation.throughput.duration, spec.validation.overlap
    shared = any(pool.shared for pool in spec.node_pools)
    if duration < 1:
        yield Problem("validation.throughput.duration", "must be longer than 0s", "write for example 10s")
        return
    # As in core/probes/pods.py measuring_seconds: on a shared GPU one sharer then computes alone for the same time.
    measured = 2 * (overlap + duration) if shared else int(duration)
    if probes.throughput and measured + _SETTLING_S > deadline:
        why = f"sharers measure for validation.overlap {overlap.text} + this once together and once alone, and "
        yield Problem(
            "validation.throughput.duration",
            f"{duration.text} does not fit into deadlines.validation {deadline.text}: {why if shared else 'probes '}"
            "have to start first",
            "shorten it or raise deadlines.validation",
        )
    elif (probes.sharing or probes.exclusive) and overlap + _SETTLING_S > deadline:
        yield Problem(
            "validation.overlap",
            f"{overlap.text} does not fit into deadlines.validation {deadline.text}: probes have to start first",
            "shorten it or raise deadlines.validation",
        )


#: Seconds that each level of ``dcgmi diag`` takes at least (NVIDIA DCGM documentation, 'DCGM Diagnostics').
DCGM_SECONDS = {1: 30, 2: 180, 3: 1200}


def diagnostics_fit_their_deadline(spec: ClusterSpec) -> Iterator[Problem]:
    level = spec.validation.probes.dcgm
    if level is not None and DCGM_SECONDS[level] + _SETTLING_S > spec.deadlines.validation:
        yield Problem(
            "validation.probes.dcgm",
            f"level {level} takes longer than deadlines.validation {spec.deadlines.validation.text}",
            f"raise deadlines.validation to {(DCGM_SECONDS[level] + _SETTLING_S) // 60 + 5}m or choose a lower level",
        )


def overdue_needs_a_schedule(spec: ClusterSpec) -> Iterator[Problem]:
    if spec.validation.overdue_after is not None and spec.schedule is None:
        yield Problem("validation.overdueAfter", "has no effect without a schedule", "set schedule, or remove it")


def only_own_nodes_are_replaced(spec: ClusterSpec) -> Iterator[Problem]:
    foreign = [pool.name for pool in spec.node_pools if not pool.manage]
    if spec.validation.on_failure.policy == "replace" and foreign:
        yield Problem(
            "validation.onFailure.policy",
            f"the package must not replace nodes of pools that it does not manage ({', '.join(foreign)})",
            "use alert or quarantine",
        )


Rule = Callable[["ClusterSpec"], Iterator[Problem]]

RULES: tuple[Rule, ...] = (
    known_kubernetes,
    karpenter_supports_kubernetes,
    karpenter_knows_the_policy,
    unique_pools,
    unique_entries,
    nvidia_instances,
    same_gpu_count,
    limits_cover_wanted,
    *LADDER,
    *RESERVED,
    distinct_taints,
    labels_are_free,
    budgets_are_whole,
    *NODE_RULES,
    *OWNED_VALUES,
    *HEADROOM,
    gate_of_overlays_is_on,
    drain_fits_its_deadline,
    deadlines_are_positive,
    teardown_can_remove_pools,
    measurement_fits_its_deadline,
    diagnostics_fit_their_deadline,
    overdue_needs_a_schedule,
    only_own_nodes_are_replaced,
    gates_only_own_pools,
    gate_is_no_taint,
)
