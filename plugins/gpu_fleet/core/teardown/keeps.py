"""Whether a teardown removes the device plugin and the RuntimeClass, or keeps them because others need them.

Decided only here, from what was observed. The plan decides and a person approves; the tasks that remove the two decide
again from the state at that time, and keep what either decision keeps (:meth:`Keeps.merged`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    DEVICE_PLUGIN_RELEASE,
    LABEL_COMPONENT,
    LABEL_GPU_PRESENT,
    LABEL_NODE_POOL,
    RUNTIME_CLASS_NAME,
)
from gpu_fleet.core.kubernetes.objects import deleting, is_true
from gpu_fleet.core.kubernetes.pod_end import controller_of, is_finished
from gpu_fleet.core.releases.objects import belongs_to
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.gpu_types import group_may_have_gpus, node_has_gpus, pool_may_launch_gpus
from gpu_fleet.core.teardown.remains import shorten
from gpu_fleet.core.teardown.scope import (
    Observed,
    doomed_nodes,
    doomed_pools,
)

Json = Mapping[str, Any]

#: Label domains whose labels a node gets from the kubelet, EKS or Karpenter, so that no template has to name them.
_GIVEN = ("kubernetes.io", "k8s.io", "karpenter.sh", "karpenter.k8s.aws", "eks.amazonaws.com")
#: Kinds of workloads that :class:`Observed` has; their pods need not be looked at.
_WORKLOADS = frozenset({"DaemonSet", "Deployment", "ReplicaSet", "StatefulSet", "Job", "CronJob"})


@dataclass(frozen=True)
class Keeps:
    """Why the device plugin and the RuntimeClass are kept, in words; empty: they are removed.

    :ivar device_plugin: who uses it.
    :ivar runtime_class: who names it or may need it.
    """

    device_plugin: tuple[str, ...] = ()
    runtime_class: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[str]]:
        return {"devicePlugin": list(self.device_plugin), "runtimeClass": list(self.runtime_class)}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[str]]) -> Keeps:
        return cls(tuple(value.get("devicePlugin") or ()), tuple(value.get("runtimeClass") or ()))

    def merged(self, approved: Keeps) -> Keeps:
        """What is kept now, or was kept in the approved plan: nothing is removed that a person has not approved."""
        return Keeps(
            _merged(self.device_plugin, approved.device_plugin), _merged(self.runtime_class, approved.runtime_class)
        )


def _merged(now: tuple[str, ...], approved: tuple[str, ...]) -> tuple[str, ...]:
    return now or tuple(f"{reason} (when the teardown was approved)" for reason in approved)


def decide(spec: ClusterSpec, observed: Observed) -> Keeps:
    """Who needs the two after the teardown."""
    going_pools, going_nodes = set(doomed_pools(spec, observed.node_pools)), set(doomed_nodes(spec, observed))
    pools = [
        pool
        for pool in observed.node_pools
        if pool["metadata"]["name"] not in going_pools and not deleting(pool) and pool_may_launch_gpus(pool)
    ]
    nodes = [
        node
        for node in observed.nodes
        if node["metadata"]["name"] not in going_nodes and not deleting(node) and node_has_gpus(node)
    ]
    groups = [
        group
        for group in observed.node_groups or ()
        if group.get("status") != "DELETING" and group_may_have_gpus(group)
    ]
    plugins = [item for item in observed.workloads if _is_plugin(spec, item) and item.get("kind") == "DaemonSet"]
    kept = _kept_by_file(spec)
    device_plugin = [
        *kept,
        *_nodes("GPU node", (node for node in nodes if _selected(plugins, _labels_of_node(node), certain=True))),
        *_nodes("NodePool", (pool for pool in pools if _selected(plugins, _labels_of_pool(pool), certain=False))),
        *_groups(group for group in groups if _selected(plugins, _labels_of_group(group), certain=False)),
    ]
    if observed.node_groups is None and _selected(plugins, _GPU_LABELS, certain=True):
        device_plugin.append(_UNKNOWN_GROUPS)
    runtime_class = [
        *kept,
        *(["the device plugin, which is kept, uses it"] if device_plugin and not kept else []),
        *_names(spec, observed, going_nodes),
        *_nodes("GPU node", nodes),
        *_nodes("NodePool", pools),
        *_groups(groups),
        *([] if observed.node_groups is not None else [_UNKNOWN_GROUPS]),
    ]
    return Keeps(tuple(device_plugin), tuple(runtime_class))


_UNKNOWN_GROUPS = (
    "whether EKS node groups with GPUs exist is unknown: grant eks:ListNodegroups and eks:DescribeNodegroup"
)


def _kept_by_file(spec: ClusterSpec) -> list[str]:
    names = [pool.name for pool in spec.node_pools if not pool.manage]
    return [f"pool {', '.join(names)} of the same file stays (manage: false)"] if names else []


def _nodes(kind: str, items: Iterable[Json]) -> list[str]:
    names = sorted(str(item["metadata"]["name"]) for item in items)
    if not names:
        return []
    may = "may launch nodes with GPUs" if kind == "NodePool" else "has GPUs and is not removed"
    several = len(names) > 1
    verb = may if not several else may.replace("has", "have").replace("is not", "are not")
    return [f"{kind}{'s' if several else ''} {shorten(names)} {verb}"]


def _groups(groups: Iterable[Json]) -> list[str]:
    names = sorted(str(group["nodegroupName"]) for group in groups)
    return [f"EKS node group {shorten(names)} may have nodes with GPUs"] if names else []


# --- whom the device plugin serves ----------------------------------------------------------------------------------

Labels = Mapping[str, frozenset[str]]

#: From Kubernetes 1.35 on, nodeadm sets this label on every AL2023 node with an NVIDIA device, whoever owns it
#: (awslabs/amazon-eks-ami v20260714 nodeadm/internal/kubelet/config.go); GPU Feature Discovery does on others.
_GPU_LABELS: Labels = {LABEL_GPU_PRESENT: frozenset({"true"})}


def _is_plugin(spec: ClusterSpec, item: Json) -> bool:
    ours = spec.device_plugin.manage
    return ours and belongs_to(item, DEVICE_PLUGIN_RELEASE, spec.device_plugin.namespace)


def _labels_of_node(node: Json) -> Labels:
    return {key: frozenset({str(value)}) for key, value in (node["metadata"].get("labels") or {}).items()}


def _labels_of_pool(pool: Json) -> Labels:
    template = (pool.get("spec") or {}).get("template") or {}
    labels = {key: frozenset({str(value)}) for key, value in (template.get("metadata") or {}).get("labels", {}).items()}
    for requirement in (template.get("spec") or {}).get("requirements") or []:
        if requirement.get("operator") == "In":
            labels[str(requirement["key"])] = frozenset(map(str, requirement.get("values") or ()))
    return {**_GPU_LABELS, **labels, LABEL_NODE_POOL: frozenset({str(pool["metadata"]["name"])})}


def _labels_of_group(group: Json) -> Labels:
    return {**_GPU_LABELS, **{key: frozenset({str(value)}) for key, value in (group.get("labels") or {}).items()}}


def _selected(daemon_sets: Iterable[Json], labels: Labels, *, certain: bool) -> bool:
    """Whether one of the DaemonSets runs a pod on a node with these labels.

    :param certain: these are all labels; else labels that every node gets by itself are assumed to match.
    """
    return any(_fits(((item.get("spec") or {}).get("template") or {}).get("spec") or {}, labels, certain)
               for item in daemon_sets)  # fmt: skip


def _fits(pod: Json, labels: Labels, certain: bool) -> bool:
    for key, value in (pod.get("nodeSelector") or {}).items():
        if not _holds({"key": key, "operator": "In", "values": [value]}, labels, certain):
            return False
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if affinity is None:
        return True
    return any(
        all(_holds(rule, labels, certain) for rule in term.get("matchExpressions") or [])
        for term in affinity.get("nodeSelectorTerms") or []
        if term.get("matchExpressions")
    )


def _holds(rule: Json, labels: Labels, certain: bool) -> bool:
    key, operator, values = str(rule["key"]), rule.get("operator"), frozenset(map(str, rule.get("values") or ()))
    found = labels.get(key)
    if found is None and not certain and key.partition("/")[0].endswith(_GIVEN):
        return True
    if operator in ("Exists", "Gt", "Lt"):
        return found is not None
    if operator == "DoesNotExist":
        return found is None
    if operator == "NotIn":
        return found is None or not found <= values
    return found is not None and not found.isdisjoint(values)


# --- who names the RuntimeClass -------------------------------------------------------------------------------------


def _names(spec: ClusterSpec, observed: Observed, going_nodes: set[str]) -> list[str]:
    """Workloads, and pods without such a workload, that name the class and remain after this teardown."""
    found = [
        f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}"
        for item in observed.workloads
        if _template_names_it(item)
        and not _is_plugin(spec, item)
        and not _is_ours(item)
        and controller_of(item) is None
        and not _is_over(item)
    ]
    for pod in observed.pods:
        owner = controller_of(pod)
        spec_of_pod = pod.get("spec") or {}
        if spec_of_pod.get("runtimeClassName") != RUNTIME_CLASS_NAME or is_finished(pod) or _is_ours(pod):
            continue
        if (owner is None and spec_of_pod.get("nodeName") in going_nodes) or (owner or {}).get("kind") in _WORKLOADS:
            continue
        by = f" of {owner.get('kind')} {owner.get('name')}" if owner is not None else ""
        found.append(f"Pod {pod['metadata']['namespace']}/{pod['metadata']['name']}{by}")
    if not found:
        return []
    return [f"{shorten(sorted(found))} {'name it' if len(found) > 1 else 'names it'} (runtimeClassName)"]


def _template_names_it(item: Json) -> bool:
    body = item.get("spec") or {}
    if item.get("kind") == "CronJob":
        body = ((body.get("jobTemplate") or {}).get("spec")) or {}
    pod = (body.get("template") or {}).get("spec") or {}
    return bool(pod.get("runtimeClassName") == RUNTIME_CLASS_NAME)


def _is_ours(item: Json) -> bool:
    return LABEL_COMPONENT in (item["metadata"].get("labels") or {})


def _is_over(item: Json) -> bool:
    if deleting(item):
        return True
    return item.get("kind") == "Job" and (is_true(item, "Complete") or is_true(item, "Failed"))


def stays(what: str, why: Iterable[str]) -> str:
    """One sentence for logs and approval."""
    return f"the {what} stays: {'; '.join(why)}"
