from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core import errors
from gpu_fleet.hooks.kubernetes.errors import (
    DISRUPTION_BUDGET,
    SEVERAL_BUDGETS,
    ApiNotFound,
    error_for,
    is_expired,
    parse_status,
    retry_after,
)


def status(message: str, reason: str = "", *causes: str) -> dict[str, Any]:
    return {"message": message, "reason": reason, "details": {"causes": [{"reason": cause} for cause in causes]}}


#: Answers of a real API server, with their texts.
CASES = [
    (401, status("Unauthorized", "Unauthorized"), errors.Unauthorized, True),
    (
        403,
        status('pods "rc" is forbidden: pod rejected: RuntimeClass "nvidia" not found', "Forbidden"),
        errors.Forbidden,
        False,
    ),
    (
        403,
        status(
            "unable to create new content in namespace bt2 because it is being terminated",
            "Forbidden",
            "NamespaceTerminating",
        ),
        errors.Conflict,
        True,
    ),
    (404, status('namespaces "nope" not found', "NotFound"), ApiNotFound, False),
    (409, status('configmaps "x" already exists', "AlreadyExists"), errors.AlreadyExists, True),
    (
        409,
        status('Apply failed with 1 conflict: conflict with "kubectl"', "Conflict", "FieldManagerConflict"),
        errors.FieldConflict,
        True,
    ),
    (
        409,
        status('Operation cannot be fulfilled on configmaps "x": the object has been modified', "Conflict"),
        errors.Conflict,
        True,
    ),
    (410, status("too old resource version: 1 (3522)", "Expired"), errors.ApiUnavailable, True),
    (
        422,
        status('Deployment.apps "d" is invalid: spec.selector: Invalid value: field is immutable', "Invalid"),
        errors.Invalid,
        False,
    ),
    (400, status('strict decoding error: unknown field "spec.foo"', "BadRequest"), errors.Invalid, False),
    (415, status("the body of the request was in an unknown format", "UnsupportedMediaType"), errors.Invalid, False),
    (
        429,
        status(
            "Cannot evict pod as it would violate the pod's disruption budget.", "TooManyRequests", "DisruptionBudget"
        ),
        errors.Throttled,
        True,
    ),
    (
        500,
        status("failed to create typed patch object (…): .spec.foo: field not declared in schema"),
        errors.Invalid,
        False,
    ),
    (
        500,
        status(
            "failed to convert new object (ml/p; /v1, Kind=Pod) to proper version: unable to convert unstructured "
            "object to /v1, Kind=Pod: quantities must match the regular expression"
        ),
        errors.Invalid,
        False,
    ),
    (429, status("storage is (re)initializing", "TooManyRequests"), errors.Throttled, True),
    (
        500,
        status("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."),
        errors.Invalid,
        False,
    ),
    (500, status("etcdserver: request timed out", "InternalError"), errors.ApiUnavailable, True),
    (503, status("apiserver is shutting down", "ServiceUnavailable"), errors.ApiUnavailable, True),
    (504, status("Timeout", "Timeout"), errors.ApiUnavailable, True),
]


@pytest.mark.parametrize(("code", "body", "kind", "transient"), CASES, ids=lambda value: str(value)[:40])
def test_every_answer_has_one_type_and_keeps_the_servers_words(
    code: int, body: dict[str, Any], kind: type[errors.GpuFleetError], transient: bool
) -> None:
    error = error_for("apply Pod x", code, body)
    assert type(error) is kind
    assert isinstance(error, errors.TransientError) is transient
    assert body["message"] in error.message
    assert error.message.startswith("apply Pod x: ")


def test_a_pod_with_two_budgets_is_told_apart_from_other_refusals() -> None:
    text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    assert error_for("evict Pod x", 500, status(text)).reason == SEVERAL_BUDGETS


def test_expiry_is_recognised() -> None:
    assert is_expired(error_for("watch pods", 410, status("too old")))
    assert not is_expired(error_for("watch pods", 500, status("broken")))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({"retry-after": "0"}, 0.0), ({}, None), ({"Retry-After": "Tue, 1 Sep"}, None)],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
    error = error_for("list pods", 429, status("slow down"), headers)
    assert isinstance(error, errors.Throttled)
    assert error.retry_after == seconds


@pytest.mark.parametrize("body", [b"404 page not found\n", b'{"kind": "Other", "message": "x"}', b"\xff\xfe", b""])
def test_a_body_that_is_no_status_becomes_its_own_message(body: bytes) -> None:
    assert parse_status(body)["kind"] == "Status"
    assert error_for("get x", 404, parse_status(body)).message


def test_only_a_429_of_a_budget_says_so_and_names_the_budget() -> None:
    words = "The disruption budget web-pdb needs 2 healthy pods and has 2 currently"
    body = status("Cannot evict pod as it would violate the pod's disruption budget.", "TooManyRequests")
    body["details"] = {"causes": [{"reason": "DisruptionBudget", "message": words}]}
    by_budget = error_for("evict Pod a/b", 429, body, {"Retry-After": "10"})
    assert (by_budget.reason, by_budget.retry_after) == (DISRUPTION_BUDGET, 10.0)  # type: ignore[attr-defined]
    assert "web-pdb" in by_budget.message
    busy = error_for("evict Pod a/b", 429, status("Too many requests, please try again later."), {"Retry-After": "1"})
    assert busy.reason != DISRUPTION_BUDGET
