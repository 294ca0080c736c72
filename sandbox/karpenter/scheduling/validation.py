"""Pods that Karpenter ignores because of their node requirements.

After kubernetes-sigs/karpenter v1.14.1: ``pkg/controllers/provisioning/provisioner.go`` (``GetPendingPods`` and
``Validate``) and ``pkg/apis/v1/labels.go`` (``IsRestrictedLabel``). A pod that is refused takes no part in the
scheduling simulation, even if it would fit on an existing node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.karpenter.requirements import NORMALIZED, WELL_KNOWN

Object = dict[str, Any]

RESTRICTED_LABELS = frozenset({"kubernetes.io/hostname"})
RESTRICTED_DOMAINS = ("karpenter.k8s.aws", "karpenter.sh")


def refusal(pod: Object) -> str | None:
    """Why Karpenter ignores a pod, in its words; ``None`` for a pod that it considers."""
    return "; ".join(_refusals(pod)) or None


def _refusals(pod: Object) -> Iterator[str]:
    spec = pod["spec"]
    yield from map(_restricted, filter(_is_restricted, map(_normal, sorted(spec.get("nodeSelector") or {}))))
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        if term.get("matchFields"):
            yield "node selector term with matchFields is not supported"
        keys = (_normal(each["key"]) for each in term.get("matchExpressions") or [])
        yield from map(_restricted, filter(_is_restricted, keys))


def label_refusal(key: str) -> str | None:
    """Why a requirement may not use this key (``IsRestrictedLabel``), in Karpenter's words."""
    normal = _normal(key)
    return _restricted(normal) if _is_restricted(normal) else None


def _normal(key: str) -> str:
    return NORMALIZED.get(key, key)


def _is_restricted(key: str) -> bool:
    """Whatever the operator is."""
    if key in WELL_KNOWN:
        return False
    domain = key.rpartition("/")[0]
    inside = any(domain == each or domain.endswith(f".{each}") for each in RESTRICTED_DOMAINS)
    return inside or key in RESTRICTED_LABELS


def _restricted(key: str) -> str:
    return (
        f"using label {key} is not allowed as it might interfere with the internal provisioning logic; specify a well "
        f"known label: [{' '.join(sorted(WELL_KNOWN))}], or a custom label that does not use a restricted domain: "
        f"[{' '.join(RESTRICTED_DOMAINS)}]"
    )
