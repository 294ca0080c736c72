"""Drift: how a cluster differs from its spec, object by object and field by field. Pure.

It compares the manifests that the package applies, and its Helm releases: their content (chart, values, status) with
the spec, their objects with the manifest that Helm has stored. What the spec does not manage is left out. Differences
show the values of both sides, except values that may be secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.device_plugin.findings import UNKNOWN as NEIGHBOURS_UNKNOWN
from gpu_fleet.core.device_plugin.findings import Conflict
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_HELD,
    LABEL_CLUSTER,
    PLACEHOLDER_PRIORITY_CLASS,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.manifests.build import Manifest, build
from gpu_fleet.core.manifests.overlays import overlaid, overlay_name
from gpu_fleet.core.manifests.pool_facts import UNKNOWN, PoolFacts
from gpu_fleet.core.manifests.values import Component
from gpu_fleet.core.releases.components import COMPONENTS
from gpu_fleet.core.releases.drift import Change, Difference, Path, differing, dotted
from gpu_fleet.core.releases.objects import REDACTED
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.core.releases.state import Finding, Observation, Reason
from gpu_fleet.core.spec import ClusterSpec

#: Maximum length of a value that is shown; the rest is cut.
MAX_VALUE = 300
#: Maximum number of differences that are listed; with more, the spec describes another cluster.
MAX_LISTED = 100

#: User data of nodes may have anything in it.
_SECRET_NAMES = re.compile(r"passw|secret|token|credential|private.?key|api.?key|user.?data", re.IGNORECASE)
#: Fields that are named like secrets but contain none (EC2NodeClass metadataOptions, pods, volumes).
_PUBLIC_NAMES = frozenset({"httpTokens", "imagePullSecrets", "secretName", "automountServiceAccountToken"})
#: Containers' environment, which often has what should be in a Secret.
_ENVIRONMENT = "env"


class Kind(StrEnum):
    """What happened to an object or a field, seen from the spec."""

    CHANGED = "changed"
    DELETED = "deleted"
    ADDED = "added"


@dataclass(frozen=True)
class Drift:
    """One difference.

    :ivar object: ``Kind namespace/name``, or ``release namespace/name``.
    :ivar field: dotted path; empty if the whole object was deleted or added.
    :ivar wanted: the value of the spec; ``None`` without one.
    :ivar found: the value in the cluster; ``None`` without one.
    :ivar by: the field manager that made the change, if the object names it.
    """

    kind: Kind
    object: str
    field: str = ""
    wanted: Any = None
    found: Any = None
    by: str = ""

    def to_json(self) -> dict[str, Any]:
        value = {
            "kind": str(self.kind),
            "object": self.object,
            "field": self.field,
            "wanted": self.wanted,
            "found": self.found,
        }
        return {**value, "by": self.by} if self.by else value

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        if not self.field:
            return f"{self.object} {self.kind}{by}"
        values = {
            Kind.CHANGED: f": {_text(self.found)} instead of {_text(self.wanted)}",
            Kind.DELETED: f", wanted is {_text(self.wanted)}",
            Kind.ADDED: f": {_text(self.found)}",
        }
        return f"{self.object}: {self.field} {self.kind}{by}{values[self.kind]}"


@dataclass(frozen=True)
class Unread:
    """Something that could not be compared.

    :ivar transient: looking again may help.
    """

    object: str
    reason: str
    message: str
    transient: bool = False

    def to_json(self) -> dict[str, str]:
        return {"object": self.object, "reason": self.reason, "message": self.message}


def sentence(cluster: str, drifts: Sequence[Drift], unread: Sequence[Unread], shown: int = 5) -> str:
    """What was found, in one sentence."""
    parts = []
    if drifts:
        first = "; ".join(str(item) for item in drifts[:shown])
        parts.append(f"{len(drifts)} difference(s): {first}" + ("; …" if len(drifts) > shown else ""))
    if unread:
        first = "; ".join(f"{item.object}: {item.message}" for item in unread[:shown])
        parts.append(f"{len(unread)} object(s) could not be compared: {first}" + ("; …" if len(unread) > shown else ""))
    return f"cluster {cluster} and its spec: {'; '.join(parts)}" if parts else f"cluster {cluster} is as its spec says"


# --- manifests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Managed:
    """A manifest that the package applies.

    :ivar on_demand: created when it is first needed, so its absence is not a difference.
    """

    manifest: Manifest
    on_demand: bool = False


def managed_manifests(spec: ClusterSpec, facts: Mapping[str, PoolFacts] | None = None) -> list[Managed]:
    """Everything that the operators apply for this spec, without the parts with ``manage: false``.

    :param facts: by pool; NodePool and NodeOverlay of a pool without facts are left out. ``None``: use the package's
        tables instead of EC2 and price lists.
    """
    found = []
    if spec.runtime_class.manage:
        found += [Managed(manifest) for manifest in build("runtime_class", spec)]
    for pool in spec.node_pools:
        if pool.manage:
            found += [Managed(manifest) for manifest in build("node_class", spec, pool=pool.name)]
            if facts is None or pool.name in facts:
                known = UNKNOWN if facts is None else facts[pool.name]
                found += [
                    Managed(manifest)
                    for name in ("node_overlay", "node_pool")
                    for manifest in build(name, spec, pool=pool.name, facts=known)
                ]
    # The release engine creates the device plugin's namespace, without our labels.
    own = {SYSTEM_NAMESPACE, spec.validation.namespace, PLACEHOLDER_PRIORITY_CLASS}
    for name in ("system_namespaces", "placeholder_priority"):
        found += [Managed(m, on_demand=True) for m in build(name, spec) if m["metadata"]["name"] in own]
    return found


def managed_releases(spec: ClusterSpec) -> list[Component]:
    """The components whose releases the spec manages."""
    return [
        name for name in COMPONENTS if (spec.device_plugin.manage if name == "device-plugin" else spec.karpenter.manage)
    ]


def surplus(spec: ClusterSpec, objects: Iterable[Mapping[str, Any]]) -> list[Drift]:
    """NodePools and EC2NodeClasses that this cluster's spec no longer has: they may continue to buy nodes; and
    NodeOverlays of pools that no longer share, with which Karpenter counts GPUs that do not exist.
    """
    found = []
    overlays = {overlay_name(pool.name) for pool in spec.node_pools if overlaid(spec, pool)}
    for item in objects:
        metadata = item.get("metadata") or {}
        ours = (metadata.get("labels") or {}).get(LABEL_CLUSTER) == spec.name
        known = overlays if item.get("kind") == "NodeOverlay" else spec.pool_names
        if ours and metadata.get("name") not in known:
            found.append(Drift(Kind.ADDED, f"{item.get('kind')} {metadata.get('name')}", found="present"))
    return found


def neighbour_drifts(conflicts: Iterable[Conflict]) -> tuple[list[Drift], list[Unread]]:
    """Objects of others that contradict the spec, which wants exactly one device plugin per node."""
    found, unread = [], []
    for item in conflicts:
        if item.reason == NEIGHBOURS_UNKNOWN:
            unread.append(Unread(item.object, item.reason, item.message))
        else:
            found.append(Drift(Kind.ADDED, item.object, item.reason, found=item.message))
    return found, unread


# --- objects ---------------------------------------------------------------------------------------------------------


def object_drifts(
    differences: Iterable[Difference], live: Mapping[str, Any], applied: Mapping[str, Any]
) -> list[Drift]:
    """The differences of one object, with the values on both sides.

    :param live: the object as it is.
    :param applied: the object as it would be after its manifest is applied.
    """
    kind = str(live.get("kind", ""))
    found = []
    for item in differences:
        if item.change is Change.DELETED:
            found.append(Drift(Kind.DELETED, item.target, wanted="present"))
            continue
        if _is_metadata_of_namespace(kind, item.path) or _is_hold(live, item.path):
            continue
        # The answer of the dry run has the field of another manager, too.
        want = {} if item.change is Change.ADDED else applied
        found.append(_of_field(item.target, item.path, live, want, kind=kind, by=item.manager))
    return found


def _is_hold(live: Mapping[str, Any], path: Path) -> bool:
    """Whether a field is that of a NodePool that buys nothing while its nodes are being proven."""
    held = ANNOTATION_HELD in ((live.get("metadata") or {}).get("annotations") or {})
    return held and tuple(path[:2]) in {("spec", "limits"), ("metadata", "annotations")}


def _of_field(name: str, path: Path, have: Any, want: Any, *, kind: str = "", by: str = "") -> Drift:
    """The drift of one field.

    :param have: the whole object as it is.
    :param want: the whole object as it should be.
    :param kind: kind of the object, which decides what may be shown.
    """
    has, found = _at(have, path)
    should, wanted = _at(want, path)
    return Drift(
        Kind.CHANGED if has and should else (Kind.DELETED if should else Kind.ADDED),
        name,
        dotted(path),
        shown(kind, path, wanted) if should else None,
        shown(kind, path, found) if has else None,
        by,
    )


def _is_metadata_of_namespace(kind: str, path: Path) -> bool:
    """Other actors label namespaces, too (Pod Security admission, meshes, quotas); that is not drift."""
    return kind == "Namespace" and path[:1] == ("metadata",) and not str(path[-1]).startswith("gpu-fleet.io/")


def _at(value: Any, path: Path) -> tuple[bool, Any]:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False, None
    return True, value


def shown(kind: str, path: Path, value: Any) -> Any:
    """A value as it may be shown: redacted in Secrets, in fields named like one and in environments; cut if long."""
    visible = _visible(kind, path, value)
    text = visible if isinstance(visible, str) else json.dumps(visible, ensure_ascii=False, default=str)
    return visible if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def _visible(kind: str, path: Path, value: Any) -> Any:
    names = {str(step) for step in path}
    if kind == "Secret" and path[:1] != ("metadata",):
        return REDACTED
    if _ENVIRONMENT in names or any(_SECRET_NAMES.search(name) for name in names - _PUBLIC_NAMES):
        return REDACTED
    if isinstance(value, Mapping):
        return {str(key): _visible(kind, (*path, str(key)), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_visible(kind, path, inner) for inner in value]
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- releases --------------------------------------------------------------------------------------------------------

#: Reasons with which a deployed manifest exists to compare with.
DEPLOYED = frozenset({Reason.NOT_PROVEN, Reason.PROVEN, Reason.DIGEST_DIFFERS, Reason.FOREIGN_REVISION})
#: Another actor is changing the release, or its storage cannot be read: the state is unknown. Value: transient.
_UNKNOWN = {Reason.HELD: True, Reason.IN_PROGRESS: True, Reason.UNREADABLE: False}


def release_drifts(
    finding: Finding, seen: Observation, request: ReleaseRequest, stored: Mapping[str, Any], *, proof_expected: bool
) -> tuple[list[Drift], list[Unread]]:
    """How a release differs from the spec: gone, unfinished, made by others, with other content, not proven.

    :param stored: the newest revision's decoded payload; empty if there is none.
    :param proof_expected: false where nothing can prove the revision yet: a device plugin without nodes.
    """
    name, reason = str(request), finding.reason
    newest = seen.newest
    if reason in _UNKNOWN:
        return [], [Unread(name, reason.value, finding.message, transient=_UNKNOWN[reason])]
    if reason in {Reason.NO_RELEASE, Reason.UNINSTALLED} or newest is None:
        return [Drift(Kind.DELETED, name, wanted=str(request.chart))], []
    content = _content_drifts(name, request, stored)
    if reason in {Reason.NOT_OURS, Reason.FOREIGN_REVISION}:
        mine = seen.ledger.candidate.revision if seen.ledger.candidate is not None else None
        found = f"revision {newest.revision}, not created by gpu-fleet"
        return [Drift(Kind.CHANGED, name, "revision", mine, found), *content], []
    if reason is Reason.DIGEST_DIFFERS:
        return content or [Drift(Kind.CHANGED, name, "digest", request.digest, newest.digest)], []
    if reason is Reason.NOT_PROVEN:
        return [Drift(Kind.CHANGED, name, "proven", True, False)] if proof_expected else [], []
    if reason in {Reason.PROVEN, Reason.OBJECTS_DIFFER}:
        return [], []
    statuses = ", ".join(f"{item.revision} {item.status}" for item in seen.revisions[-3:])
    return [Drift(Kind.CHANGED, name, "status", "one revision deployed", statuses)], []


def _content_drifts(name: str, request: ReleaseRequest, stored: Mapping[str, Any]) -> list[Drift]:
    """Chart version and values of the stored release, compared with those of the spec."""
    if not stored:
        return []
    chart = (stored.get("chart") or {}).get("metadata") or {}
    have = {
        "chart": {"version": str(chart.get("version", "")).removeprefix("v")},
        "values": stored.get("config") or {},
    }
    want = {
        "chart": {"version": request.chart.version.removeprefix("v")},
        "values": json.loads(json.dumps(dict(request.values), default=str)),
    }
    return [_of_field(name, path, have, want) for path in differing(have, want)]
