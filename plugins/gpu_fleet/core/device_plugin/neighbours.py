"""Which other components would serve the GPUs of our pools: device plugins of others, NVIDIA's GPU Operator, EKS Auto
Mode; and which pools they reach. Decided before anything is changed or bought. Pure.

What may not be looked up is *unknown*, which never counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.device_plugin.detect import Ours, daemon_set_plugins, plugins_of_others
from gpu_fleet.core.device_plugin.findings import (
    FOREIGN_PLUGIN,
    ONE_SOCKET,
    POOL_WITHOUT_LABEL,
    UNKNOWN,
    Conflict,
    Neighbour,
    Seen,
    Survey,
)
from gpu_fleet.core.device_plugin.keep_off import describe, keep_off, operator_remedy
from gpu_fleet.core.device_plugin.theirs import conflicts_of_theirs
from gpu_fleet.core.kubernetes.names import BUILT_IN, LABEL_DEVICE_PLUGIN, LABEL_NODE_POOL, SERVED
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
    from gpu_fleet.core.spec import ClusterSpec

#: The label by which the operator places its device plugin; it sets it on every node with an NVIDIA GPU.
LABEL_OPERATOR_PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
#: The operator's default for its DaemonSets (``daemonsets.tolerations`` of its chart).
_OPERATOR_TOLERATIONS = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
#: The API group of the node classes of EKS Auto Mode's own Karpenter.
AUTO_MODE_GROUP = "eks.amazonaws.com"
AUTO_MODE = "EKS Auto Mode"


def survey(spec: ClusterSpec, seen: Seen) -> Survey:
    """Which other components serve GPUs on this cluster, and which of them conflict with the spec."""
    places = _places(spec, seen)
    neighbours = [*_plugins(spec, seen, places), *_operators(seen, places), *_auto_mode(seen)]
    conflicts = [
        Conflict(
            UNKNOWN,
            what,
            f"{what} cannot be looked up ({words}); grant list permission: see docs/reference/permissions.md",
        )
        for what, words in seen.unknown
    ]
    if spec.device_plugin.manage:
        conflicts += [_foreign(item) for item in neighbours if item.conflicts]
        conflicts += _unlabelled(spec, seen)
    else:
        conflicts += conflicts_of_theirs(spec, seen, places, neighbours)
    return Survey(tuple(neighbours), tuple(conflicts))


# --- where our nodes are ---------------------------------------------------------------------------------------------
def _places(spec: ClusterSpec, seen: Seen) -> dict[str, list[Place]]:
    """Pool -> the nodes that its template makes, and those that exist."""
    found: dict[str, list[Place]] = {}
    for pool in spec.node_pools:
        made = build("node_pool", spec, pool=pool.name)[0] if pool.manage else seen.node_pools.get(pool.name)
        found[pool.name] = [place_of_pool(made, spec.region)] if made is not None else []
        # Nodes of an earlier version of the package get the label before the plugin is installed.
        more = {LABEL_DEVICE_PLUGIN: BUILT_IN if pool.built_in_plugin else SERVED} if pool.manage else {}
        found[pool.name] += [
            place_of_node(node, more) for node in seen.nodes if labels_of(node).get(LABEL_NODE_POOL) == pool.name
        ]
    return found


def _reach(pod: Mapping[str, Any], places: Mapping[str, Sequence[Place]]) -> dict[str, Answer]:
    """Pool -> the strongest answer over its places; only pools that are reached."""
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


def _foreign(item: Neighbour) -> Conflict:
    return Conflict(
        FOREIGN_PLUGIN,
        item.object,
        f"{item}, which our device plugin is to serve: {item.why}. Keep it off: {item.remedy}. Or, if its owner is to "
        "serve these pools, set devicePlugin.manage: false",
    )


def _unlabelled(spec: ClusterSpec, seen: Seen) -> list[Conflict]:
    """NodePools of others that our plugin is to serve but cannot, as their nodes lack our label."""
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
                    f"only on nodes with the label {LABEL_DEVICE_PLUGIN}={SERVED}; let its owner add that label to "
                    "spec.template.metadata.labels of the NodePool and to the nodes that exist, or set "
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
        counts, serves, why = True, kind == "ClusterPolicy", ONE_SOCKET
        what = "NVIDIA GPU Operator, with a device plugin of its own"
        tolerations = (body.get("daemonsets") or {}).get("tolerations") or _OPERATOR_TOLERATIONS
        if kind == "ClusterPolicy" and (body.get("devicePlugin") or {}).get("enabled") is False:
            counts, serves, what = False, False, "NVIDIA GPU Operator, its device plugin switched off"
        elif kind == "GPUCluster":
            what = "NVIDIA GPU Operator, with its driver for dynamic resource allocation"
            why = "each would allocate the same GPUs without knowing of the other"
        elif kind == "NVIDIADriver":
            selector, what = body.get("nodeSelector") or {}, "NVIDIA GPU Operator, which installs a driver"
            why = "the pools' AMI brings a driver, and running jobs use it"
            tolerations = [*_OPERATOR_TOLERATIONS, *(body.get("tolerations") or [])]
        pod = {"nodeSelector": selector, "tolerations": tolerations}
        reach = _reach(pod, {pool: [p for p in where if _operands(p)] for pool, where in places.items()})
        label = f"{kind} {name}"
        remedy = operator_remedy(label)
        found.append(Neighbour(label, what, tuple(reach), _unsure(reach), counts, serves, why, remedy))
    return found


def _operands(place: Place) -> bool:
    """Whether the operator deploys its device plugin on such nodes."""
    off = frozenset({"false"})
    return place.labels.get(LABEL_NO_OPERANDS) != off and place.labels.get(LABEL_OPERATOR_PLUGIN) != off


def _auto_mode(seen: Seen) -> list[Neighbour]:
    """Auto Mode's plugin is part of its nodes, which belong to NodePools with a NodeClass of its own API group."""
    pools = [name for name, item in seen.node_pools.items() if _is_auto(item)]
    if not seen.auto_mode and not pools:
        return []
    what = "runs a Karpenter and a device plugin of its own on its nodes, and shares the kinds NodePool and NodeClaim"
    return [Neighbour(AUTO_MODE, what, tuple(pools), remedy="remove its NodePools from the spec")]


def _is_auto(node_pool: Object) -> bool:
    template = ((node_pool.get("spec") or {}).get("template") or {}).get("spec") or {}
    return (template.get("nodeClassRef") or {}).get("group") == AUTO_MODE_GROUP
