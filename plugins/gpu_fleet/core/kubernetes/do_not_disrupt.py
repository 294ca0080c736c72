"""Karpenter's annotation ``karpenter.sh/do-not-disrupt`` on pods: ``"true"``, or for how long since the pod's start.

Source: kubernetes-sigs/karpenter v1.14.1 ``pkg/utils/pod/scheduling.go`` (``IsDoNotDisruptActive``,
``parseDoNotDisrupt``): a value that is neither is ignored; a pod without a start time is protected. On nodes only
``"true"`` counts (``pkg/controllers/state/statenode.go``).

The annotation keeps only Karpenter from evicting a pod: the Eviction API ignores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import ANNOTATION_DO_NOT_DISRUPT
from gpu_fleet.core.kubernetes.objects import epoch

#: Go's ``time.ParseDuration``.
_DURATION = re.compile(r"\+?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def protected_value(pod: Mapping[str, Any], now: float | None = None) -> str | None:
    """The annotation's value while it protects the pod, else ``None``.

    :param now: epoch seconds; without it a period counts as not over yet.
    """
    value = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_DO_NOT_DISRUPT)
    if value is None or value == "true":
        return value
    seconds = _seconds(str(value))
    if seconds is None or seconds <= 0:
        return None
    started = epoch((pod.get("status") or {}).get("startTime"))
    if now is not None and started is not None and now - started >= seconds:
        return None
    return str(value)


def _seconds(value: str) -> float | None:
    if not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))
