"""Where charts come from."""

from __future__ import annotations

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.charts.archives import cache_name, check_digest, mirrored, parse_mirrors, pull_arguments
from gpu_fleet.core.releases.request import ChartRef

MIRRORS = {
    "https://nvidia.github.io/k8s-device-plugin": "http://127.0.0.1:1/charts",
    "oci://public.ecr.aws": "oci://mirror.example.com/ecr",
    "oci://public.ecr.aws/karpenter": "http://127.0.0.1:1/charts",
}


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("https://nvidia.github.io/k8s-device-plugin", "http://127.0.0.1:1/charts"),
        ("https://nvidia.github.io/k8s-device-plugin/", "http://127.0.0.1:1/charts"),
        ("https://nvidia.github.io/k8s-device-plugin-two", "https://nvidia.github.io/k8s-device-plugin-two"),
        ("oci://public.ecr.aws/karpenter", "http://127.0.0.1:1/charts"),
        ("oci://public.ecr.aws/other/deep", "oci://mirror.example.com/ecr/other/deep"),
        ("", ""),
    ],
    ids=["equal", "trailing slash", "no boundary", "longest wins", "rest is kept", "local chart"],
)
def test_mirrors(repository: str, expected: str) -> None:
    assert mirrored(ChartRef("c", "1.0.0", repository), MIRRORS).repository == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": ""}'])
def test_a_bad_mirror_setting_is_named(text: str) -> None:
    with pytest.raises(SpecError, match="GPU_FLEET_CHART_MIRRORS"):
        parse_mirrors(text)


def test_no_mirror_setting() -> None:
    assert parse_mirrors(None) == {}
    assert parse_mirrors('{"oci://a/": "http://b/"}') == {"oci://a": "http://b"}


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("https://h/charts", ["pull", "c", "--repo", "https://h/charts"]),
        ("oci://r/p", ["pull", "oci://r/p/c"]),
        ("oci://127.0.0.1:5/p", ["pull", "oci://127.0.0.1:5/p/c", "--plain-http"]),
    ],
)
def test_pull_arguments(repository: str, expected: list[str]) -> None:
    arguments = pull_arguments(ChartRef("c", "1.0.0", repository), "/d")
    assert arguments == [*expected, "--version", "1.0.0", "--destination", "/d"]


def test_the_same_chart_of_two_repositories_is_cached_twice() -> None:
    assert cache_name(ChartRef("c", "1.0.0", "https://a")) != cache_name(ChartRef("c", "1.0.0", "https://b"))


@pytest.mark.parametrize("wanted", ["", "a" * 64, f"sha256:{'a' * 64}"])
def test_a_matching_digest_passes(wanted: str) -> None:
    check_digest(ChartRef("c", "1.0.0", "https://h", wanted), "a" * 64)


def test_another_digest_is_refused_with_both_values() -> None:
    with pytest.raises(SpecError, match=r"b{64}") as caught:
        check_digest(ChartRef("c", "1.0.0", "https://h", "a" * 64), "b" * 64)
    assert caught.value.reason == "ChartDigestMismatch"
