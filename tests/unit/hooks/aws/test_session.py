"""Errors of AWS, typed, as clients of an account without permission, key or region get them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import (
    AirflowNotFoundException,
    AirflowRuntimeError,
    AirflowSecretsBackendAccessDenied,
    ErrorType,
)
from airflow.sdk.execution_time.comms import ErrorResponse
from botocore import exceptions
from botocore.exceptions import ClientError

from gpu_fleet.core.aws.errors import error_for_code, refuses_credentials
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
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.aws import AwsSession, dig, regional_endpoint
from tests.corpus import entries
from tests.unit.core.specs import demo_mapping


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


CORPUS = entries("aws")


@pytest.mark.parametrize(
    "case", [case for case in CORPUS if "code" in case], ids=lambda case: f"{case['code']} {case['message'][-40:]}"
)
def test_a_refusal_of_aws_has_its_type_reason_and_remedy(case: dict[str, Any]) -> None:
    error = error_for_code("ec2 call", case["code"], case["message"], case["status"])
    assert (type(error).__name__, error.reason) == (case["type"], case["reason"])
    assert case["remedy"] in error.message
    assert case["message"] in error.message
    # A denial that a grant cures has no other cure; what helps with any other 403 is not a grant.
    cure = getattr(error, "cure", "")
    assert cure == "" or (cure in error.message and "grant the identity this permission" not in error.message)
    if case["remedy"] in {"no grant in this account cures", "extend the boundary", "AWS Support"}:
        assert case["remedy"] in cure


@pytest.mark.parametrize(
    "case", [case for case in CORPUS if "raises" in case], ids=lambda case: f"{case['raises']} {case['with']}"
)
def test_an_error_before_aws_is_asked_is_typed(case: dict[str, Any]) -> None:
    with pytest.raises(GpuFleetError) as caught, AwsSession(None, "us-west-2").errors("look"):
        raise getattr(exceptions, case["raises"])(**case["with"])
    assert (type(caught.value).__name__, caught.value.reason) == (case["type"], case["reason"])
    assert case["remedy"] in caught.value.message


#: Reasons of the corpus with which AWS, or botocore before it, has not even learnt who asks.
NOBODY = {
    "AuthFailure", "AwsConfigInvalid", "InvalidClientTokenId", "LoginNeeded", "NoCredentials", "SignatureDoesNotMatch",
}  # fmt: skip


@pytest.mark.parametrize("reason", sorted({case["reason"] for case in CORPUS}))
def test_what_no_permission_would_cure_is_told_from_a_missing_one(reason: str) -> None:
    assert refuses_credentials(Forbidden("no", reason=reason)) is (reason in NOBODY)


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


#: One region of each partition -> the domain of its endpoints (docs.aws.amazon.com, 'AWS service endpoints').
PARTITIONS = {
    "us-west-2": "amazonaws.com",
    "us-east-1": "amazonaws.com",
    "us-gov-west-1": "amazonaws.com",
    "cn-north-1": "amazonaws.com.cn",
    "eusc-de-east-1": "amazonaws.eu",
    "us-iso-east-1": "c2s.ic.gov",
    "us-isob-east-1": "sc2s.sgov.gov",
    "eu-isoe-west-1": "cloud.adc-e.uk",
    "us-isof-south-1": "csp.hci.ic.gov",
}


@pytest.mark.parametrize("region", PARTITIONS)
def test_tokens_are_signed_for_the_regions_own_sts_in_every_partition(
    account: None, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "legacy")
    assert AwsSession(None, region).endpoint("sts") == f"https://sts.{region}.{PARTITIONS[region]}"
    assert not AwsSession(None, region).is_unknown_region()
    assert parse_cluster(demo_mapping(aws__region=region)).region == region


def test_there_is_no_endpoint_of_a_region_of_no_partition() -> None:
    with pytest.raises(SpecError, match=r"aws\.region: AWS has no region 'mars-north-1'"):
        regional_endpoint("sts", "mars-north-1")


@pytest.mark.parametrize(("region", "unknown"), [("us-west-2", False), ("cn-north-1", False), ("mars-north-1", True)])
def test_regions_of_every_partition_are_known(account: None, region: str, unknown: bool) -> None:
    assert AwsSession(None, region).is_unknown_region() is unknown


def test_dig_flattens_lists_and_passes_over_what_is_missing() -> None:
    response = {"Reservations": [{"Instances": [{"I": 1}, {"I": 2}]}, {}]}
    assert dig(response, "Reservations.Instances") == [{"I": 1}, {"I": 2}]
    assert dig(response, "Nothing.There") == []
    assert dig(response, "Reservations.Instances.I") == [1, 2]


class Client:
    """One client: refused with an error code, or answering."""

    def __init__(self, code: str | None) -> None:
        self.code = code

    def can_paginate(self, operation: str) -> bool:
        return False

    def list_clusters(self) -> dict[str, list[str]]:
        if self.code:
            detail = {"Error": {"Code": self.code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(detail, "ListClusters")
        return {"clusters": ["demo"]}


def session_with(monkeypatch: pytest.MonkeyPatch, *codes: str | None) -> tuple[AwsSession, list[Client]]:
    """A session whose clients, as they are made one after the other, get these answers."""
    made: list[Client] = []

    def make(self: AwsSession, service: str) -> Client:
        made.append(Client(codes[len(made)]))
        return made[-1]

    monkeypatch.setattr(AwsSession, "_make_client", make)
    return AwsSession(None, "us-west-2"), made


@pytest.mark.parametrize("code", ["InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken"])
def test_rotated_keys_are_read_again_once(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    session, made = session_with(monkeypatch, code, None)
    session._session = session._hook = object()
    assert session.paginate("eks", "list_clusters", "clusters") == ["demo"]
    assert session._session is None, "the connection is resolved again"
    assert session.call("eks", "list_clusters") == {"clusters": ["demo"]}
    assert len(made) == 2


@pytest.mark.parametrize(("code", "kind"), [("InvalidClientTokenId", Forbidden), ("ExpiredToken", Unauthorized)])
def test_keys_that_stay_bad_are_an_error(monkeypatch: pytest.MonkeyPatch, code: str, kind: type[GpuFleetError]) -> None:
    session, made = session_with(monkeypatch, code, code)
    with pytest.raises(kind):
        session.call("eks", "list_clusters")
    assert len(made) == 2


def test_a_missing_permission_is_not_a_matter_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    session, made = session_with(monkeypatch, "AccessDenied")
    with pytest.raises(Forbidden, match="grant the identity"):
        session.call("eks", "list_clusters")
    assert len(made) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR)),
        AirflowSecretsBackendAccessDenied("denied"),
        RuntimeError("the supervisor is gone"),
    ],
    ids=["api server", "denied", "anything"],
)
def test_airflow_that_fails_says_nothing_about_a_connection(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(BaseHook, "get_connection", fail)
    session = AwsSession("a-connection", "eu-north-1")
    for use in (session.fingerprint, session.session, lambda: session.call("eks", "list_clusters")):
        with pytest.raises(ApiUnavailable, match=f"'a-connection': .*{re.escape(str(trouble))}") as caught:
            use()
        assert caught.value.reason == "ConnectionUnreadable"


@pytest.mark.parametrize("trouble", [AirflowNotFoundException("not defined"), RuntimeError("the supervisor is gone")])
def test_a_session_is_made_of_the_connection_as_it_was_read(
    account: None, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """An outage just after that must not let the stock hook go on with the credentials of the environment."""
    answers: list[Any] = [Connection(conn_id="c", conn_type="aws", login="AKIAOFTHECONNECTION0", password="s")]

    def get(*_: object) -> Any:
        if answers:
            return answers.pop()
        raise trouble

    monkeypatch.setattr(BaseHook, "get_connection", get)
    session = AwsSession("c", "eu-north-1")
    assert session.session().get_credentials().access_key == "AKIAOFTHECONNECTION0"
    assert session.custom_endpoint("ec2") is None
