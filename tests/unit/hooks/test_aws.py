"""Errors of AWS, typed, as clients of an account without permission, key or region get them."""

from __future__ import annotations

import pytest

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    Forbidden,
    GpuFleetError,
    Invalid,
    NotFound,
    SpecError,
    Throttled,
    Unauthorized,
)
from gpu_fleet.hooks.aws import AwsSession, dig, error_for_code


@pytest.mark.parametrize(
    ("code", "status", "kind", "says"),
    [
        ("Throttling", 400, Throttled, "eks list"),
        ("Anything", 429, Throttled, "eks list"),
        ("ExpiredToken", 403, Unauthorized, "have expired"),
        ("InvalidClientTokenId", 403, Forbidden, "does not accept the credentials"),
        ("InvalidSignatureException", 403, Forbidden, "does not accept the credentials"),
        ("AccessDenied", 403, Forbidden, "grant the identity this permission"),
        ("ResourceNotFoundException", 404, NotFound, "eks list"),
        ("InvalidInstanceID.NotFound", 400, NotFound, "eks list"),
        ("ResourceInUseException", 409, Conflict, "eks list"),
        ("InternalFailure", 500, ApiUnavailable, "eks list"),
        ("ValidationException", 400, Invalid, "eks list"),
    ],
)
def test_error_code_becomes_a_type(code: str, status: int, kind: type[GpuFleetError], says: str) -> None:
    error = error_for_code("eks list", code, "the message", status)
    assert type(error) is kind
    assert error.reason == code
    assert "the message" in error.message
    assert says in error.message


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidSignatureException"])
def test_a_signature_for_no_region_is_the_specs_fault(code: str) -> None:
    error = error_for_code("eks list", code, "Credential should be scoped to a valid region.", 403)
    assert isinstance(error, SpecError)
    assert error.field == "aws.region"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(("region", "unknown"), [("us-west-2", False), ("cn-north-1", False), ("mars-north-1", True)])
def test_regions_of_every_partition_are_known(account: None, region: str, unknown: bool) -> None:
    assert AwsSession(None, region).is_unknown_region() is unknown


def test_dig_flattens_lists_and_passes_over_what_is_missing() -> None:
    response = {"Reservations": [{"Instances": [{"I": 1}, {"I": 2}]}, {}]}
    assert dig(response, "Reservations.Instances") == [{"I": 1}, {"I": 2}]
    assert dig(response, "Nothing.There") == []
    assert dig(response, "Reservations.Instances.I") == [1, 2]
