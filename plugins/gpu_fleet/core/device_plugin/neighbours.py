"""Who else would serve the GPUs of our pools: device plugins of others, NVIDIA's GPU Operator, EKS Auto Mode; and which
pools they reach. Decided before anything is changed or bought. Pure.

What is not allowed to be looked at is *unknown*, and that is never 'nobody is there'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin, Evidence, Ours, daemon_set_plugins, plugins_of_others
from gpu_fleet.core.device_plugin.sharing import config_problem
from gpu_fleet.core.kubernetes.names import LABEL_DEVICE_PLUGIN, LABEL_NODE_POOL, LABEL_PLUGIN_CONFIG, SERVED
from gpu_fleet.core.kubernetes.node_matching import (
    LABEL_NO_OPERANDS,
    Answer,
    Match,
    Place,
    place_of_node,
    place_of_pool,
    runs_on,
)
from gpu_fleet.core.kubernetes.objects import Object, labels_of, name_of
from gpu_fleet.core.manifests.build import build

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool

#: Reasons of a refusal.
FOREIGN_PLUGIN, SECOND_PLUGIN, NO_PLUGIN = "ForeignDevicePlugin", "SecondDevicePlugin", "NoDevicePlugin"
POOL_WITHOUT_LABEL, UNKNOWN = "PoolWithoutLabel", "NeighboursUnknown"

#: The group and the kinds by which NVIDIA's GPU Operator is told what to run where.
OPERATOR_GROUP = "nvidia.com"
OPERATOR_KINDS = ("ClusterPolicy", "GPUCluster", "NVIDIADriver")
#: By which the operator places its device plugin; it sets the label on every node with an NVIDIA GPU.
LABEL_OPERATOR_PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
#: The operator's default for its DaemonSets (``daemonsets.tolerations`` of its chart).
_OPERATOR_TOLERATIONS = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
_ONE_SOCKET = (
    "two device plugins on one node share one socket, and the one that started last wins, so allocatable GPUs would be "
    "right or wrong by chance"
)
#: The API group of the node classes of EKS Auto Mode's own Karpenter.
AUTO_MODE_GROUP = "eks.amazonaws.com"
AUTO_MODE = "EKS Auto Mode"


@dataclass(frozen=True)
class Seen:
    """What the cluster shows.

    :ivar operator: objects of :data:`OPERATOR_KINDS`.
    :ivar auto_mode: ``computeConfig.enabled`` of the EKS cluster.
    :ivar node_pools: the NodePools that others manage, by name; those that do not exist are missing.
    :ivar nodes: of the spec's pools.
    :ivar config_maps: ``namespace/name`` -> the ConfigMap of a device plugin; ``None`` if it does not exist.
    :ivar unknown: what could not be looked at, with the server's words.
    """

    daemon_sets: Sequence[Object] = ()
    operator: Sequence[Object] = ()
    auto_mode: bool = False
    node_pools: Mapping[str, Object] = field(default_factory=dict)
    nodes: Sequence[Object] = ()
    config_maps: Mapping[str, Object | None] = field(default_factory=dict)
    unknown: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Neighbour:
    """Something of others that serves, or may serve, GPUs.

    :ivar pools: ours whose nodes it reaches, :ivar perhaps: those of which this depends on labels that are not known.
    :ivar counts: whether reaching a pool that our plugin serves is a conflict; else it is only worth knowing.
    :ivar serves: whether it offers ``nvidia.com/gpu``.
    :ivar why: what happens if it and our plugin are on one node.
    :ivar remedy: how its owner keeps it off our nodes.
    """

    object: str
    what: str
    pools: tuple[str, ...] = ()
    perhaps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    counts: bool = True
    serves: bool = True
    why: str = _ONE_SOCKET
    remedy: str = ""

    @property
    def conflicts(self) -> bool:
        return self.counts and bool(self.pools)

    def __str__(self) -> str:
        if not self.pools:
            return f"{self.object} ({self.what}) reaches none of our pools"
        reach = [
            f"{pool} (depending on {', '.join(sorted(self.perhaps[pool]))})" if pool in self.perhaps else pool
            for pool in self.pools
        ]
        return f"{self.object} ({self.what}) reaches nodes of pool {', '.join(reach)}"

    def to_json(self) -> dict[str, Any]:
        return {"object": self.object, "what": self.what, "pools": list(self.pools), "conflicts": self.conflicts}


@dataclass(frozen=True)
class Conflict:
    """Why the spec cannot be carried out beside what is there.

    :ivar object: what it is about, for a list of differences.
    """

    reason: str
    object: str
    message: str


@dataclass(frozen=True)
class Survey:
    """What was found; without conflicts our pools are served by exactly one plugin, as far as can be known."""

    neighbours: tuple[Neighbour, ...]
    conflicts: tuple[Conflict, ...]


def survey(spec: ClusterSpec, seen: Seen) -> Survey:
    """Who else serves GPUs on this cluster, and what of it conflicts with the spec."""
    places = _places(spec, seen)
    neighbours = [*_plugins(spec, seen, places), *_operators(seen, places), *_auto_mode(seen)]
    conflicts = [
        Conflict(
            UNKNOWN, what, f"{what} cannot be looked at ({words}); allow it to be listed: see docs/guides/deploy.md"
        )
        for what, words in seen.unknown
    ]
    if spec.device_plugin.manage:
        conflicts += [_foreign(item) for item in neighbours if item.conflicts]
        conflicts += _unlabelled(spec, seen)
    else:
        conflicts += _of_theirs(spec, seen, places, neighbours)
    return Survey(tuple(neighbours), tuple(conflicts))


# --- where our nodes are ---------------------------------------------------------------------------------------------


def _places(spec: ClusterSpec, seen: Seen) -> dict[str, list[Place]]:
    """Pool -> the nodes that its template makes, and those that are there."""
    found: dict[str, list[Place]] = {}
    for pool in spec.node_pools:
        made = build("node_pool", spec, pool=pool.name)[0] if pool.manage else seen.node_pools.get(pool.name)
        found[pool.name] = [place_of_pool(made, spec.region)] if made is not None else []
        # Nodes of an earlier version of the package get the label before the plugin is installed.
        more = {LABEL_DEVICE_PLUGIN: SERVED} if pool.manage else {}
        found[pool.name] += [
            place_of_node(node, more) for node in seen.nodes if labels_of(node).get(LABEL_NODE_POOL) == pool.name
        ]
    return found


def _reach(pod: Mapping[str, Any], places: Mapping[str, Sequence[Place]]) -> dict[str, Answer]:
    """Pool -> the strongest answer over its places, of those that are reached."""
    found: dict[str, Answer] = {}
    for pool, where in places.items():
        answers = [answer for place in where if (answer := runs_on(pod, place)).reaches]
        sure = [answer for answer in answers if answer.match is Match.YES]
        if answers:
            found[pool] = (sure or answers)[0]
    return found


def _unsure(reach: Mapping[str, Answer]) -> dict[str, frozenset[str]]:
    return {pool: answer.unknown for pool, answer in reach.items() if answer.match is Match.MAYBE}


# --- device plugins --------------------------------------------------------------------------------------------------


def _plugins(spec: ClusterSpec, seen: Seen, places: Mapping[str, Sequence[Place]]) -> list[Neighbour]:
    ours = Ours.of(spec)
    others = {plugin.ref for plugin in plugins_of_others(seen.daemon_sets, ours)}
    found = []
    for plugin in daemon_set_plugins(item for item in seen.daemon_sets if not ours.includes(item)):
        reach = _reach(plugin.pod, places)
        found.append(
            Neighbour(
                str(plugin),
                describe(plugin),
                tuple(reach),
                _unsure(reach),
                counts=plugin.ref in others,
                remedy=keep_off(plugin),
            )
        )
    return found


def describe(plugin: DaemonSetPlugin) -> str:
    """What it is and why it counts."""
    match plugin.found.evidence:
        case Evidence.IMAGE:
            return f"device plugin, image {plugin.found.image}"
        case Evidence.FOLDER:
            return f"mounts the kubelet's device-plugin folder, image {plugin.found.image}"
        case Evidence.PARENT:
            return f"mounts a parent of the kubelet's device-plugin folder, image {plugin.found.image}"


def keep_off(plugin: DaemonSetPlugin) -> str:
    """What its owner has to change so that it leaves our nodes alone, ready to be pasted."""
    if plugin.owner.startswith(OPERATOR_KINDS):
        return _operator_remedy(plugin.owner)
    required = ((plugin.pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    not_ours = {"key": LABEL_DEVICE_PLUGIN, "operator": "DoesNotExist"}
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), not_ours]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    patch = json.dumps({"spec": {"template": {"spec": {"affinity": affinity}}}}, separators=(",", ":"))
    made_by = f", in what makes it ({plugin.owner})" if plugin.owner else ""
    vouch = ""
    if plugin.found.evidence is Evidence.FOLDER:
        vouch = f"; or, if it certainly serves no nvidia.com/gpu, name it in devicePlugin.coexistsWith: [{plugin.ref}]"
    return (
        f"narrow its node affinity{made_by}: kubectl -n {plugin.namespace} patch daemonset {plugin.name} --type merge "
        f"-p '{patch}'; or take away its toleration of the pools' taints{vouch}"
    )


def _foreign(item: Neighbour) -> Conflict:
    return Conflict(
        FOREIGN_PLUGIN,
        item.object,
        f"{item}, which our device plugin is to serve: {item.why}. Keep it off: {item.remedy}. Or, if its owner is to "
        "serve these pools, set devicePlugin.manage: false",
    )


def _unlabelled(spec: ClusterSpec, seen: Seen) -> list[Conflict]:
    """NodePools of others that our plugin is to serve, and cannot: their nodes lack our label."""
    found = []
    for pool in spec.node_pools:
        item = seen.node_pools.get(pool.name)
        if pool.manage or item is None:
            continue
        template = (item.get("spec") or {}).get("template") or {}
        labels = (template.get("metadata") or {}).get("labels") or {}
        if labels.get(LABEL_DEVICE_PLUGIN) != SERVED:
            found.append(
                Conflict(
                    POOL_WITHOUT_LABEL,
                    f"NodePool {pool.name}",
                    f"the nodes of pool {pool.name} (manage: false) are to be served by our device plugin, which runs "
                    f"only on nodes labelled {LABEL_DEVICE_PLUGIN}={SERVED}; let its owner add that label to "
                    "spec.template.metadata.labels of the NodePool and to the nodes that are there, or set "
                    "devicePlugin.manage: false",
                )
            )
    return found


# --- the GPU Operator and EKS Auto Mode ------------------------------------------------------------------------------


def _operators(seen: Seen, places: Mapping[str, Sequence[Place]]) -> list[Neighbour]:
    found = []
    for item in seen.operator:
        kind, name = str(item.get("kind", "")), name_of(item)
        body = item.get("spec") or {}
        selector: Mapping[str, str] = {}
        counts, serves, why = True, kind == "ClusterPolicy", _ONE_SOCKET
        what = "NVIDIA GPU Operator, with a device plugin of its own"
        tolerations = (body.get("daemonsets") or {}).get("tolerations") or _OPERATOR_TOLERATIONS
        if kind == "ClusterPolicy" and (body.get("devicePlugin") or {}).get("enabled") is False:
            counts, serves, what = False, False, "NVIDIA GPU Operator, its device plugin switched off"
        elif kind == "GPUCluster":
            what = "NVIDIA GPU Operator, with its driver for dynamic resource allocation"
            why = "each would hand the same GPUs out without knowing of the other"
        elif kind == "NVIDIADriver":
            selector, what = body.get("nodeSelector") or {}, "NVIDIA GPU Operator, which installs a driver"
            why = "the pools' AMI brings a driver, and running jobs use it"
            tolerations = [*_OPERATOR_TOLERATIONS, *(body.get("tolerations") or [])]
        pod = {"nodeSelector": selector, "tolerations": tolerations}
        reach = _reach(pod, {pool: [p for p in where if _operands(p)] for pool, where in places.items()})
        label = f"{kind} {name}"
        remedy = _operator_remedy(label)
        found.append(Neighbour(label, what, tuple(reach), _unsure(reach), counts, serves, why, remedy))
    return found


def _operands(place: Place) -> bool:
    """Whether the operator deploys its device plugin on such nodes."""
    off = frozenset({"false"})
    return place.labels.get(LABEL_NO_OPERANDS) != off and place.labels.get(LABEL_OPERATOR_PLUGIN) != off


def _operator_remedy(owner: str) -> str:
    switch = f" or set spec.devicePlugin.enabled: false in {owner}" if owner.startswith("ClusterPolicy") else ""
    return (
        f'keep the operator off our nodes with nodePools[].labels: {{{LABEL_NO_OPERANDS}: "false"}} in the spec{switch}'
    )


def _auto_mode(seen: Seen) -> list[Neighbour]:
    """Auto Mode's plugin is part of its nodes; those are of NodePools that name a NodeClass of its own API group."""
    pools = [name for name, item in seen.node_pools.items() if _is_auto(item)]
    if not seen.auto_mode and not pools:
        return []
    what = "runs a Karpenter and a device plugin of its own on its nodes, and shares the kinds NodePool and NodeClaim"
    return [Neighbour(AUTO_MODE, what, tuple(pools), remedy="take its NodePools out of the spec")]


