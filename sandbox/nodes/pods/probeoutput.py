"""Fault ``probe-output``: what a probe wrote is replaced before the kubelet reads it.

``kind`` is one of ``garbage`` (no JSON), ``huge`` (64 KiB, of which the kubelet takes its 4096 bytes), ``negative``
(all measured figures), ``skew`` (the probe's clock is ``seconds`` ahead, 3600 by default) and ``empty``. With ``image``
it applies only to containers whose image contains that text.
"""

from __future__ import annotations

import json
from typing import Any

GARBAGE = "Segmentation fault (core dumped)\n\x1b[0m{'gpus': ["
_HUGE = 64 * 1024
_STAMPS = ("startedAt", "finishedAt", "from")
_SKEW_SECONDS = 3600


def altered(message: str, params: dict[str, Any]) -> str:
    """
    :param message: a container's termination message; one that no probe wrote (not a JSON object) stays as it is.
    :raises ValueError: for a ``kind`` that does not exist.
    """
    try:
        report = json.loads(message)
    except ValueError:
        return message
    if not isinstance(report, dict):
        return message
    match params.get("kind", "garbage"):
        case "garbage":
            return GARBAGE
        case "empty":
            return ""
        case "huge":
            return json.dumps({**report, "padding": "x" * _HUGE})
        case "negative":
            return json.dumps(_negated(report))
        case "skew":
            return json.dumps(_shifted(report, round(float(params.get("seconds", _SKEW_SECONDS)) * 1000)))
        case kind:
            raise ValueError(f"probe-output: unknown kind {kind!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _negated(value: Any, name: str = "") -> Any:
    """Every figure but time stamps and exit codes below zero."""
    if isinstance(value, dict):
        return {key: _negated(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_negated(item, name) for item in value]
    return -abs(value) - 1 if _is_number(value) and name not in (*_STAMPS, "exitCode") else value


def _shifted(value: Any, milliseconds: int, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _shifted(item, milliseconds, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_shifted(item, milliseconds, name) for item in value]
    return value + milliseconds if _is_number(value) and name in _STAMPS else value
