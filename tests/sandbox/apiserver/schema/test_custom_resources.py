from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandbox.apiserver.builders import definition
from tests.sandbox.apiserver.client import STRATEGIC, Api, define

pytestmark = pytest.mark.real_api

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
POOLS = "/apis/karpenter.sh/v1/nodepools"
CHART = Path(__file__).parents[4] / "sandbox" / "charts" / "karpenter-crd" / "templates"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "mode": {"type": "string", "enum": ["fast", "slow"], "default": "fast"},
                "every": {"type": "string", "pattern": "^[0-9]+(s|m)$"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "share": {"x-kubernetes-int-or-string": True},
            },
        },
        "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
    },
}


def widget(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
async def widgets(api: Api) -> Api:
    await define(api, definition(SCHEMA))
    return api


async def test_discovery_of_what_a_definition_serves(widgets: Api) -> None:
    listed = (await widgets.get("/apis/example.com/v1")).body["resources"]
    assert [item["name"] for item in listed] == ["widgets", "widgets/status"]
    assert "apis/example.com/v1" in (await widgets.get("/openapi/v3")).body["paths"]


async def test_defaults_and_pruning(widgets: Api) -> None:
    reply = await widgets.post(WIDGETS, widget("w", size=1, other=2, free={"any": [1]}, share="10%"))
    assert reply.body["spec"] == {"size": 1, "mode": "fast", "free": {"any": [1]}, "share": "10%"}
    assert reply.headers["Warning"] == '299 - "unknown field \\"spec.other\\""'


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, "spec.size: Required value"),
        ({"size": 0}, "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": "1"}, 'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'),
        ({"size": 1, "mode": "odd"}, 'spec.mode: Unsupported value: "odd": supported values: "fast", "slow"'),
        (
            {"size": 1, "every": "1d"},
            "spec.every: Invalid value: \"1d\": spec.every in body should match '^[0-9]+(s|m)$'",
        ),
    ],
)
async def test_schema_violations(widgets: Api, spec: dict[str, Any], text: str) -> None:
    reply = await widgets.post(WIDGETS, widget("w", **spec))
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == f'Widget.example.com "w" is invalid: {text}'


async def test_generation_and_status(widgets: Api) -> None:
    await widgets.post(WIDGETS, widget("w", size=1))
    status = await widgets.patch(f"{WIDGETS}/w/status", {"status": {"phase": "Ready"}, "spec": {"size": 9}})
    assert (status.body["spec"]["size"], status.body["metadata"]["generation"]) == (1, 1)
    spec = await widgets.patch(f"{WIDGETS}/w", {"spec": {"size": 2}, "status": {"phase": "Lost"}})
    assert (spec.body["status"], spec.body["metadata"]["generation"]) == ({"phase": "Ready"}, 2)


async def test_lists_carry_the_kind_of_their_items(widgets: Api) -> None:
    await widgets.post(WIDGETS, widget("w", size=1))
    assert (await widgets.get(WIDGETS)).body["items"][0]["kind"] == "Widget"


async def test_strategic_merge_is_refused(widgets: Api) -> None:
    await widgets.post(WIDGETS, widget("w", size=1))
    reply = await widgets.patch(f"{WIDGETS}/w", {"spec": {"size": 2}}, STRATEGIC)
    assert (reply.code, reply.reason) == (415, "UnsupportedMediaType")


async def test_undeclared_field_in_server_side_apply(widgets: Api) -> None:
    reply = await widgets.apply(f"{WIDGETS}/w", widget("w", size=1, other=2))
    assert reply.code == 500
    assert reply.message.endswith("(default/w; example.com/v1, Kind=Widget): .spec.other: field not declared in schema")


async def test_a_name_that_does_not_fit(api: Api) -> None:
    body = definition(SCHEMA)
    body["metadata"]["name"] = "gadgets.example.com"
    reply = await api.post(DEFINITIONS, body)
    assert (
        'metadata.name: Invalid value: "gadgets.example.com": must be spec.names.plural+"."+spec.group' in reply.message
    )


# ---- Karpenter


def node_pool(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "template": {
            "spec": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
                "requirements": [],
            }
        },
        "disruption": {"consolidateAfter": "5m"},
    }
    spec["template"]["spec"].update(changes.pop("inner", {}))
    spec.update(changes)
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "gpu"}, "spec": spec}


