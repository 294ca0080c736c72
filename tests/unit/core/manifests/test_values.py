from __future__ import annotations

from typing import Any

import pytest
import yaml

from gpu_fleet.core.manifests.values import helm_values, merge
from tests.unit.core.specs import demo_spec


def configs(**changes: Any) -> dict[str, Any]:
    values = helm_values(demo_spec(**changes), "device-plugin")
    return {key: yaml.safe_load(text) for key, text in values["config"]["map"].items()}


def test_there_is_one_config_per_distinct_sharing_and_the_default_shares_nothing() -> None:
    found = configs()
    assert sorted(found) == ["exclusive", "time-slicing-4"]
    assert helm_values(demo_spec(), "device-plugin")["config"]["default"] == "exclusive"
    assert "sharing" not in found["exclusive"]
    assert found["time-slicing-4"]["sharing"] == {
        "timeSlicing": {
            "renameByDefault": False,
            "failRequestsGreaterThanOne": True,
            "resources": [{"name": "nvidia.com/gpu", "replicas": 4}],
        }
    }


MPS = {"mode": "mps", "replicas": 4}


def test_an_mps_pool_has_its_own_config_and_a_daemon_that_sees_the_hosts_processes() -> None:
    assert configs(nodePools__1__sharing=MPS)["mps-4"]["sharing"] == {
        "mps": {"renameByDefault": False, "resources": [{"name": "nvidia.com/gpu", "replicas": 4}]}
    }
    assert helm_values(demo_spec(nodePools__1__sharing=MPS), "device-plugin")["mps"] == {"enableHostPID": True}
    assert "mps" not in helm_values(demo_spec(), "device-plugin")


def test_the_flags_are_the_same_in_every_config() -> None:
    assert [c["flags"] for c in configs().values()] == [{"migStrategy": "none", "failOnInitError": True}] * 2
    assert {c["version"] for c in configs().values()} == {"v1"}


def test_pools_that_share_alike_have_one_config() -> None:
    sharing = {"mode": "timeSlicing", "replicas": 4}
    assert sorted(configs(nodePools__1__sharing=sharing)) == ["exclusive", "time-slicing-4"]


def test_a_fleet_without_sharing_still_has_the_default_config() -> None:
    assert sorted(configs(nodePools__0__sharing={"mode": "exclusive"})) == ["exclusive"]


def test_every_pools_entry_is_in_the_map() -> None:
    spec = demo_spec(nodePools__1__sharing={"mode": "timeSlicing", "replicas": 2, "failRequestsGreaterThanOne": False})
    entries = helm_values(spec, "device-plugin")["config"]["map"]
    assert {pool.config_entry for pool in spec.node_pools} <= set(entries)


def test_the_plugin_tolerates_every_taint_of_every_pool() -> None:
    taints = [{"key": "team", "value": "x", "effect": "NoExecute"}]
    values = helm_values(demo_spec(nodePools__1__taints=taints), "device-plugin")
    assert values["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "gpu-fleet.io/quarantined", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert values["nodeSelector"] == {"gpu-fleet.io/device-plugin": "true"}
    assert values["runtimeClassName"] == "nvidia"


def test_the_plugin_tolerates_the_startup_taint_of_gated_pools_and_only_then() -> None:
    """Without its plugin such a node could never be proven; without a gated pool the release stays as it is."""

    def tolerated(**changes: Any) -> set[str]:
        return {each["key"] for each in helm_values(demo_spec(**changes), "device-plugin")["tolerations"]}

    assert "gpu-fleet.io/unproven" not in tolerated()
    assert tolerated(nodePools__1__admission="gated") - tolerated() == {"gpu-fleet.io/unproven"}


def test_karpenter_is_told_its_cluster_and_queue() -> None:
    values = helm_values(demo_spec(), "karpenter")
    gates = {"nodeOverlay": True}  # of the shared pool's NodeOverlay
    assert values["settings"] == {
        "clusterName": "demo-gpu",
        "interruptionQueue": "demo-gpu",
        "featureGates": gates,
    }
    assert values["replicas"] == 2
    assert values["controller"]["resources"]["limits"] == {"memory": "1Gi"}


def test_without_a_queue_karpenter_gets_no_empty_setting() -> None:
    assert "interruptionQueue" not in helm_values(demo_spec(karpenter__interruptionQueue=None), "karpenter")["settings"]


def test_the_specs_extra_values_come_last() -> None:
    spec = demo_spec(
        karpenter__settings={"featureGates": {"spotToSpotConsolidation": True}},
        karpenter__values={"controller": {"resources": {"requests": {"cpu": "1"}}}},
        devicePlugin__values={"gfd": {"enabled": False}, "image": {"tag": "v0.20.0-mine"}},
    )
    karpenter = helm_values(spec, "karpenter")
    assert karpenter["controller"]["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert karpenter["settings"]["featureGates"] == {"nodeOverlay": True, "spotToSpotConsolidation": True}
    assert helm_values(spec, "device-plugin")["image"] == {"tag": "v0.20.0-mine"}


def test_the_crd_chart_needs_no_values_and_other_components_are_refused() -> None:
    assert helm_values(demo_spec(), "karpenter-crd") == {}
    with pytest.raises(ValueError, match="karpenter-crd, karpenter, device-plugin"):
        helm_values(demo_spec(), "dcgm")  # type: ignore[arg-type]


@pytest.mark.parametrize("component", ["karpenter-crd", "karpenter", "device-plugin"])
def test_equal_specs_give_equal_values(component: Any) -> None:
    assert helm_values(demo_spec(), component) == helm_values(demo_spec(), component)


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"x": 1}}, {"a": {"x": 1}}),
    ],
)
def test_maps_are_merged_and_everything_else_replaced(base: Any, over: Any, merged: Any) -> None:
    before = str(base)
    assert merge(base, over) == merged
    assert str(base) == before
