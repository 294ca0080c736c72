"""Was every change of a pool's nodes or of its sharing announced before it was written? Pure.

An :class:`Effect` is one write of the audit log after which Karpenter would launch other nodes in a pool, or the device
plugin would share its GPUs otherwise. An :class:`Announcement` is what ``preflight.plan_changes`` of one run has said,
and when. :func:`unannounced` compares the two with the nodes that stood; nothing of the package is imported.

The audit log has no bodies of Secrets and ConfigMaps: of a release's objects it tells that they were written, and not
what. So they are taken for a change of sharing in every pool whose NodePool names another config entry in that run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from demo.timeline import epoch
from tests.e2e.ours import PLUGIN, RELEASES, SYSTEM, VALIDATION, Entry, is_by_us

Json = dict[str, Any]
#: Pool -> node -> ``namespace/name`` of the users' pods that hold GPUs there.
Standing = Mapping[str, Mapping[str, Collection[str]]]

ENTRY = "nvidia.com/device-plugin.config"
POOLS, CLASSES, OVERLAYS = "nodepools", "ec2nodeclasses", "nodeoverlays"
OVERLAY_PREFIX = "gpu-fleet-"
TEMPLATE, SHARING = "template", "sharing"
#: Most pods that one sentence of the log names.
NAMED = 5


@dataclass(frozen=True)
class Effect:
    """One write, and what it changes in which pool.

    :ivar what: ``template`` or ``sharing``.
    """

    entry: Entry
    pool: str
    what: str

    @property
    def at(self) -> float:
        return moment(self.entry)


@dataclass(frozen=True)
class Announcement:
    """What one run has said before it applied anything.

    :ivar at: epoch seconds by which it had been said.
    :ivar pools: the entries ``changes`` of the XCom ``plan``, by pool.
    :ivar unknown: the pools of which the run could not say what changes, in its words.
    :ivar log: what a person could read.
    """

    at: float
    pools: Mapping[str, Json] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    log: str = ""

    @classmethod
    def of(cls, at: float, plan: Mapping[str, Any] | None, log: str) -> Announcement:
        """
        :param plan: the XCom, ``None`` if the run left none.
        """
        found = plan or {}
        changes = {str(each["pool"]): each for each in found.get("changes") or ()}
        return cls(at, changes, tuple(map(str, found.get("unknown") or ())), log)


def moment(entry: Entry) -> float:
    """When the API server received the write, epoch seconds."""
    return epoch(entry.at) or 0.0


def effects(entries: Iterable[Entry], begun: float, ended: float) -> list[Effect]:
    """The effects of a run, in the order of the log.

    :param entries: the log from its beginning: what a write changes is known from the one before it.
    :param begun: and ``ended``: of the run, epoch seconds.
    """
    known: dict[tuple[str, str], str] = {}
    found: list[Effect] = []
    releases: list[Entry] = []
    shared_otherwise: list[str] = []
    for entry in entries:
        if not entry.is_kubernetes or not entry.took_effect or not is_by_us(entry):
            continue
        inside = begun <= moment(entry) <= ended
        if inside and _is_sharing_config(entry):
            releases.append(entry)
        pool = pool_of(entry)
        if not pool:
            continue
        key, now = (entry.resource, entry.name), _wanted(entry)
        before = known.get(key)
        if now is None or now == before:
            continue
        known[key] = now
        if not inside:
            continue
        what = TEMPLATE if entry.resource != OVERLAYS else SHARING
        found.append(Effect(entry, pool, what))
        if entry.resource == POOLS and _entry_of(before) != _entry_of(now):
            shared_otherwise.append(pool)
    found += [Effect(entry, pool, SHARING) for entry in releases for pool in dict.fromkeys(shared_otherwise)]
    return sorted(found, key=lambda each: (each.at, each.pool))


def pool_of(entry: Entry) -> str:
    """The pool whose nodes an object describes; empty for objects that describe none."""
    if entry.subresource:
        return ""
    if entry.resource == OVERLAYS:
        return entry.name.removeprefix(OVERLAY_PREFIX)
    return entry.name if entry.resource in (POOLS, CLASSES) else ""


def _wanted(entry: Entry) -> str | None:
    """What a write makes of the nodes to come, comparable; ``None`` if it says nothing of them.

    The requirements of a NodePool are no part of its hash (kubernetes-sigs/karpenter v1.14.1
    ``pkg/apis/v1/nodepool.go``).
    """
    if entry.verb == "delete":
        return "" if entry.resource == OVERLAYS else None
    spec = (entry.body or {}).get("spec") if isinstance(entry.body, dict) else None
    if not isinstance(spec, dict):
        return None
    if entry.resource != POOLS:
        return json.dumps(spec, sort_keys=True)
    if "template" not in spec:
        return None  # a patch of something else, its limits for example
    template = dict(spec["template"])
    template["spec"] = {key: value for key, value in template.get("spec", {}).items() if key != "requirements"}
    return json.dumps(template, sort_keys=True)


def _entry_of(template: str | None) -> str:
    """The device plugin's config entry that a NodePool's template names."""
    labels = (json.loads(template or "{}").get("metadata") or {}).get("labels") or {}
    return str(labels.get(ENTRY, ""))


def _is_sharing_config(entry: Entry) -> bool:
    """A revision of the device plugin's release, or a ConfigMap of it."""
    if entry.namespace != RELEASES[PLUGIN] or entry.verb == "delete":
        return False
    if entry.resource == "secrets":
        return (
            entry.verb == "create" and re.fullmatch(rf"sh\.helm\.release\.v1\.{PLUGIN}\.v\d+", entry.name) is not None
        )
    return entry.resource == "configmaps" and entry.labels.get("app.kubernetes.io/instance") == PLUGIN


