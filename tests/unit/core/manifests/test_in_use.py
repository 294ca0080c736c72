"""What living nodes carry, and that the device plugin's release keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, InUse, carried_by, in_use, kept_sentences, needed_values
from gpu_fleet.core.manifests.plugin_entries import entry_config, entry_replicas
from gpu_fleet.core.manifests.values import helm_values
from gpu_fleet.core.releases.components import release_request, restored_request
from gpu_fleet.core.releases.needed import lacking, with_needed
from tests.unit.core.specs import demo_spec

ENTRY = "nvidia.com/device-plugin.config"
TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
EIGHT = {"mode": "timeSlicing", "replicas": 8}


def thing(kind: str, name: str, entry: str | None, pool: str = "shared-a10g", **more: Any) -> dict[str, Any]:
    labels = {"karpenter.sh/nodepool": pool, **({ENTRY: entry} if entry else {}), **more.pop("labels", {})}
    return {"kind": kind, "metadata": {"name": name, "labels": labels}, "spec": more}


def claim(name: str, entry: str | None, node: str = "", **more: Any) -> dict[str, Any]:
    return {**thing("NodeClaim", name, entry, **more), "status": {"nodeName": node} if node else {}}


def node_pool(name: str, entry: str, *, ours: bool = True, taints: tuple[Any, ...] = (TAINT,)) -> dict[str, Any]:
    labels = {"gpu-fleet.io/cluster": "demo"} if ours else {}
    template = {"metadata": {"labels": {ENTRY: entry}}, "spec": {"taints": list(taints)}}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"template": template}}


def test_what_a_plugin_of_the_ami_serves_needs_no_entry_of_ours() -> None:
    labels = {ENTRY: "time-slicing-8", "gpu-fleet.io/device-plugin": "built-in", "karpenter.sh/nodepool": "shared-a10g"}
    node = {"metadata": {"name": "n", "labels": labels}, "spec": {"taints": [TAINT]}}
    assert found(nodes=[node]).entries == {}
    labels["gpu-fleet.io/device-plugin"] = "true"
    assert set(found(nodes=[node]).entries) == {"time-slicing-8"}


def found(spec: Any = None, **seen: Any) -> InUse:
    given = {"nodes": [], "claims": [], "node_pools": [], "node_classes": [], **seen}
    return in_use(spec or demo_spec(), **given)


@pytest.mark.parametrize(
    "sharing",
    [
        {"mode": "exclusive"},
        EIGHT,
        {**EIGHT, "failRequestsGreaterThanOne": False},
        {"mode": "mps", "replicas": 4},
    ],
)
def test_an_entry_is_rebuilt_from_its_name_alone(sharing: dict[str, Any]) -> None:
    spec = demo_spec(nodePools__0__sharing=sharing)
    pool = spec.pool("shared-a10g")
    values = helm_values(spec, "device-plugin")
    assert yaml.safe_load(values["config"]["map"][pool.config_entry]) == entry_config(pool.config_entry)
    assert entry_replicas(pool.config_entry) == pool.replicas


@pytest.mark.parametrize(
    "name", ["", "default", "time-slicing-1", "time-slicing-0", "time-slicing-04", "mps-4-any", "mps-x", "Exclusive"]
)
def test_a_name_that_is_none_of_ours_stands_for_nothing(name: str) -> None:
    assert entry_replicas(name) is None
    with pytest.raises(ValueError, match="not a config entry"):
        entry_config(name)


def test_sharing_changed_in_the_file_and_a_node_still_carries_the_old_entry() -> None:
    spec = demo_spec(nodePools__0__sharing=EIGHT)
    used = found(spec, nodes=[thing("Node", "n1", "time-slicing-4")], claims=[claim("c1", "time-slicing-4", "n1")])
    values = helm_values(spec, "device-plugin", in_use=used)
    assert sorted(values["config"]["map"]) == ["exclusive", "time-slicing-4", "time-slicing-8"]
    assert yaml.safe_load(values["config"]["map"]["time-slicing-4"]) == entry_config("time-slicing-4")
    assert sorted(helm_values(spec, "device-plugin")["config"]["map"]) == ["exclusive", "time-slicing-8"]


@pytest.mark.parametrize(
    "seen",
    [
        {"claims": [claim("c1", "time-slicing-4")]},
        {"node_pools": [node_pool("shared-a10g", "time-slicing-4")]},
        {"node_pools": [node_pool("removed", "time-slicing-4")]},
        {
            "node_pools": [node_pool("removed", "time-slicing-8")],
            "nodes": [thing("Node", "n1", "time-slicing-4", pool="removed")],
        },
        {
            "nodes": [
                thing(
                    "Node", "n1", "time-slicing-4", pool="gone", labels={"karpenter.k8s.aws/ec2nodeclass": "gone-class"}
                )
            ],
            "node_classes": [{"metadata": {"name": "gone-class", "labels": {"gpu-fleet.io/cluster": "demo"}}}],
        },
        {
            "claims": [claim("c1", "time-slicing-4", pool="gone", nodeClassRef={"name": "gone-class"})],
            "node_classes": [{"metadata": {"name": "gone-class", "labels": {"gpu-fleet.io/cluster": "demo"}}}],
        },
        {"nodes": [thing("Node", "n1", "time-slicing-4", pool="gone", labels={"gpu-fleet.io/cluster": "demo"})]},
    ],
    ids=[
        "a NodeClaim that has not joined",
        "a NodePool that still has the old template",
        "the NodePool of a pool that the file no longer has",
        "a node of a pool that the file no longer has",
        "a node whose NodePool was deleted",
        "a claim whose NodePool was deleted",
        "a node with our label",
    ],
)
def test_what_is_ours_keeps_its_entry(seen: dict[str, Any]) -> None:
    assert "time-slicing-4" in found(demo_spec(nodePools__0__sharing=EIGHT), **seen).entries


def test_what_is_not_ours_keeps_nothing() -> None:
    others = {
        "nodes": [thing("Node", "n9", "time-slicing-4", pool="theirs")],
        "claims": [claim("c9", "mps-2", "n9", pool="theirs", nodeClassRef={"name": "theirs"})],
        "node_pools": [node_pool("theirs", "time-slicing-2", ours=False)],
    }
    assert found(**others) == InUse()


def test_old_taints_stay_tolerated_as_long_as_a_node_has_them() -> None:
    old = {"key": "team-a.example.com/gpu", "value": "x", "effect": "NoExecute"}
    spec = demo_spec()
    used = found(spec, claims=[claim("c1", "time-slicing-4", "n1", taints=[TAINT, old])])
    kept = helm_values(spec, "device-plugin", in_use=used)["tolerations"]
    assert kept == [
        *helm_values(spec, "device-plugin")["tolerations"],
        {"key": "team-a.example.com/gpu", "operator": "Exists", "effect": "NoExecute"},
    ]


GATE = {"key": "gpu-fleet.io/unproven", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    "seen",
    [
        {"nodes": [thing("Node", "n1", None, taints=[GATE])]},
        {"claims": [claim("c1", None, "n1", startupTaints=[GATE])], "nodes": [thing("Node", "n1", None)]},
    ],
    ids=["a node without a claim", "a claim"],
)
def test_after_a_gated_pool_was_opened_the_plugin_still_serves_its_closed_nodes(seen: dict[str, Any]) -> None:
    assert (GATE["key"], GATE["effect"]) in found(**seen).taints


def test_startup_taints_of_others_are_removed_by_what_they_wait_for() -> None:
    other = {"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute"}
    assert found(claims=[claim("c1", None, startupTaints=[other])]).taints == ()


def test_taints_that_people_and_controllers_put_on_a_node_are_not_the_templates() -> None:
    passing = [
        {"key": key, "effect": "NoSchedule"}
        for key in ("node.kubernetes.io/unschedulable", "karpenter.sh/disrupted", "gpu-fleet.io/quarantined")
    ]
    mine = {"key": "old", "effect": "NoSchedule"}
    with_claim = found(
        nodes=[thing("Node", "n1", "time-slicing-4", taints=[*passing, mine])],
        claims=[claim("c1", "time-slicing-4", "n1", taints=[TAINT])],
    )
    assert with_claim.taints == (("nvidia.com/gpu", "NoSchedule"),)
    without = found(nodes=[thing("Node", "n1", "time-slicing-4", taints=[*passing, mine])])
    assert without.taints == (("old", "NoSchedule"),)


def test_an_mps_node_keeps_the_daemon_that_sees_the_hosts_processes() -> None:
    used = found(nodes=[thing("Node", "n1", "mps-4")])
    assert helm_values(demo_spec(), "device-plugin", in_use=used)["mps"] == {"enableHostPID": True}
    assert needed_values(used)["mps"] == {"enableHostPID": True}


def test_an_entry_that_is_none_of_ours_is_named_and_not_invented() -> None:
    used = found(nodes=[thing("Node", "n1", "mig-mixed")])
    assert "mig-mixed" not in helm_values(demo_spec(), "device-plugin", in_use=used)["config"]["map"]
    (told,) = kept_sentences(demo_spec(), used)
    assert "node n1" in told
    assert "'mig-mixed'" in told
    assert ENTRY in told


def test_what_is_kept_is_said_with_its_holders() -> None:
    spec = demo_spec(nodePools__0__sharing=EIGHT)
    used = found(spec, nodes=[thing("Node", f"n{i}", "time-slicing-4") for i in range(7)])
    (told,) = kept_sentences(spec, used)
    assert told.startswith("config entry time-slicing-4 is kept, because node n0, node n1,")
    assert "and 2 more carry it" in told


def test_with_nothing_but_todays_templates_the_values_are_the_same() -> None:
    """Else the first look after an install would differ from it, and each run would upgrade."""
    spec = demo_spec()
    pools = [node_pool("shared-a10g", "time-slicing-4"), node_pool("whole-a100", "exclusive")]
    used = found(spec, node_pools=pools, nodes=[thing("Node", "n1", "time-slicing-4")])
    before, after = release_request(spec, "device-plugin"), release_request(spec, "device-plugin", in_use=used)
    assert before.digest == after.digest
    assert list(before.values["tolerations"]) == list(after.values["tolerations"])


def test_what_a_release_carries_beyond_todays_use_is_found_in_its_values() -> None:
    spec = demo_spec()
    old = found(claims=[claim("c1", "time-slicing-2", "n1", taints=[{"key": "old", "effect": "NoSchedule"}])])
    installed = release_request(spec, "device-plugin", in_use=old)
    unused = carried_by(installed.values)
    assert release_request(spec, "device-plugin", in_use=unused).digest == installed.digest
    assert release_request(spec, "device-plugin").digest != installed.digest


# --- roll-backs ------------------------------------------------------------------------------------------------------
def test_a_proven_revision_without_an_entry_in_use_is_found_out() -> None:
    proven = helm_values(demo_spec(), "device-plugin")
    used = found(nodes=[thing("Node", "n1", "time-slicing-8", taints=[{"key": "new", "effect": "NoSchedule"}])])
    assert lacking(proven, needed_values(used)) == (
        "config.map.time-slicing-8",
        "tolerations: new, Exists, NoSchedule",
    )
    assert lacking(proven, needed_values(found(nodes=[thing("Node", "n1", "time-slicing-4")]))) == ()


def test_a_proven_revision_that_selects_every_teams_gpu_nodes_is_found_out_and_narrowed() -> None:
    """From before the label of our own: rolled back to it, the plugin would take over the nodes of others."""
    proven = {**helm_values(demo_spec(), "device-plugin"), "nodeSelector": {"nvidia.com/gpu.present": "true"}}
    needed = needed_values(NOTHING_IN_USE)
    assert lacking(proven, needed) == ("nodeSelector.gpu-fleet.io/device-plugin",)
    assert with_needed(proven, needed)["nodeSelector"] == {
        "nvidia.com/gpu.present": "true",
        "gpu-fleet.io/device-plugin": "true",
    }


def test_what_lacks_is_added_and_what_was_proven_stays() -> None:
    proven = {
        "config": {"map": {"exclusive": "as it was"}, "default": "exclusive"},
        "tolerations": [1],
        "image": {"tag": "x"},
    }
    needed = {"config": {"map": {"exclusive": "new", "mps-2": "two"}}, "tolerations": [1, 2], "mps": {"a": True}}
    assert with_needed(proven, needed) == {
        "config": {"map": {"exclusive": "as it was", "mps-2": "two"}, "default": "exclusive"},
        "tolerations": [1, 2],
        "image": {"tag": "x"},
        "mps": {"a": True},
    }
    assert proven["tolerations"] == [1]
    assert lacking(with_needed(proven, needed), needed) == ()


def test_the_proven_chart_version_is_restored_with_what_is_in_use() -> None:
    broken = demo_spec(
        nodePools__0__sharing=EIGHT,
        devicePlugin__chart__version="0.99.0",
        devicePlugin__values={"image": {"tag": "no-such-tag"}},
    )
    used = found(broken, nodes=[thing("Node", "n1", "time-slicing-4"), thing("Node", "n2", "time-slicing-8")])
    wanted = release_request(broken, "device-plugin", in_use=used)
    proven = {
        "chart": {"metadata": {"name": "nvidia-device-plugin", "version": "0.20.0"}},
        "config": helm_values(demo_spec(), "device-plugin"),
    }
    restored = restored_request(wanted, proven)
    assert (restored.chart.version, restored.chart.repository) == ("0.20.0", wanted.chart.repository)
    assert sorted(restored.values["config"]["map"]) == ["exclusive", "time-slicing-4", "time-slicing-8"]
    assert "tag" not in restored.values.get("image", {})
