"""What living nodes still need of the device plugin's release: config entries and tolerations.

A node keeps the label ``nvidia.com/device-plugin.config`` and the taints that it was launched with. If the cluster file
has changed since, the old entry must stay: config-manager exits with 'specified config … does not exist'
(NVIDIA/k8s-device-plugin v0.20.0 ``cmd/config-manager/main.go``), and the pods of a new revision never get past their
init container. The old taint's toleration must stay, too: without it the DaemonSet controller creates no pod of the new
revision there.

Nodes, NodeClaims (the node of a new claim will carry its labels) and NodePools are examined: as long as a NodePool has
the old template, Karpenter may launch another old node at any moment. Ours are those of the spec's pools, of NodePools
that carry our label (a pool that the file no longer has), and those whose EC2NodeClass carries it (a NodePool that was
deleted by hand).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import (
    BUILT_IN,
    DOMAIN,
    LABEL_CLUSTER,
    LABEL_DEVICE_PLUGIN,
    LABEL_NODE_CLASS,
    LABEL_NODE_POOL,
    LABEL_PLUGIN_CONFIG,
    SERVED,
    TAINT_UNPROVEN,
)
from gpu_fleet.core.kubernetes.objects import Object, labels_of, name_of
from gpu_fleet.core.manifests.plugin_entries import entries_of, entry_replicas, entry_text, is_mps

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: Domains of taints that other controllers put on nodes for a while; none of our NodePools has them.
_PASSING_TAINTS = ("kubernetes.io", "karpenter.sh", DOMAIN)
#: Maximum number of holders that one message names.
_NAMED = 5

Holders = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class InUse:
    """What living objects of ours carry.

    :ivar entries: config entry -> what carries it, in words.
    :ivar taints: (key, effect), sorted.
    :ivar unknown: like ``entries``, for names that this package does not write: they are reported, and no entry is
        created for them.
    """

    entries: Holders = field(default_factory=dict)
    taints: tuple[tuple[str, str], ...] = ()
    unknown: Holders = field(default_factory=dict)

    @property
    def mps(self) -> bool:
        return any(is_mps(entry) for entry in self.entries)

    def __or__(self, other: InUse) -> InUse:
        return InUse(
            _merged(self.entries, other.entries),
            tuple(sorted({*self.taints, *other.taints})),
            _merged(self.unknown, other.unknown),
        )


#: For a cluster that does not exist yet, and where nothing has to be kept.
NOTHING_IN_USE = InUse()


def _merged(one: Holders, other: Holders) -> Holders:
    return {key: (*one.get(key, ()), *other.get(key, ())) for key in sorted({*one, *other})}


def in_use(
    spec: ClusterSpec,
    *,
    nodes: Iterable[Object],
    claims: Iterable[Object],
    node_pools: Iterable[Object],
    node_classes: Iterable[Object],
) -> InUse:
    """What Nodes, NodeClaims and NodePools of ours carry. Total: what is not ours, or carries nothing, is left out."""
    pools, claims = list(node_pools), list(claims)
    ours = {*spec.pool_names, *_labelled(spec, pools)}
    classes = _labelled(spec, node_classes)
    found: dict[str, list[str]] = {}
    taints: set[tuple[str, str]] = set()

    def note(what: str, labels: Mapping[str, str], given: Iterable[Mapping[str, Any]]) -> None:
        if labels.get(LABEL_DEVICE_PLUGIN) == BUILT_IN:
            return  # Its AMI's own plugin serves it, by its user data.
        if entry := labels.get(LABEL_PLUGIN_CONFIG):
            found.setdefault(entry, []).append(what)
        taints.update((str(taint.get("key")), str(taint.get("effect"))) for taint in given)

    for pool in pools:
        if name_of(pool) in ours:
            template = (pool.get("spec") or {}).get("template") or {}
            given = (template.get("metadata") or {}).get("labels") or {}
            note(f"NodePool {name_of(pool)}", given, _of_template(template.get("spec") or {}))
    claimed = set()
    for claim in claims:
        if _is_ours(spec, claim, ours, classes):
            joined = str((claim.get("status") or {}).get("nodeName") or "")
            claimed.add(joined)
            what = f"node {joined}" if joined else f"NodeClaim {name_of(claim)}"
            note(what, labels_of(claim), _of_template(claim.get("spec") or {}))
    for node in nodes:
        if _is_ours(spec, node, ours, classes):
            # A node also has taints of people and controllers; its claim has only those of the template.
            given = [] if name_of(node) in claimed else _lasting((node.get("spec") or {}).get("taints") or [])
            note(f"node {name_of(node)}", labels_of(node), given)
    known = {entry: tuple(dict.fromkeys(found[entry])) for entry in sorted(found)}
    return InUse(
        {entry: holders for entry, holders in known.items() if entry_replicas(entry) is not None},
        tuple(sorted(taints)),
        {entry: holders for entry, holders in known.items() if entry_replicas(entry) is None},
    )


def _labelled(spec: ClusterSpec, items: Iterable[Object]) -> set[str]:
    return {name_of(item) for item in items if labels_of(item).get(LABEL_CLUSTER) == spec.name}


def _is_ours(spec: ClusterSpec, item: Object, pools: set[str], classes: set[str]) -> bool:
    labels = labels_of(item)
    reference = (item.get("spec") or {}).get("nodeClassRef") or {}  # of a NodeClaim
    return (
        labels.get(LABEL_NODE_POOL) in pools
        or labels.get(LABEL_NODE_CLASS) in classes
        or reference.get("name") in classes
        or labels.get(LABEL_CLUSTER) == spec.name
    )


def _of_template(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The taints of a NodePool's template, or a NodeClaim; of the startup taints only ours, which stays until a proof:
    other people's are removed by what they wait for."""
    startup = [taint for taint in spec.get("startupTaints") or [] if taint.get("key") == TAINT_UNPROVEN]
    return [*(spec.get("taints") or []), *startup]


