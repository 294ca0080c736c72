"""What helm says, as typed errors; texts as helm 4.2.3 and 3.17.2 print them."""

from __future__ import annotations

import pytest

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    DeadlinePassed,
    Forbidden,
    GateFailed,
    Invalid,
    ReleaseError,
    ToolError,
    TransientError,
    Unauthorized,
)
from gpu_fleet.core.releases.helm_output import complaint, error_of, parse_version, pull_error, redact


@pytest.mark.parametrize(
    ("text", "expected"), [("v4.2.3", "4.2.3"), ("v3.17.2\n", "3.17.2"), ("v3.21.0+gabc", "3.21.0")]
)
def test_supported_versions(text: str, expected: str) -> None:
    version = parse_version(text, "/bin/helm")
    assert str(version) == expected
    assert version.server_side_apply is expected.startswith("4")


@pytest.mark.parametrize("text", ["", "v2.17.0", "v3.16.4", "v5.0.0", "kubectl"])
def test_unsupported_versions_name_the_remedy(text: str) -> None:
    with pytest.raises(ToolError, match="HELM_BIN"):
        parse_version(text, "/bin/helm")


# ruff: noqa: E501  (helm prints long lines)
FAILURES = {
    "schema": (
        "Error: values don't meet the specifications of the schema(s) in the following chart(s):\ntiny:\n- at '/message'"
        ": got number, want string",
        Invalid, "ValuesSchema",
    ),
    "immutable": (
        'Error: UPGRADE FAILED: server-side apply failed for object ns/tiny apps/v1, Kind=Deployment: Deployment.apps '
        '"tiny" is invalid: spec.selector: Invalid value: {}: field is immutable',
        Invalid, "ImmutableField",
    ),
    "conflict": (
        'Error: UPGRADE FAILED: conflict occurred while applying object ns/tiny apps/v1, Kind=Deployment: Apply failed '
        'with 1 conflict: conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas',
        ReleaseError, "FieldConflict",
    ),
    "owned by another": (
        'Error: Unable to continue with install: ConfigMap "x" in namespace "ns" exists and cannot be imported into the '
        'current release: invalid ownership metadata; annotation validation error: missing key',
        ReleaseError, "ObjectOwnedByAnother",
    ),
    "CRD missing": (
        'Error: unable to build kubernetes objects from release manifest: resource mapping not found for name: "x" '
        'namespace: "" from "": no matches for kind "Foo" in version "a/v1"\nensure CRDs are installed first',
        Invalid, "CrdMissing",
    ),
    "locked": (
        "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress", Conflict,
        "OperationInProgress",
    ),
    "name in use": ("Error: INSTALLATION FAILED: cannot re-use a name that is still in use", Conflict, "NameInUse"),
    "interrupted": ("Error: UPGRADE FAILED: release tiny failed: context canceled", TransientError, "Interrupted"),
    "token expired": (
        "Error: UPGRADE FAILED: the server has asked for the client to provide credentials", Unauthorized,
        "Unauthorized",
    ),
    "hook": (
        "Error: UPGRADE FAILED: pre-upgrade hooks failed: 1 error occurred:\n\t* job tiny-hook failed: "
        "BackoffLimitExceeded",
        GateFailed, "HookFailed",
    ),
    "quota on pods": (
        'Error: INSTALLATION FAILED: pods "x" is forbidden: exceeded quota: q, requested: pods=1', Forbidden,
        "QuotaExceeded",
    ),
    "quota on Secrets": (
        'Error: INSTALLATION FAILED: create: failed to create: secrets "sh.helm.release.v1.x.v1" is forbidden: exceeded '
        "quota: q, requested: secrets=1",
        TransientError, "SecretQuotaExceeded",
    ),
    "too large": (
        'Error: create: failed to create: Secret "x" is invalid: data: Too long: may not be more than 1048576 bytes',
        Invalid, "ReleaseTooLarge",
    ),
    "terminating": (
        'Error: create: failed to create: secrets "x" is forbidden: unable to create new content in namespace ns because '
        "it is being terminated",
        Conflict, "NamespaceTerminating",
    ),
    "time-out": (
        "Error: UPGRADE FAILED: context deadline exceeded", DeadlinePassed, "HelmTimedOut",
    ),
    "unreachable": (
        'Error: Kubernetes cluster unreachable: Get "https://127.0.0.1:1/version": dial tcp: connection refused',
        ApiUnavailable, "ApiUnavailable",
    ),
    "no permission": (
        'Error: list: failed to list: secrets is forbidden: User "low" cannot list resource "secrets"', Forbidden,
        "Forbidden",
    ),
    "unknown": ("Error: something new", TransientError, "HelmFailed"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_has_its_type_and_reason(case: str) -> None:
    text, kind, reason = FAILURES[case]
    error = error_of("upgrade of release ns/tiny", text)
    assert type(error) is kind
    assert error.reason == reason
    assert error.message.startswith("upgrade of release ns/tiny: ")


def test_silence_is_still_an_error() -> None:
    assert "without saying why" in error_of("x", "").message


def test_noise_before_the_error_is_left_out() -> None:
    text = "Pulled: registry/x:1\nWARNING: kubeconfig\nError: INSTALLATION FAILED: first\nsecond"
    assert complaint(text) == "INSTALLATION FAILED: first second"


def test_tokens_are_hidden() -> None:
    token = "k8s-aws-v1.aHR0cHM6Ly9zdHMuYW1hem9uYXdz"
    assert redact(f"x {token} y") == "x k8s-aws-v1.(hidden) y"
    assert "aHR0" not in error_of("x", f"Error: {token}").message
    assert redact("Authorization: Bearer abcdefghijkl") == "Authorization: Bearer (hidden)"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('Error: chart "x" version "9" not found in http://h repository', Invalid),
        ("Error: GET https://r/v2/: 401 Unauthorized", Forbidden),
        ("Error: looks like the repository cannot be reached: dial tcp: connection refused", ApiUnavailable),
        ("Error: failed to fetch https://h/c-1.tgz : 404 Not Found", Invalid),
        ("Error: failed to fetch https://h/index.yaml : 403 Forbidden", Forbidden),
        ("Error: unexpected status from HEAD request to https://r/v2/c/manifests/1: 403 Forbidden", Forbidden),
        # Digits of an address are no status.
        (
            'Error: Get "http://h:34039/index.yaml": dial tcp 127.0.0.1:34039: connect: connection refused',
            ApiUnavailable,
        ),
        ('Error: Get "http://h:404/index.yaml": dial tcp 127.0.0.1:404: connect: connection refused', ApiUnavailable),
        ('Error: Get "https://forbidden.example/index.yaml": dial tcp 10.0.0.1:443: i/o timeout', ApiUnavailable),
    ],
)
def test_pull_failures(text: str, kind: type[Exception]) -> None:
    assert type(pull_error("pull of chart x", text)) is kind


def test_an_unreachable_repository_is_told_with_the_ways_around_it() -> None:
    error = pull_error("pull of chart x", "Error: dial tcp 127.0.0.1:1: connect: connection refused")
    assert error.reason == "ChartUnreachable"
    assert "GPU_FLEET_CHART_MIRRORS" in error.message