def requirement(key: str, operator: str = "Exists", **more: Any) -> dict[str, Any]:
    return {"inner": {"requirements": [{"key": key, "operator": operator, **more}]}}


@pytest.fixture
async def karpenter(api: Api) -> Api:
    for path in sorted(CHART.glob("*.yaml")):
        await define(api, yaml.safe_load(path.read_text()))
    return api


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            requirement("karpenter.sh/foo"),
            'spec.template.spec.requirements[0].key: Invalid value: "karpenter.sh/foo": '
            'label domain "karpenter.sh" is restricted',
        ),
        (requirement("a", "In", values=[]), "requirements with operator 'In' must have a value defined"),
        (
            requirement("a", "In", values=["x"], minValues=2),
            "requirements with 'minValues' must have at least that many values specified in the 'values' field",
        ),
        (
            {"disruption": {"consolidateAfter": "5m", "budgets": [{"nodes": "0", "schedule": "@daily"}]}},
            "'schedule' must be set with 'duration'",
        ),
        ({"replicas": 1, "limits": {"cpu": "10"}}, "only 'limits.nodes' is supported on static NodePools"),
        ({"inner": {"expireAfter": "1d"}}, "should match '^(([0-9]+(s|m|h))+|Never)$'"),
        ({"disruption": {}}, "spec.disruption.consolidateAfter: Required value"),
    ],
)
async def test_node_pool_rules(karpenter: Api, changes: dict[str, Any], text: str) -> None:
    reply = await karpenter.post(POOLS, node_pool(**changes))
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message.startswith('NodePool.karpenter.sh "gpu" is invalid: ')
    assert text in reply.message


async def test_a_failed_rule_shows_no_object(karpenter: Api) -> None:
    reply = await karpenter.post(POOLS, node_pool(replicas=1, limits={"cpu": "10"}))
    assert "spec: Invalid value: only 'limits.nodes' is supported on static NodePools" in reply.message


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"disruption": {}}, "spec.disruption.consolidateAfter: Required value"),
        (
            {"disruption": {"consolidateAfter": "5m", "consolidationPolicy": "Never"}},
            'spec.disruption.consolidationPolicy: Unsupported value: "Never": supported values: '
            '"WhenEmpty", "WhenEmptyOrUnderutilized", "Balanced"',
        ),
    ],
)
async def test_a_schema_error_leaves_the_rules_unchecked(karpenter: Api, changes: dict[str, Any], error: str) -> None:
    reply = await karpenter.post(POOLS, node_pool(**changes))
    assert reply.message == (
        f'NodePool.karpenter.sh "gpu" is invalid: [{error}, <nil>: Invalid value: null: some validation rules were not '
        "checked because the object was invalid; correct the existing errors to complete validation]"
    )


async def test_another_kind_than_that_of_the_path(widgets: Api) -> None:
    reply = await widgets.post(WIDGETS, {**widget("w", size=1), "kind": "Gadget"})
    assert (reply.code, reply.message) == (
        422,
        'Widget.example.com "w" is invalid: kind: Invalid value: "Gadget": must be Widget',
    )


async def test_a_custom_resource_is_replaced_by_its_version_only(widgets: Api) -> None:
    await widgets.post(WIDGETS, widget("w", size=1))
    reply = await widgets.put(f"{WIDGETS}/w", widget("w", size=2))
    assert reply.message == (
        'widgets.example.com "w" is invalid: metadata.resourceVersion: Invalid value: 0: '
        "must be specified for an update"
    )


async def test_a_node_pool_without_requirements_is_accepted(karpenter: Api) -> None:
    reply = await karpenter.post(POOLS, node_pool())
    assert reply.code == 201, reply.text
    assert "finalizers" not in reply.body["metadata"]


async def test_the_group_of_a_node_class_reference_is_immutable(karpenter: Api) -> None:
    await karpenter.post(POOLS, node_pool())
    change = {"spec": {"template": {"spec": {"nodeClassRef": {"group": "other.example.com"}}}}}
    reply = await karpenter.patch(f"{POOLS}/gpu", change)
    assert "nodeClassRef.group is immutable" in reply.message