def unannounced(found: Iterable[Effect], told: Announcement, standing: Standing) -> list[str]:
    """Each effect that came before it was announced, or of which less was said than there was to say.

    :param standing: the nodes that stood when the run began, all of them of the template of then.
    """
    problems: list[str] = []
    for effect in found:
        why = "written before anything was announced" if effect.at < told.at else _untold(effect, told, standing)
        if why:
            problems.append(f"{effect.what} of pool {effect.pool}: {why}: {effect.entry}")
    return problems


def _untold(effect: Effect, told: Announcement, standing: Standing) -> str:
    """What the announcement does not say of an effect; empty if it says everything."""
    nodes = standing.get(effect.pool)
    if not nodes:
        return ""
    change = told.pools.get(effect.pool)
    if change is None:
        return f"the plan does not name the pool, of which {_names(nodes)} stood"
    if effect.what == SHARING and SHARING not in {str(each["field"]) for each in change["changes"]}:
        return "the plan does not say that the sharing changes"
    drifting = {str(each["node"]): {str(pod) for pod in each["pods"]} for each in change["drifting"]}
    if drifting.keys() != nodes.keys():
        return f"the plan says that {_names(drifting)} will drift, and {_names(nodes)} stood"
    for name, pods in nodes.items():
        if drifting[name] != set(pods):
            return f"the plan says that {_names(drifting[name])} hold GPUs of {name}, and it was {_names(pods)}"
    return "" if _is_readable(effect.pool, nodes, told.log) else "the log does not say so"


def _is_readable(pool: str, nodes: Mapping[str, Collection[str]], log: str) -> bool:
    """Whether a line of the log says how many nodes drift, how many of them are in use, and by whom."""
    busy = [pods for pods in nodes.values() if pods]
    pods = {pod for each in busy for pod in each}
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} will drift, {len(busy)} of them"
    return any(
        f"pool {pool} " in line and count in line and sum(pod in line for pod in pods) >= min(len(pods), NAMED)
        for line in log.splitlines()
    )


def _names(found: Iterable[str]) -> str:
    return ", ".join(sorted(found)) or "none"


# --- a teardown ------------------------------------------------------------------------------------------------------

#: What a teardown writes to, beside its notes in gpu-fleet-system.
_TORN_DOWN = frozenset({POOLS, CLASSES, OVERLAYS, "nodeclaims", "nodes", "daemonsets", "runtimeclasses"})


def is_of_teardown(entry: Entry) -> bool:
    """Whether a write by us is one that a person has to approve first: freeze, cordon, eviction, removal."""
    if not entry.is_kubernetes or not is_by_us(entry):
        return False
    if (entry.resource, entry.subresource, entry.verb) == ("pods", "eviction", "create"):
        return entry.namespace not in (SYSTEM, VALIDATION)  # placeholders and probes are nobody's loss
    release = re.fullmatch(r"sh\.helm\.release\.v1\.(.+)\.v\d+", entry.name)
    uninstalls = entry.resource == "secrets" and release is not None and RELEASES.get(release[1]) == entry.namespace
    return uninstalls or (entry.resource in _TORN_DOWN and not entry.subresource)


def unplanned(found: Iterable[Entry], plan: Mapping[str, Any]) -> list[str]:
    """What of NodePools, NodeClaims, nodes and pods was closed or removed although the approved plan does not name it.

    :param plan: what the teardown's plan task returns as ``plan``.
    """
    keys = {POOLS: "pools", "nodeclaims": "nodeClaims", "nodes": "nodes", "pods": "pods"}
    named = {resource: {str(name) for name in plan[key]} for resource, key in keys.items()}
    problems = []
    for entry in found:
        name = f"{entry.namespace}/{entry.name}" if entry.resource == "pods" else entry.name
        if entry.took_effect and is_of_teardown(entry) and name not in named.get(entry.resource, {name}):
            problems.append(f"the plan does not name it: {entry}")
    return problems
