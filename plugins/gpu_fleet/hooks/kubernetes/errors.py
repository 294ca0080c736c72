"""Maps what a Kubernetes API server answers onto the package's error types; the server's own message is kept.

The reasons and causes are those of ``metav1.Status`` (kubernetes/apimachinery pkg/apis/meta/v1/types.go).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import (
    AlreadyExists,
    ApiUnavailable,
    Conflict,
    FieldConflict,
    Forbidden,
    GpuFleetError,
    Invalid,
    NotFound,
    Throttled,
    Unauthorized,
)

#: Reason of the error for HTTP 410: a resourceVersion or continue token is too old, list again.
EXPIRED = "Expired"

#: Reason of the error for an eviction of a pod with two disruption budgets, a plain 500 (kubernetes
#: pkg/registry/core/pod/storage/eviction.go): it stays so until a person removes one of them.
SEVERAL_BUDGETS = "SeveralDisruptionBudgets"
_SEVERAL_BUDGETS = "more than one PodDisruptionBudget"

#: Reason of the error for an eviction that a disruption budget forbids now, and the cause in the server's answer
#: (``policyv1.DisruptionBudgetCause``, kubernetes v1.35 pkg/registry/core/pod/storage/eviction.go). Any other 429 is
#: about the server itself: priority and fairness, or a storage that is not ready.
DISRUPTION_BUDGET = "DisruptionBudget"

#: 500 answers that no repetition changes: server-side apply of a field that the schema lacks (kubernetes-sigs/
#: structured-merge-diff), or of a quantity, a time or bytes that cannot be read (kubernetes/apimachinery
#: pkg/util/managedfields/internal/structuredmerge.go, v0.36.2).
_PERMANENT_500 = (
    "field not declared in schema",
    "failed to create typed patch object",
    "unable to convert unstructured object",
)


class ApiNotFound(NotFound):
    """The API server itself answered 404: the object, its namespace or its kind is absent.

    Distinct from a :class:`NotFound` about the way to the cluster, which must never count as 'the object is gone'.
    """


def parse_status(body: bytes | str) -> dict[str, Any]:
    """The ``metav1.Status`` in a response body; plain text becomes its message."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and value.get("kind") == "Status":
        return value
    return {"kind": "Status", "message": text.strip()[:1000]}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header, ``None`` without one (or with a date, which the API server never sends)."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), None)
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None


def error_for(
    what: str, code: int, status: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> GpuFleetError:
    """The typed error of a failed call.

    :param what: verb and object, for example ``apply ConfigMap gpu-fleet-system/turn``.
    :param code: HTTP status code.
    :param status: the Status object of the body.
    """
    message = str(status.get("message") or f"HTTP {code}")
    reason = str(status.get("reason") or "") or None
    listed = [cause for cause in (status.get("details") or {}).get("causes") or [] if isinstance(cause, dict)]
    causes = {str(cause.get("reason")) for cause in listed}
    text = f"{what}: {message}"
    match code:
        case 401:
            return Unauthorized(
                f"{text}: the API server does not accept the token or certificate; check that the identity has an EKS "
                "access entry",
                reason=reason,
            )
        case 403 if "NamespaceTerminating" in causes:
            return Conflict(text, reason="NamespaceTerminating")
        case 403:
            return Forbidden(text, reason=reason)
        case 404:
            return ApiNotFound(text, reason=reason or "NotFound")
        case 409 if reason == "AlreadyExists":
            return AlreadyExists(text, reason=reason)
        case 409 if "FieldManagerConflict" in causes:
            return FieldConflict(text, reason="FieldManagerConflict")
        case 409:
            return Conflict(text, reason=reason)
        case 410:
            return ApiUnavailable(text, reason=EXPIRED)
        case 429 if DISRUPTION_BUDGET in causes:
            # Only the causes name the budget.
            named = [str(cause["message"]) for cause in listed if cause.get("message")]
            return Throttled(" ".join([text, *named]), reason=DISRUPTION_BUDGET, retry_after=retry_after(headers or {}))
        case 429:
            return Throttled(text, reason=reason, retry_after=retry_after(headers or {}))
        case 500 if _SEVERAL_BUDGETS in message:
            return Invalid(text, reason=SEVERAL_BUDGETS)
        case 500 if any(part in message for part in _PERMANENT_500):
            return Invalid(text, reason=reason or "Invalid")
        case _ if code >= 500 or code == 408:
            return ApiUnavailable(text, reason=reason)
        case _:
            return Invalid(text, reason=reason)


def is_expired(error: GpuFleetError) -> bool:
    """Whether the error says that a resourceVersion is too old."""
    return isinstance(error, ApiUnavailable) and error.reason == EXPIRED
