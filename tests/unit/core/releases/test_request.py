"""Requests: what is refused, and what their digest depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.components import COMPONENTS, known_component, release_request
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest, same_content
from tests.unit.core.specs import demo_spec

CHART = ChartRef("tiny", "1.0.0", "https://charts.example.com")


def request(**changes: Any) -> ReleaseRequest:
    fields: dict[str, Any] = {"name": "tiny", "namespace": "ns", "chart": CHART, "values": {"a": 1, "b": {"c": [1]}}}
    return ReleaseRequest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Tiny"}, "release_name"),
        ({"name": "x" * 54}, "release_name"),
        ({"name": ""}, "release_name"),
        ({"namespace": ""}, "namespace"),
        ({"chart": ChartRef("")}, "chart"),
        ({"chart": ChartRef("c", "", "https://h")}, "version"),
        ({"chart": ChartRef("c", "^1.0", "https://h")}, "version"),
        ({"chart": ChartRef("c", "1.0.0", "https://h", "abc")}, "digest"),
        ({"values": ["a"]}, "values"),
        ({"name": None}, "release_name"),
        ({"namespace": None}, "namespace"),
        ({"chart": ChartRef("c", 1.2, "https://h")}, "version"),  # type: ignore[arg-type]
        ({"chart": ChartRef("/c", 1.2)}, "version"),  # type: ignore[arg-type]
        ({"values": {"ports": {"a": 1, 443: 2}}}, "values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_meant_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        request(**changes)
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "tiny\n"}, "release_name"),
        ({"namespace": "ns\n"}, "namespace"),
        ({"namespace": "--all"}, "namespace"),
        ({"namespace": "../kube-system"}, "namespace"),
        ({"chart": replace(CHART, version="1.0.0\n")}, "version"),
        ({"chart": replace(CHART, digest="a" * 64 + "\n")}, "digest"),
        ({"chart": replace(CHART, name="--untardir")}, "chart"),
        ({"chart": replace(CHART, name="../../x")}, "chart"),
        ({"chart": replace(CHART, name="tiny\n")}, "chart"),
        ({"chart": replace(CHART, name="a..b")}, "chart"),
        ({"chart": replace(CHART, repository="--post-renderer")}, "repository"),
        ({"chart": replace(CHART, repository="file:///etc")}, "repository"),
        ({"chart": replace(CHART, repository="https://charts.example.com\n")}, "repository"),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_neither_an_option_nor_a_line_break_nor_a_way_out_of_a_folder_is_a_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecError) as caught:
        request(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["tiny", "karpenter-crd", "nvidia-device-plugin", "a.b_c", "Chart2"])
def test_names_of_charts(name: str) -> None:
    assert request(chart=replace(CHART, name=name)).chart.name == name


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"history_max": 1}, "history_max"), ({"remediation": "pray"}, "remediation"), ({"conflicts": "x"}, "conflicts")],
)
def test_a_policy_that_cannot_be_meant_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        request(policy=ReleasePolicy(**changes))
    assert caught.value.field == field


def test_the_digest_does_not_depend_on_key_order_or_repository() -> None:
    same = request(values={"b": {"c": [1]}, "a": 1}, chart=ChartRef("tiny", "1.0.0", "oci://mirror"))
    assert same.digest == request().digest
    assert len(same.digest) <= 63


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {"a": 2}},
        {"chart": ChartRef("tiny", "1.0.1", "https://charts.example.com")},
        {"chart": ChartRef("other", "1.0.0", "https://charts.example.com")},
        {"chart": ChartRef("tiny", "1.0.0", "https://charts.example.com", "a" * 64)},
        {"chart": ChartRef("tiny", "1.0.0", content="a" * 64)},
    ],
    ids=["values", "version", "chart", "archive digest", "what a local chart holds"],
)
def test_the_digest_depends_on(changes: dict[str, Any]) -> None:
    assert request(**changes).digest != request().digest


def test_same_content_is_judged_by_the_payload() -> None:
    stored = {"chart": {"metadata": {"name": "tiny", "version": "1.0.0"}}, "config": {"b": {"c": [1]}, "a": 1}}
    assert same_content(stored, request())
    assert not same_content({**stored, "config": {}}, request())
    assert not same_content({"chart": {"metadata": {"name": "tiny", "version": "1.0.1"}}}, request(values={}))
    assert not same_content({}, request())


def test_a_local_charts_content_is_judged_by_what_its_chart_file_declares() -> None:
    stored = {"chart": {"metadata": {"name": "tiny", "version": "1.0.0"}}, "config": {}}
    local = ChartRef("/charts/tiny-1.0.0.tgz", declared=("tiny", "1.0.0"))
    assert same_content(stored, request(chart=local, values={}))
    assert not same_content(stored, request(chart=ChartRef("/charts/tiny", declared=("tiny", "1.0.1")), values={}))
    assert not same_content(stored, request(chart=ChartRef("/charts/tiny", declared=("other", "1.0.0")), values={}))


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_a_request_made_of_the_spec(component: str) -> None:
    spec = demo_spec()
    made = release_request(spec, known_component(component))
    assert made.chart.version == (
        spec.device_plugin.chart.version if component == "device-plugin" else spec.karpenter.chart.version
    )
    assert made.digest == release_request(demo_spec(), known_component(component)).digest
    assert made.policy.create_namespace is (made.namespace != "kube-system")
    assert made.policy.skip_crds is (component == "karpenter")


def test_an_unknown_component_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="karpenter-crd, karpenter, device-plugin"):
        known_component("gpu-operator")
