"""What helm says, as typed errors; texts as helm 4.2.3 and 3.17.2 print them."""

from __future__ import annotations

import pytest

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Forbidden,
    Invalid,
    ToolError,
)
from gpu_fleet.core.releases.helm.output import complaint, error_of, parse_version, pull_error, redact
from tests.corpus import entries


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


@pytest.mark.parametrize("case", entries("helm"), ids=lambda case: case["case"])
def test_a_failure_has_its_type_reason_and_remedy(case: dict[str, str]) -> None:
    error = error_of("upgrade of release ns/tiny", case["text"])
    assert (type(error).__name__, error.reason) == (case["type"], case["reason"]), error
    assert case["remedy"] in error.message
    assert error.message.startswith("upgrade of release ns/tiny: ")


def test_silence_is_still_an_error() -> None:
    assert "without giving a reason" in error_of("x", "").message


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
