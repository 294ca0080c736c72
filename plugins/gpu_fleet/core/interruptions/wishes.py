"""What a pod wants to happen on a rebalance recommendation: its annotation ``gpu-fleet.io/on-rebalance``. Pure.

A recommendation is a risk, not an end: most instances with one live on for a while. Only the job knows whether it
would rather move now, save its state now, or go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from gpu_fleet.core.interruptions.marks import Mark
from gpu_fleet.core.kubernetes.names import ANNOTATION_INTERRUPTION, ANNOTATION_ON_REBALANCE
from gpu_fleet.core.kubernetes.objects import annotations_of, finished


class Wish(StrEnum):
    """The annotation's values."""

    EVICT = "evict"
    SIGNAL = "signal"
    NOTHING = "nothing"


def wish_of(pod: Mapping[str, Any]) -> Wish:
    """What the pod asks for; nothing without the annotation, and for a value that nobody defined."""
    try:
        return Wish(annotations_of(pod).get(ANNOTATION_ON_REBALANCE, Wish.NOTHING))
    except ValueError:
        return Wish.NOTHING


def signal(pod: Mapping[str, Any], mark: Mark) -> dict[str, Any] | None:
    """The merge patch that tells a pod; ``None`` if it was told already, or has ended.

    The pod reads it as a file: a downwardAPI volume with ``metadata.annotations`` follows the annotation within the
    kubelet's sync period, about a minute (kubernetes.io/docs/concepts/workloads/pods/downward-api).
    """
    if finished(pod) or annotations_of(pod).get(ANNOTATION_INTERRUPTION) == mark.text():
        return None
    metadata = pod["metadata"]
    return {"metadata": {"uid": metadata["uid"], "annotations": {ANNOTATION_INTERRUPTION: mark.text()}}}
