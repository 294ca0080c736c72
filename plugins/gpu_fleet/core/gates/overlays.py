"""Whether Karpenter has taken a pool's NodeOverlay in: part of the gate ``node_pool_ready``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_fleet.core.kubernetes.conditions import (
    conditions,
    created_at,
    explained,
    explaining,
    is_deleting,
    label_of,
    outdated,
    sentence,
)
from gpu_fleet.core.manifests.overlays import WEIGHT
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: Without the feature gate nobody ever writes a status; with it that takes milliseconds.
NO_CONDITIONS_AFTER_S = 10.0


def judge_overlay(name: str, overlays: Sequence[Mapping[str, Any]], *, started: float, now: float) -> Verdict:
    """
    :param overlays: all of the cluster, because a conflict names none.
    :param started: when the wait began, :param now: epoch seconds.
    """
    found = next((item for item in overlays if item["metadata"]["name"] == name), None)
    if found is None:
        return progressing("NotFound", f"NodeOverlay {name} does not exist (yet)")
    words = label_of(found)
    if is_deleting(found):
        return failed("NodeOverlayTerminating", f"{words} is being deleted; wait until it is gone, then run again")
    known = conditions(found)
    if not known:
        if now - max(started, created_at(found) or 0.0) >= NO_CONDITIONS_AFTER_S:
            return failed(
                "NodeOverlayIgnored",
                f"{words}: Karpenter has reported nothing on it within {NO_CONDITIONS_AFTER_S:.0f} s; its feature gate "
                "NodeOverlay is off, so every share would buy a node: see FEATURE_GATES in its Deployment, or set "
                "karpenter.nodeOverlays: false",
                permanent=False,
            )
        return progressing("NoConditions", f"{words}: Karpenter has not reported on it yet")
    valid = known.get("ValidationSucceeded", {})
    if valid.get("status") == "False" and not outdated(found, valid):
        if valid.get("reason") == "Conflict":
            heavy = [
                str(item["metadata"]["name"])
                for item in overlays
                if item is not found and (item.get("spec") or {}).get("weight") == WEIGHT
            ]
            named = ", ".join(heavy) or "none that is still there"
            return failed(
                "OverlayConflict",
                f"{words}: {sentence(valid)}: {named}; change that NodeOverlay's weight or requirements",
            )
        return failed("NodeOverlayInvalid", f"{words}: {sentence(valid)}")
    condition = known.get("Ready")
    if condition is None:
        return progressing("NotReady", f"{words}: Karpenter has not summed up its conditions yet")
    if old := outdated(found, condition):
        return old
    if condition.get("status") == "True":
        return ready("NodeOverlayReady", f"{words} is Ready")
    reason = explaining(found, condition).get("reason") or condition.get("reason")
    return progressing(str(reason or "NotReady"), f"{words}: {explained(found, condition)}")