def _is_auto(node_pool: Object) -> bool:
    template = ((node_pool.get("spec") or {}).get("template") or {}).get("spec") or {}
    return (template.get("nodeClassRef") or {}).get("group") == AUTO_MODE_GROUP


# --- the plugin is theirs --------------------------------------------------------------------------------------------


def serving(spec: ClusterSpec, seen: Seen) -> dict[str, list[DaemonSetPlugin]]:
    """Pool -> the device plugins of others whose DaemonSets reach, or may reach, its nodes."""
    places = _places(spec, seen)
    plugins = plugins_of_others(seen.daemon_sets, Ours.of(spec))
    return {pool: [p for p in plugins if pool in _reach(p.pod, {pool: places[pool]})] for pool in places}


def _of_theirs(
    spec: ClusterSpec, seen: Seen, places: Mapping[str, Sequence[Place]], neighbours: Sequence[Neighbour]
) -> list[Conflict]:
    found = []
    for pool in spec.node_pools:
        certain = [item for item in neighbours if pool.name in item.pools and item.counts and item.serves]
        plugins = [
            p for p in plugins_of_others(seen.daemon_sets, Ours.of(spec)) if str(p) in {c.object for c in certain}
        ]
        sure = [p for p in plugins if pool.name not in next(c for c in certain if c.object == str(p)).perhaps]
        if len(sure) > 1:
            names = " and ".join(str(plugin) for plugin in sure)
            found.append(
                Conflict(
                    SECOND_PLUGIN,
                    str(sure[1]),
                    f"{names} both reach nodes of pool {pool.name} and fight over nvidia.com/gpu: the one that started "
                    f"last wins. Keep one of them off, for example: {keep_off(sure[1])}",
                )
            )
        elif not certain and _must_be_served(spec, pool, places):
            found.append(
                Conflict(
                    NO_PLUGIN,
                    f"pool {pool.name}",
                    "devicePlugin.manage is false, and no DaemonSet with a device plugin would run on nodes of pool "
                    f"{pool.name}: they would be paid for and never offer nvidia.com/gpu. Install one that tolerates "
                    "the pool's taints (NVIDIA's chart or static DaemonSet), or set devicePlugin.manage: true",
                )
            )
        found += _config_conflicts(pool, plugins, seen)
    return found


