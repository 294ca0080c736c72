"""The freeze of NodePools: Karpenter launches nothing more in them while their nodes are drained, and how it is undone.

Three annotations say what was done, so that a later run can undo it, also after a kill: the limits before the freeze,
the run that froze, and, from just before the first eviction, the run that evicted pods. A freeze can be undone as long
as no pod was evicted; afterwards it stays, or Karpenter would buy new nodes for the evicted pods.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_EVICTED_FOR,
    ANNOTATION_FROZEN_BY,
    ANNOTATION_FROZEN_LIMITS,
    FIELD_MANAGER,
)
from gpu_fleet.core.kubernetes.objects import deleting

Json = dict[str, Any]

#: The limit of a frozen pool: Karpenter launches nothing more, nodes that run are not affected.
FROZEN_LIMITS = {"nodes": "0"}

_OURS = (ANNOTATION_FROZEN_LIMITS, ANNOTATION_FROZEN_BY, ANNOTATION_EVICTED_FOR)


def _annotations(pool: Mapping[str, Any]) -> Mapping[str, str]:
    return pool["metadata"].get("annotations") or {}


def is_frozen(pool: Mapping[str, Any]) -> bool:
    """Whether a freeze has already been recorded and is in force."""
    recorded = ANNOTATION_FROZEN_LIMITS in _annotations(pool)
    return recorded and str(((pool.get("spec") or {}).get("limits") or {}).get("nodes")) == FROZEN_LIMITS["nodes"]


def evicted_for(pool: Mapping[str, Any]) -> str | None:
    """The run whose drain has evicted pods from the pool's nodes since its freeze."""
    return _annotations(pool).get(ANNOTATION_EVICTED_FOR)


def needs_freeze(pool: Mapping[str, Any], run: str) -> bool:
    """Whether a run has to (re)write the freeze.

    It takes over the freeze of an earlier run that evicted nothing, so that it can take it back.
    """
    return not is_frozen(pool) or (evicted_for(pool) is None and _annotations(pool).get(ANNOTATION_FROZEN_BY) != run)


def may_thaw(pool: Mapping[str, Any], run: str) -> bool:
    """Whether the freeze is this run's own."""
    return ANNOTATION_FROZEN_LIMITS in _annotations(pool) and _annotations(pool).get(ANNOTATION_FROZEN_BY) == run


def frozen(pool: Mapping[str, Any], run: str, *, evicting: bool = False) -> Json:
    """The manifest that freezes a NodePool: no node allowed, the old limits in an annotation.

    It is applied by the field manager of the pool itself, so that applying the pool again takes the freeze back without
    a field conflict. Server-side apply removes what a manager had and leaves out, so the manifest repeats, with their
    live values, the fields that this manager has; those of others it does not name, and so does not take over.

    :param run: the run that freezes.
    :param evicting: its drain is about to evict pods from the pool's nodes.
    """
    annotations, (manifest, metadata, spec) = _annotations(pool), applied_manifest(pool)
    limits = (pool.get("spec") or {}).get("limits") or {}
    before = annotations.get(ANNOTATION_FROZEN_LIMITS) or json.dumps(limits, sort_keys=True)
    kept = {name: value for name, value in (metadata.get("annotations") or {}).items() if name not in _OURS}
    marks = {ANNOTATION_FROZEN_LIMITS: before, ANNOTATION_FROZEN_BY: run}
    if evicting or evicted_for(pool) is not None:
        marks[ANNOTATION_EVICTED_FOR] = run if evicting else str(evicted_for(pool))
    manifest["metadata"]["annotations"] = {**kept, **marks}
    manifest["spec"] = {**spec, "limits": {**(spec.get("limits") or {}), **FROZEN_LIMITS}}
    return manifest


def thawed(pool: Mapping[str, Any]) -> Json:
    """The manifest that undoes a freeze, for the same field manager: the old limits, and none of our annotations."""
    _, _, spec = applied_manifest(pool)
    before = json.loads(_annotations(pool)[ANNOTATION_FROZEN_LIMITS])
    limits = {name: value for name, value in (spec.get("limits") or {}).items() if name not in FROZEN_LIMITS}
    return given_back(pool, limits | {name: before[name] for name in FROZEN_LIMITS if name in before}, _OURS)


def given_back(pool: Mapping[str, Any], limits: Mapping[str, Any], marks: Collection[str]) -> Json:
    """The manifest with these limits and without our annotations ``marks``, for the same field manager."""
    manifest, metadata, spec = applied_manifest(pool)
    kept = {name: value for name, value in (metadata.get("annotations") or {}).items() if name not in marks}
    if kept:
        manifest["metadata"]["annotations"] = kept
    manifest["spec"] = {name: value for name, value in spec.items() if name != "limits"}
    if limits:
        manifest["spec"]["limits"] = dict(limits)
    return manifest


def applied_manifest(pool: Mapping[str, Any]) -> tuple[Json, Json, Json]:
    """The head of a manifest for the pool, and the metadata and spec that our field manager has applied."""
    ours = applied_fields(pool, FIELD_MANAGER)
    metadata, spec = ours.get("metadata") or {}, ours.get("spec") or {}
    head = {
        "apiVersion": pool.get("apiVersion", "karpenter.sh/v1"),
        "kind": "NodePool",
        "metadata": {
            **{key: metadata[key] for key in ("labels",) if key in metadata},
            "name": pool["metadata"]["name"],
        },
    }
    return head, dict(metadata), dict(spec)


def unfrozen(pools: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the pools that are neither frozen nor being deleted."""
    return sorted(pool["metadata"]["name"] for pool in pools if not deleting(pool) and not is_frozen(pool))


def applied_fields(item: Mapping[str, Any], manager: str) -> Json:
    """The part of an object that a field manager has applied, with its live values.

    Read from ``metadata.managedFields`` (format FieldsV1: ``f:<name>`` is a field, ``.`` the map itself; ``k:`` and
    ``v:`` address items of a list, which is taken whole:
    https://kubernetes.io/docs/reference/using-api/server-side-apply/).
    """
    for entry in item["metadata"].get("managedFields") or []:
        if (entry.get("manager"), entry.get("operation")) == (manager, "Apply") and not entry.get("subresource"):
            found = _extract(item, entry.get("fieldsV1") or {})
            return dict(found) if isinstance(found, Mapping) else {}
    return {}


def _extract(live: Any, fields: Mapping[str, Any]) -> Any:
    names = {key[2:]: inner for key, inner in fields.items() if key.startswith("f:")}
    if not isinstance(live, Mapping) or not (names or "." in fields):
        return live
    return {name: _extract(live[name], inner) for name, inner in names.items() if name in live}
