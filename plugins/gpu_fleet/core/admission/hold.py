"""While nodes of a gated pool are being proven, the pool buys none. Pure.

The probes fill a node, and Karpenter counts what is bound there. A user's pod that waits for the proof cannot take the
place of a probe, as it does on an open node, because it does not tolerate the taint; so it is not about to preempt, and
Karpenter would buy another node for it (kubernetes-sigs/karpenter v1.14 ``pkg/utils/pod/scheduling.go``,
``IsProvisionable``; ``pkg/controllers/state/cluster.go``, ``UpdatePod``). So for the minute of a proof the NodePool may
have no more nodes than it has. Limits are no part of what Karpenter hashes: no node drifts.

What the limit was is in an annotation, with the run that holds: a hold that a dead run left is taken back by the next
clean-up of the pool. Both are written as the freeze of a teardown is (:mod:`gpu_fleet.core.nodes.freeze`): applying the
NodePool again takes them back, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import ANNOTATION_HELD
from gpu_fleet.core.kubernetes.objects import annotations_of, deleting
from gpu_fleet.core.nodes.freeze import applied_manifest, given_back, is_frozen

Json = dict[str, Any]
_NODES = "nodes"


def _record(pool: Mapping[str, Any]) -> Json | None:
    """``{"before", "held", "run"}``; of an annotation that has been damaged, nothing that could be restored."""
    text = annotations_of(pool).get(ANNOTATION_HELD)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return dict(found) if isinstance(found, dict) else {}


def held_by(pool: Mapping[str, Any]) -> str | None:
    """The run that holds the pool; ``None`` if none does."""
    found = _record(pool)
    return None if found is None else str(found.get("run", ""))


def held(pool: Mapping[str, Any], nodes: int, run: str) -> Json | None:
    """The manifest that keeps a pool at so many nodes; ``None`` where nothing is to be written: it may have fewer
    anyway, a teardown has frozen it, or it is being removed.
    """
    if deleting(pool) or is_frozen(pool):
        return None
    now, found = _limit(pool), _record(pool)
    before = found["before"] if found and "before" in found else now
    if now is not None and now.isdigit() and int(now) <= nodes and (found is None or found.get("run") == run):
        return None
    manifest, metadata, spec = applied_manifest(pool)
    record = json.dumps({"before": before, "held": str(nodes), "run": run}, sort_keys=True)
    manifest["metadata"]["annotations"] = {**(metadata.get("annotations") or {}), ANNOTATION_HELD: record}
    manifest["spec"] = {**spec, "limits": {**(spec.get("limits") or {}), _NODES: str(nodes)}}
    return manifest


def released(pool: Mapping[str, Any]) -> Json | None:
    """The manifest that takes a hold back; ``None`` without one. A limit that was changed meanwhile stays."""
    found = _record(pool)
    if found is None or deleting(pool):
        return None
    _, _, spec = applied_manifest(pool)
    limits = dict(spec.get("limits") or {})
    if limits.get(_NODES) == found.get("held") and "before" in found:
        limits.pop(_NODES, None)
        if found["before"] is not None:
            limits[_NODES] = str(found["before"])
    return given_back(pool, limits, {ANNOTATION_HELD})


def _limit(pool: Mapping[str, Any]) -> str | None:
    value = ((pool.get("spec") or {}).get("limits") or {}).get(_NODES)
    return None if value is None else str(value)
