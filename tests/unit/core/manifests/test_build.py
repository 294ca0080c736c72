from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.kinds import kind_of
from gpu_fleet.core.manifests import templates
from gpu_fleet.core.manifests.build import BUILDERS, build
from tests.unit.core.specs import demo_spec

DURATION = re.compile(r"^(([0-9]+(s|m|h))+|Never)$")


def one(name: str, **args: Any) -> dict[str, Any]:
    found = build(name, demo_spec(), **args)
    assert len(found) == 1
    return found[0]


def test_a_pool_of_both_architectures_asks_for_both() -> None:
    spec = demo_spec(nodePools__0__instanceTypes=["g5g.xlarge", "g5.xlarge"])
    [made] = build("node_pool", spec, pool="shared-a10g")
    wanted = {each["key"]: each["values"] for each in made["spec"]["template"]["spec"]["requirements"]}
    assert wanted["kubernetes.io/arch"] == ["amd64", "arm64"]


def test_the_node_pool_says_what_the_spec_says() -> None:
    pool = one("node_pool", pool="shared-a10g")
    assert (pool["apiVersion"], pool["kind"], pool["metadata"]["name"]) == (
        "karpenter.sh/v1",
        "NodePool",
        "shared-a10g",
    )
    node = pool["spec"]["template"]
    assert node["metadata"]["labels"] == {
        "gpu-fleet.io/device-plugin": "true",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/device-plugin.config": "time-slicing-4",
        "gpu-fleet.io/pool": "shared-a10g",
    }
    assert node["spec"]["nodeClassRef"] == {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "shared-a10g"}
    assert {r["key"]: (r["operator"], r["values"]) for r in node["spec"]["requirements"]} == {
        "node.kubernetes.io/instance-type": ("In", ["g5.xlarge"]),
        "karpenter.sh/capacity-type": ("In", ["spot", "on-demand"]),
        "kubernetes.io/arch": ("In", ["amd64"]),
        "kubernetes.io/os": ("In", ["linux"]),
    }
    assert node["spec"]["taints"] == [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]
    assert DURATION.match(node["spec"]["expireAfter"])
    assert node["spec"]["expireAfter"] == "Never"
    assert "terminationGracePeriod" not in node["spec"]
    assert pool["spec"]["disruption"] == {
        "consolidationPolicy": "WhenEmpty",
        "consolidateAfter": "5m",
        "budgets": [{"nodes": "10%"}, {"nodes": "0", "reasons": ["Drifted"]}],
    }
    assert pool["spec"]["limits"] == {"nodes": "4", "cpu": "16"}


def test_a_gated_pool_has_a_startup_taint_and_its_taints_stay_what_they_are() -> None:
    """In ``taints`` it would have to be tolerated by every job, in neither list Karpenter would buy node after node
    (aws/karpenter-provider-aws#6355)."""
    (gated,) = build("node_pool", demo_spec(nodePools__0__admission="gated"), pool="shared-a10g")
    (open_,) = build("node_pool", demo_spec(), pool="shared-a10g")
    template = gated["spec"]["template"]["spec"]
    assert template.pop("startupTaints") == [{"key": "gpu-fleet.io/unproven", "effect": "NoSchedule"}]
    assert gated == open_, "nothing else changes, and an open pool has no startupTaints at all"


def test_an_exclusive_pool_has_the_exclusive_config() -> None:
    labels = one("node_pool", pool="whole-a100")["spec"]["template"]["metadata"]["labels"]
    assert labels["nvidia.com/device-plugin.config"] == "exclusive"


def test_nodes_of_an_mps_pool_ask_for_the_control_daemon() -> None:
    spec = demo_spec(nodePools__0__sharing={"mode": "mps", "replicas": 4})
    assert build("node_pool", spec, pool="shared-a10g")[0]["spec"]["template"]["metadata"]["labels"] == {
        "gpu-fleet.io/device-plugin": "true",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/device-plugin.config": "mps-4",
        "nvidia.com/mps.capable": "true",
        "gpu-fleet.io/pool": "shared-a10g",
    }


def test_a_limit_that_is_not_given_leaves_room_for_one_replacement() -> None:
    spec = demo_spec(nodePools__0__limits=...)
    assert build("node_pool", spec, pool="shared-a10g")[0]["spec"]["limits"] == {"nodes": "3", "cpu": "12"}