def _must_be_served(spec: ClusterSpec, pool: NodePool, places: Mapping[str, Sequence[Place]]) -> bool:
    """AL2023 has no device plugin built in, Bottlerocket's NVIDIA variants have; of others' pools nothing is known."""
    return pool.manage and bool(places[pool.name]) and spec.ami_alias(pool).startswith("al2023@")


def _config_conflicts(pool: NodePool, plugins: Iterable[DaemonSetPlugin], seen: Seen) -> list[Conflict]:
    found = []
    unreadable = {what for what, _ in seen.unknown}
    for plugin in plugins:
        key = f"{plugin.namespace}/{plugin.found.config_map}"
        if f"ConfigMap {key}" in unreadable:
            continue  # named as unknown already
        problem = config_problem(pool, plugin, seen.config_maps.get(key), config_label(pool, seen))
        if problem is not None:
            found.append(Conflict(problem.reason, str(plugin), problem.message))
    return found


def config_label(pool: NodePool, seen: Seen) -> str | None:
    """The label by which a config-manager picks the entry for a pool's nodes."""
    if pool.manage:
        return pool.labels.get(LABEL_PLUGIN_CONFIG, pool.config_entry)
    item = seen.node_pools.get(pool.name) or {}
    template = (item.get("spec") or {}).get("template") or {}
    value = ((template.get("metadata") or {}).get("labels") or {}).get(LABEL_PLUGIN_CONFIG)
    return None if value is None else str(value)
