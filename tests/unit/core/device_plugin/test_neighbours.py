"""Who else would serve the GPUs of our pools: refused with remedies before anything is changed, or left alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gpu_fleet.core.device_plugin.findings import Seen, Survey
from gpu_fleet.core.device_plugin.neighbours import survey
from gpu_fleet.core.kubernetes.node_matching import place_of_pool, runs_on
from gpu_fleet.core.manifests.build import build
from tests.unit.core.neighbour_objects import config_map, daemon_set, ours, policy, slicing, static
from tests.unit.core.specs import demo_spec

POOLS = ("shared-a10g", "whole-a100")
NARROWED = {"nodeSelector": {"eks.amazonaws.com/nodegroup": "team-b"}}
THEIRS = {"devicePlugin__manage": False}
FOREIGN_POOL = {"nodePools__1__manage": False, "teardown__uninstallKarpenter": False}


def look(*sets: dict[str, Any], changes: dict[str, Any] | None = None, **seen: Any) -> Survey:
    return survey(demo_spec(**(changes or {})), Seen(daemon_sets=sets, **seen))


def reasons(found: Survey) -> list[str]:
    return [conflict.reason for conflict in found.conflicts]


# --- our plugin ------------------------------------------------------------------------------------------------------


def test_on_a_cluster_without_others_there_is_nothing_to_refuse() -> None:
    csi = daemon_set("ebs-csi-node", image="x/csi:1", mounts="/var/lib/kubelet", tolerations=[{"operator": "Exists"}])
    found = look(ours(), csi)
    assert found.conflicts == ()
    assert [str(item) for item in found.neighbours] == [
        "DaemonSet kube-system/ebs-csi-node (mounts a parent of the kubelet's device-plugin folder, image x/csi:1) "
        "reaches nodes of pool shared-a10g, whole-a100"
    ]


def test_nvidias_static_daemon_set_reaches_every_pool_and_is_refused_with_both_remedies() -> None:
    (conflict,) = look(ours(), static()).conflicts
    assert conflict.reason == "ForeignDevicePlugin"
    assert conflict.object == "DaemonSet kube-system/nvidia-device-plugin-daemonset"
    for words in (*POOLS, "devicePlugin.manage: false", "kubectl -n kube-system patch daemonset", "toleration"):
        assert words in conflict.message


@pytest.mark.parametrize("pod", [NARROWED, {"tolerations": []}], ids=["by its selector", "by its tolerations"])
def test_narrowed_it_may_stay(pod: dict[str, Any]) -> None:
    found = look(ours(), static(**pod))
    assert found.conflicts == ()
    assert "reaches none of our pools" in str(found.neighbours[0])


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"key": "nvidia.com/gpu.present", "operator": "Exists"},
    ],
    ids=["no affinity", "an affinity of its own"],
)
def test_the_remedy_as_it_is_printed_keeps_it_off_and_changes_nothing_else(before: dict[str, Any]) -> None:
    terms = (
        [{"matchExpressions": [before]}, {"matchExpressions": [{"key": "a", "operator": "Exists"}]}] if before else None
    )
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    plugin = static(**({"affinity": affinity} if terms else {}))
    (conflict,) = look(plugin).conflicts
    found = re.search(r"-p '(.*?)'", conflict.message)
    assert found is not None
    patched = plugin["spec"]["template"]["spec"] | json.loads(found[1])["spec"]["template"]["spec"]
    assert look(static(affinity=patched["affinity"])).conflicts == ()
    place = place_of_pool({"metadata": {"name": "of others"}, "spec": {"template": {"spec": {}}}}, "us-west-2")
    assert runs_on(patched, place).match == "yes"


def test_what_depends_on_a_label_that_nobody_knows_is_refused_and_says_so() -> None:
    (conflict,) = look(static(nodeSelector={"topology.kubernetes.io/zone": "us-west-2a"})).conflicts
    assert "depending on topology.kubernetes.io/zone" in conflict.message


def test_a_node_that_is_there_tells_what_its_template_does_not() -> None:
    labels = {"karpenter.sh/nodepool": "whole-a100", "team": "b", "nvidia.com/gpu.present": "true"}
    node = {"metadata": {"name": "n1", "labels": labels}, "spec": {}}
    plugin = static(nodeSelector={"team": "b"})
    assert look(plugin).conflicts == ()
    (conflict,) = look(plugin, nodes=[node]).conflicts
    assert "pool whole-a100" in conflict.message
    assert "shared-a10g" not in conflict.message


def test_nodes_of_an_earlier_version_count_as_labelled_since_the_install_labels_them_first() -> None:
    not_ours = {"key": "gpu-fleet.io/device-plugin", "operator": "DoesNotExist"}
    term = {"nodeSelectorTerms": [{"matchExpressions": [not_ours]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    node = {"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "whole-a100"}}, "spec": {}}
    assert look(static(affinity=affinity), nodes=[node]).conflicts == ()


def test_an_unknown_plugin_may_be_vouched_for() -> None:
    fuse = daemon_set("fuse", image="x/fuse:1")
    (conflict,) = look(fuse).conflicts
    assert "devicePlugin.coexistsWith: [kube-system/fuse]" in conflict.message
    assert look(fuse, changes={"devicePlugin__coexistsWith": ["kube-system/fuse"]}).conflicts == ()


def test_what_may_not_be_looked_at_is_unknown_and_refused() -> None:
    (conflict,) = look(unknown=[("all DaemonSets", "forbidden")]).conflicts
    assert conflict.reason == "NeighboursUnknown"
    assert "docs/reference/permissions.md" in conflict.message


# --- the GPU Operator and Auto Mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "refused"),
    [
        (policy(), True),
        (policy(devicePlugin={"enabled": True}), True),
        (policy(devicePlugin={"enabled": False}), False),
        (policy(daemonsets={"tolerations": [{"key": "other", "operator": "Exists"}]}), False),
        (policy("GPUCluster", "v1alpha1", draDriver={}), True),
        (policy("NVIDIADriver", "v1alpha1"), True),
        (policy("NVIDIADriver", "v1alpha1", nodeSelector={"team": "b"}), False),
    ],
)
def test_the_gpu_operator(item: dict[str, Any], refused: bool) -> None:
    found = look(operator=[item])
    assert reasons(found) == (["ForeignDevicePlugin"] if refused else [])
    assert found.neighbours[0].object == f"{item['kind']} policy"
    if refused:
        assert 'nvidia.com/gpu.deploy.operands: "false"' in found.conflicts[0].message


def test_the_gpu_operator_is_kept_off_by_its_label_on_our_pools() -> None:
    off = {"nvidia.com/gpu.deploy.operands": "false"}
    changes = {"nodePools__0__labels": off, "nodePools__1__labels": off}
    operand = daemon_set(
        "nvidia-device-plugin-daemonset",
        "gpu-operator",
        owner="ClusterPolicy",
        nodeSelector={"nvidia.com/gpu.deploy.device-plugin": "true"},
    )
    assert len(look(operand, operator=[policy()]).conflicts) == 2
    assert look(operand, operator=[policy()], changes=changes).conflicts == ()


def test_a_patch_that_the_operator_would_undo_is_not_proposed() -> None:
    (conflict,) = look(daemon_set("plugin", "gpu-operator", owner="ClusterPolicy")).conflicts
    assert "kubectl" not in conflict.message
    assert "nvidia.com/gpu.deploy.operands" in conflict.message


def auto_pool(**labels: str) -> dict[str, Any]:
    reference = {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "default"}
    template = {"metadata": {"labels": labels}, "spec": {"nodeClassRef": reference}}
    return {"metadata": {"name": "whole-a100"}, "spec": {"template": template}}


def test_eks_auto_mode_beside_our_pools_is_told_and_allowed() -> None:
    found = look(auto_mode=True)
    assert found.conflicts == ()
    assert str(found.neighbours[0]).startswith("EKS Auto Mode")


@pytest.mark.parametrize("auto_mode", [True, False])
def test_a_pool_of_eks_auto_mode_has_a_plugin_of_its_own(auto_mode: bool) -> None:
    pools = {"whole-a100": auto_pool(**{"gpu-fleet.io/device-plugin": "true"})}
    (conflict,) = look(auto_mode=auto_mode, node_pools=pools, changes=FOREIGN_POOL).conflicts
    assert (conflict.reason, conflict.object) == ("ForeignDevicePlugin", "EKS Auto Mode")


# --- pools of others -------------------------------------------------------------------------------------------------


def test_a_pool_of_others_that_our_plugin_is_to_serve_needs_our_label() -> None:
    pool = build("node_pool", demo_spec(), pool="whole-a100")[0]
    assert look(node_pools={"whole-a100": pool}, changes=FOREIGN_POOL).conflicts == ()
    del pool["spec"]["template"]["metadata"]["labels"]["gpu-fleet.io/device-plugin"]
    (conflict,) = look(node_pools={"whole-a100": pool}, changes=FOREIGN_POOL).conflicts
    assert conflict.reason == "PoolWithoutLabel"
    assert "gpu-fleet.io/device-plugin=true" in conflict.message
    assert reasons(look(static(), node_pools={"whole-a100": pool}, changes={**FOREIGN_POOL, **THEIRS}))[:1] == [
        "SharingNotConfigured"
    ]


def test_of_a_pool_of_others_that_does_not_exist_nothing_is_said() -> None:
    assert look(changes=FOREIGN_POOL).conflicts == ()


# --- the plugin is theirs --------------------------------------------------------------------------------------------


def theirs(**more: Any) -> dict[str, Any]:
    return daemon_set("plugin", "team-b", config_map="configs", managed=True, default="exclusive", **more)


def test_somebody_has_to_serve_every_pool() -> None:
    found = look(static(**NARROWED), changes=THEIRS)
    assert reasons(found) == ["NoDevicePlugin", "NoDevicePlugin"]
    assert "paid for" in found.conflicts[0].message


def test_a_plugin_of_others_that_waits_for_the_proof_would_wait_for_ever() -> None:
    """It does not tolerate the startup taint of a gated pool, whose nodes are proven only once it runs there."""
    gated = {**THEIRS, "nodePools__0__admission": "gated"}
    plugin = static()
    assert [each for each in reasons(look(plugin, changes=gated)) if each == "NoDevicePlugin"] == ["NoDevicePlugin"]
    (message,) = [each.message for each in look(plugin, changes=gated).conflicts if "startup taint" in each.message]
    assert "gpu-fleet.io/unproven" in message
    tolerations = [
        *plugin["spec"]["template"]["spec"]["tolerations"],
        {"key": "gpu-fleet.io/unproven", "operator": "Exists"},
    ]
    tolerant = static(tolerations=tolerations)
    assert not [each for each in look(tolerant, changes=gated).conflicts if "startup taint" in each.message]


def test_bottlerocket_brings_its_own_and_the_operator_makes_its_daemon_set_with_the_first_node() -> None:
    assert look(changes={**THEIRS, "nodeClass__amiAlias": "bottlerocket@1.30.0"}).conflicts == ()
    assert look(operator=[policy()], changes=THEIRS).conflicts == ()
    assert "NoDevicePlugin" in reasons(look(operator=[policy("GPUCluster", "v1alpha1")], changes=THEIRS))


def test_theirs_on_bottlerocket_is_one_too_many() -> None:
    bottlerocket = {**THEIRS, "nodeClass__amiAlias": "bottlerocket@1.60.0"}
    found = look(static(), changes=bottlerocket)
    assert "SecondDevicePlugin" in reasons(found)
    assert "whose AMI (Bottlerocket) has a device plugin of its own" in found.conflicts[0].message


def test_two_of_theirs_fight_all_the_same() -> None:
    exclusive = {"nodePools__0__sharing": {"mode": "exclusive"}}
    found = look(static(), daemon_set("other", "team-b"), changes={**THEIRS, **exclusive})
    assert reasons(found) == ["SecondDevicePlugin", "SecondDevicePlugin"]
    apart = daemon_set("other", "team-b", nodeSelector={"karpenter.sh/nodepool": "whole-a100"})
    only_shared = static(nodeSelector={"karpenter.sh/nodepool": "shared-a10g"})
    assert look(only_shared, apart, changes={**THEIRS, **exclusive}).conflicts == ()


def test_the_static_one_serves_whole_gpus_and_cannot_share() -> None:
    found = look(static(), changes=THEIRS)
    assert [(c.reason, "shared-a10g" in c.message) for c in found.conflicts] == [("SharingNotConfigured", True)]
    assert "replicas: 4" in found.conflicts[0].message
    assert look(static(), changes={**THEIRS, "nodePools__0__sharing": {"mode": "exclusive"}}).conflicts == ()


@pytest.mark.parametrize(
    ("entries", "reason", "words"),
    [
        ({"exclusive": "version: v1", "time_slicing_4": slicing(4)}, None, ""),
        ({"exclusive": "version: v1", "time_slicing_4": slicing(8)}, "ConfigEntryDiffers", "time-slicing, 8 per GPU"),
        ({"exclusive": "version: v1", "time_slicing_4": "version: v1"}, "ConfigEntryDiffers", "exclusive GPUs"),
        (
            {"exclusive": "version: v1", "time_slicing_4": slicing(4, refuse=False)},
            "ConfigEntryDiffers",
            "requests for several allowed",
        ),
        (
            {"exclusive": "version: v1", "time_slicing_4": slicing(4, renameByDefault=True)},
            "ConfigEntryDiffers",
            "another name",
        ),
        (
            {"exclusive": "version: v1", "time_slicing_4": slicing(4, name="nvidia.com/mig-1g.5gb")},
            "ConfigEntryDiffers",
            "exclusive GPUs",
        ),
        ({"exclusive": "version: v1", "time_slicing_4": "["}, "ConfigEntryDiffers", "cannot be read"),
        ({"exclusive": "version: v1"}, "ConfigEntryMissing", "would crash"),
    ],
)
def test_sharing_by_their_config_map_is_checked(entries: dict[str, str], reason: str | None, words: str) -> None:
    maps = {"team-b/configs": config_map(**entries)}
    found = look(theirs(), config_maps=maps, changes=THEIRS)
    assert reasons(found) == ([reason] if reason else [])
    if reason:
        message = found.conflicts[0].message
        assert words in message
        assert "ConfigMap team-b/configs" in message
        assert "DaemonSet team-b/plugin" in message
        assert "replicas: 4" in message  # what to write instead


def test_an_entry_of_their_naming_is_named_in_the_pools_labels() -> None:
    maps = {"team-b/configs": config_map(exclusive="version: v1", four=slicing(4))}
    label = {"nodePools__0__labels": {"nvidia.com/device-plugin.config": "four"}}
    assert look(theirs(), config_maps=maps, changes={**THEIRS, **label}).conflicts == ()
    made = build("node_pool", demo_spec(**THEIRS, **label), pool="shared-a10g")[0]
    assert made["spec"]["template"]["metadata"]["labels"]["nvidia.com/device-plugin.config"] == "four"


def test_a_config_map_that_is_gone_or_may_not_be_read() -> None:
    assert set(reasons(look(theirs(), config_maps={"team-b/configs": None}, changes=THEIRS))) == {"ConfigEntryMissing"}
    unknown = [("ConfigMap team-b/configs", "forbidden")]
    found = look(theirs(), config_maps={"team-b/configs": None}, unknown=unknown, changes=THEIRS)
    assert reasons(found) == ["NeighboursUnknown"]
