"""Looks for other device plugins and GPU operators on a cluster; writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others
from gpu_fleet.core.device_plugin.findings import Seen
from gpu_fleet.core.device_plugin.keep_off import OPERATOR_GROUP, OPERATOR_KINDS
from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, DAEMON_SET, NODE, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.kubernetes.client import KubeClient
from gpu_fleet.hooks.kubernetes.errors import ApiNotFound

Objects = list[dict[str, Any]]


def look_at_neighbours(kube: KubeClient, spec: ClusterSpec, *, auto_mode: bool = False) -> Seen:
    """Everything about device plugins of others. A kind that does not exist has no objects; a forbidden one is unknown.

    :param auto_mode: whether EKS says that it runs in Auto Mode.
    """
    unknown: list[tuple[str, str]] = []

    def seen(what: str, look: Callable[[], Any], nothing: Any) -> Any:
        try:
            return look()
        except Forbidden as error:
            unknown.append((what, error.message))
            return nothing

    pools = ",".join(spec.pool_names)
    sets: Objects = seen("all DaemonSets", lambda: kube.list(DAEMON_SET), [])
    operator: Objects = seen("the GPU Operator's resources", lambda: _operator(kube), [])
    nodes: Objects = seen("Nodes", lambda: kube.list(NODE, label_selector=f"{LABEL_NODE_POOL} in ({pools})"), [])
    node_pools = {}
    for pool in spec.node_pools:
        if not pool.manage:
            ref = ObjectRef(NODE_POOL, pool.name)
            item = seen(str(ref), partial(kube.get, ref), None)
            if item is not None:
                node_pools[pool.name] = item
    maps = {}
    for plugin in [] if spec.device_plugin.manage else plugins_of_others(sets, Ours.of(spec)):
        if plugin.found.config_map:
            ref = ObjectRef(CONFIG_MAP, plugin.found.config_map, plugin.namespace)
            maps[f"{ref.namespace}/{ref.name}"] = seen(str(ref), partial(kube.get, ref), None)
    return Seen(sets, operator, auto_mode, node_pools, nodes, maps, unknown)


def _operator(kube: KubeClient) -> Objects:
    """The objects that configure NVIDIA's GPU Operator, of any API version that the cluster has."""
    try:
        group = kube.raw("GET", f"/apis/{OPERATOR_GROUP}", what=f"discover {OPERATOR_GROUP}")
    except ApiNotFound:
        return []
    found: Objects = []
    missing = set(OPERATOR_KINDS)
    for version in group.get("versions") or []:
        for kind in kube.kinds(str(version["groupVersion"])):
            if kind.kind in missing:
                missing.discard(kind.kind)
                found += kube.list(kind)
    return found