def test_optional_parts_are_left_out_not_null() -> None:
    spec = demo_spec(
        nodePools__0__taints=[], nodePools__0__terminationGracePeriod=None, nodePools__0__disruption__budgets=[]
    )
    pool = build("node_pool", spec, pool="shared-a10g")[0]["spec"]
    assert "taints" not in pool["template"]["spec"]
    assert "terminationGracePeriod" not in pool["template"]["spec"]


def test_a_scheduled_budget_keeps_schedule_duration_and_reasons() -> None:
    budget = {"nodes": "0", "schedule": "0 9 * * 1-5", "duration": "8h", "reasons": ["Drifted"]}
    spec = demo_spec(nodePools__0__disruption__budgets=[budget])
    assert build("node_pool", spec, pool="shared-a10g")[0]["spec"]["disruption"]["budgets"] == [budget]


def test_the_node_class_finds_its_ami_subnets_and_groups() -> None:
    node_class = one("node_class", pool="whole-a100")
    assert kind_of(node_class) is not None
    body = node_class["spec"]
    discovery = [{"tags": {"karpenter.sh/discovery": "demo-gpu"}}]
    assert body["amiSelectorTerms"] == [{"alias": "al2023@v20260714"}]
    assert body["subnetSelectorTerms"] == body["securityGroupSelectorTerms"] == discovery
    assert body["role"] == "KarpenterNodeRole-demo-gpu"
    assert body["blockDeviceMappings"][0]["ebs"]["volumeSize"] == "100Gi"
    assert body["metadataOptions"]["httpTokens"] == "required"


def test_a_pool_may_have_its_own_ami_and_bottlerocket_its_data_volume() -> None:
    spec = demo_spec(nodePools__1__amiAlias="bottlerocket@1.30.0", devicePlugin__manage=False)
    body = build("node_class", spec, pool="whole-a100")[0]["spec"]
    assert body["amiSelectorTerms"] == [{"alias": "bottlerocket@1.30.0"}]
    assert [m["deviceName"] for m in body["blockDeviceMappings"]] == ["/dev/xvdb"]
    assert (
        build("node_class", spec, pool="shared-a10g")[0]["spec"]["blockDeviceMappings"][0]["deviceName"] == "/dev/xvda"
    )


def test_the_namespaces_are_ours_and_the_managed_plugins() -> None:
    names = [m["metadata"]["name"] for m in build("system_namespaces", demo_spec())]
    assert names == ["gpu-fleet-system", "gpu-fleet-validation", "nvidia-device-plugin"]
    unmanaged = [m["metadata"]["name"] for m in build("system_namespaces", demo_spec(devicePlugin__manage=False))]
    assert unmanaged == ["gpu-fleet-system", "gpu-fleet-validation"]


def test_placeholders_give_way_to_everything() -> None:
    priority = one("placeholder_priority")
    assert priority["value"] < 0
    assert priority["preemptionPolicy"] == "Never"
    assert priority["globalDefault"] is False


def test_the_runtime_class_has_the_name_that_the_plugin_asks_for() -> None:
    runtime = one("runtime_class")
    assert (runtime["metadata"]["name"], runtime["handler"]) == ("nvidia", "nvidia")


@pytest.mark.parametrize(
    "name", ["runtime_class", "node_class", "node_overlay", "node_pool", "placeholder_priority", "system_namespaces"]
)
def test_every_manifest_is_mapped_labelled_and_repeatable(name: str) -> None:
    args = {"pool": "shared-a10g"} if name in ("node_class", "node_overlay", "node_pool") else {}
    first = build(name, demo_spec(), **args)
    expected = copy.deepcopy(first)
    first[0]["metadata"]["name"] = "changed"
    assert build(name, demo_spec(), **args) == expected
    for manifest in expected:
        assert kind_of(manifest) is not None
        assert manifest["metadata"]["labels"]["gpu-fleet.io/cluster"] == "demo"


def test_an_unknown_builder_or_pool_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="node_pool"):
        build("nope", demo_spec())
    with pytest.raises(SpecError, match="shared-a10g"):
        build("node_pool", demo_spec(), pool="nope")


def test_a_builder_has_the_name_of_its_function() -> None:
    assert {name: function.__name__ for name, function in BUILDERS.items()} == {name: name for name in BUILDERS}


def test_without_a_reader_templates_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_reader", None)
    monkeypatch.setattr(templates, "_cache", {})
    with pytest.raises(RuntimeError, match=r"templates\.use\(\)"):
        templates.template("manifests/node-pool")