def _lasting(taints: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a node's taints that may come from a template."""
    domains = [(taint, str(taint.get("key", "")).partition("/")[0]) for taint in taints]
    return [
        taint
        for taint, domain in domains
        if taint.get("key") == TAINT_UNPROVEN
        or not any(domain == passing or domain.endswith(f".{passing}") for passing in _PASSING_TAINTS)
    ]


def toleration(key: str, effect: str) -> dict[str, str]:
    """The plugin's toleration of a taint, whatever its value."""
    return {"key": key, "operator": "Exists", "effect": effect}


def needed_values(use: InUse) -> dict[str, Any]:
    """What every revision of the plugin's release must have in its values.

    The node selector always: a revision from before it was introduced selects the GPU nodes of every team.
    """
    needed: dict[str, Any] = {"nodeSelector": {LABEL_DEVICE_PLUGIN: SERVED}}
    if use.entries:
        needed["config"] = {"map": {entry: entry_text(entry) for entry in use.entries}}
    if use.taints:
        needed["tolerations"] = [toleration(key, effect) for key, effect in use.taints]
    if use.mps:
        needed["mps"] = {"enableHostPID": True}
    return needed


def carried_by(values: Mapping[str, Any]) -> InUse:
    """The part of a release's values that this package wrote: its entries, and tolerations in the form that it uses."""
    entries = {entry: ("the installed release",) for entry in sorted(entries_of(values)) if entry_replicas(str(entry))}
    taints = set()
    for item in values.get("tolerations") or ():
        if isinstance(item, Mapping) and item == toleration(str(item.get("key")), str(item.get("effect"))):
            taints.add((str(item["key"]), str(item["effect"])))
    return InUse(entries, tuple(sorted(taints)))


def served_entries(spec: ClusterSpec) -> set[str]:
    """The config entries that the cluster file's pools need, as far as our plugin serves them."""
    return {pool.config_entry for pool in spec.node_pools if not pool.built_in_plugin}


def kept_sentences(spec: ClusterSpec, use: InUse) -> list[str]:
    """What is kept for living nodes although the cluster file no longer asks for it, and what cannot be kept."""
    wanted = served_entries(spec)
    told = [
        f"config entry {entry} is kept, because {_named(holders)} carr{_ies(holders)} it; the cluster file no longer "
        "has it"
        for entry, holders in use.entries.items()
        if entry not in wanted
    ]
    told += [
        f"{_named(holders)} carr{_ies(holders)} the config entry {entry!r}, which gpu-fleet does not write: the device "
        "plugin's config-manager exits there with 'specified config … does not exist'; correct the label "
        f"{LABEL_PLUGIN_CONFIG}, or replace the node"
        for entry, holders in use.unknown.items()
    ]
    return told


def _named(holders: tuple[str, ...]) -> str:
    more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    return f"{', '.join(holders[:_NAMED])}{more}"


def _ies(holders: tuple[str, ...]) -> str:
    return "ies" if len(holders) == 1 else "y"
