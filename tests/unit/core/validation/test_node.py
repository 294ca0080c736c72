"""What is wrong with a node before anything runs on it: every defect its own reason, a healthy node none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.device_plugin.causes import plugin_daemon_set
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.spec.components import DevicePlugin
from gpu_fleet.core.validation.facts import Looked, Promise, node_facts
from gpu_fleet.core.validation.judge import unfit_node
from gpu_fleet.core.validation.node import NODE_RULES, look_at_node
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core.cluster_objects import NOW, claim, node, plugin_pod, stamp
from tests.unit.core.probe_objects import NODE
from tests.unit.core.specs import demo_spec

LABELS = {
    "gpu-fleet.io/device-plugin": "true",
    "nvidia.com/gpu.present": "true",
    "nvidia.com/device-plugin.config": "time-slicing-4",
}
MPS = {"mode": "mps", "replicas": 4}
MPS_LABELS = LABELS | {"nvidia.com/device-plugin.config": "mps-4", "nvidia.com/mps.capable": "true"}
DAEMON = "nvidia-device-plugin-mps-control-daemon"
#: The plugin's pod before and after the GPUs were registered.
OLD, RESTARTED = plugin_pod(NODE, serving_for=700, age=700), plugin_pod(NODE, serving_for=20, age=20)


def item(gpus: int | None = 4, capacity: int | None = None, **changes: Any) -> dict[str, Any]:
    """A healthy node of the demo's shared pool, with changes."""
    labels = changes.pop("labels", LABELS)
    taints = changes.pop("taints", None)
    condition, status = changes.pop("condition", None), changes.pop("hardware", "False")
    found = node(NODE, gpus=gpus, **changes)
    found["metadata"]["labels"] |= labels
    if taints is not None:
        found["spec"]["taints"] = taints
    held = gpus if capacity is None else capacity
    found["status"]["capacity"] = {} if held is None else {"nvidia.com/gpu": str(held)}
    if condition:
        found["status"]["conditions"].append(
            {"type": "AcceleratedHardwareReady", "status": status, "reason": condition, "message": "see dmesg"}
        )
    return found


def looked(
    there: dict[str, Any] | None,
    pods: list[dict[str, Any]] | None = None,
    *,
    physical: int = 1,
    replicas: int = 4,
    runtime_class: bool = True,
    registered: float | None = 600.0,
    **changes: Any,
) -> Looked:
    """
    :param registered: seconds since Karpenter saw the GPUs.
    """
    spec = demo_spec(**changes)
    claims = [claim(node_name=NODE, since=registered)] if registered is not None else []
    facts = node_facts(NODE, there, pods=[OLD] if pods is None else pods, runtime_class=runtime_class, claims=claims)
    return Looked(facts, Promise.of(spec, spec.node_pools[0]), physical, replicas)


def mps(pods: list[dict[str, Any]]) -> Looked:
    return looked(item(labels=MPS_LABELS), pods, nodePools__0__sharing=MPS)


def whole(gpus: int, capacity: int | None = None) -> Looked:
    labels = LABELS | {"nvidia.com/device-plugin.config": "exclusive"}
    sharing = {"mode": "exclusive"}
    return looked(item(gpus, capacity, labels=labels), physical=8, replicas=1, nodePools__0__sharing=sharing)


def shared(gpus: int, physical: int, replicas: int, capacity: int | None = None) -> Looked:
    labels = LABELS | {"nvidia.com/device-plugin.config": f"time-slicing-{replicas}"}
    sharing = {"mode": "timeSlicing", "replicas": replicas}
    found = item(gpus, capacity, labels=labels)
    return looked(found, physical=physical, replicas=replicas, nodePools__0__sharing=sharing)


#: situation -> evidence, check, reason
DEFECTS: dict[str, tuple[Looked, str, str]] = {
    "gone": (looked(None), "node", "NodeVanished"),
    "being deleted": (looked(item(deleting=True)), "node", "NodeVanished"),
    "not Ready": (looked(item(ready=False)), "node", "NodeNotReady"),
    "RuntimeClass deleted": (looked(item(), runtime_class=False), "runtimeClass", "RuntimeClassMissing"),
    "label of the plugin missing, and so the plugin": (looked(item(None, labels={}), []), "labels", "LabelMissing"),
    "label of another config": (
        looked(item(1, labels=LABELS | {"nvidia.com/device-plugin.config": "exclusive"})),
        "labels",
        "LabelMissing",
    ),
    "taint missing": (looked(item(taints=[])), "taints", "TaintMissing"),
    "taint of another effect": (
        looked(item(taints=[{"key": "nvidia.com/gpu", "value": "true", "effect": "PreferNoSchedule"}])),
        "taints",
        "TaintMissing",
    ),
    "XID that took the GPU away": (looked(item(3, 4, condition="NvidiaXID79Error")), "hardware", "XidError"),
    "XID and no plugin": (looked(item(None, condition="NvidiaXID48Error"), []), "hardware", "XidError"),
    "driver lists fewer GPUs": (looked(item(condition="NvidiaDeviceCountMismatch")), "hardware", "GpuLost"),
    "other fault of the hardware": (looked(item(condition="NvidiaNVLinkError")), "hardware", "HardwareNotReady"),
    "no MPS daemon": (mps([OLD]), "mpsDaemon", "MpsDaemonAbsent"),
    "MPS daemon in a crash loop": (
        mps([OLD, plugin_pod(NODE, owner=DAEMON, waiting=("CrashLoopBackOff", "back-off"))]),
        "mpsDaemon",
        "MpsDaemonAbsent",
    ),
    "never registered": (looked(item(None), registered=None), "plugin", "DevicePluginNotRegistered"),
    "never registered, no plugin": (looked(item(None), [], registered=None), "plugin", "DevicePluginNotRegistered"),
    "plugin gone": (looked(item(0, 4), []), "plugin", "DevicePluginNotRegistered"),
    "plugin in a crash loop": (
        looked(item(0, 4), [plugin_pod(NODE, waiting=("CrashLoopBackOff", "no GPU"))]),
        "plugin",
        "DevicePluginNotRegistered",
    ),
    "plugin came back and never registered": (looked(item(0, 4), [RESTARTED]), "plugin", "DevicePluginNotRegistered"),
    "plugin gone, its GPUs still offered": (looked(item(), []), "plugin", "DevicePluginNotReady"),
    "plugin not Ready": (looked(item(), [plugin_pod(NODE, ready=False)]), "plugin", "DevicePluginNotReady"),
    "only the MPS daemon's pod": (
        looked(item(0), [plugin_pod(NODE, owner=DAEMON)]),
        "plugin",
        "DevicePluginNotRegistered",
    ),
    "the one GPU lost": (looked(item(0, 4)), "allocatable", "GpuLost"),
    "one share unhealthy": (looked(item(3, 4)), "allocatable", "GpuLost"),
    "one of eight GPUs unhealthy": (whole(7, 8), "allocatable", "GpuLost"),
    "one of eight GPUs gone before the plugin started": (whole(7), "allocatable", "GpuLost"),
    "one of four shared GPUs gone before the plugin started": (shared(6, 4, 2), "allocatable", "GpuLost"),
    "no sharing block": (looked(item(1)), "allocatable", "SharingNotApplied"),
    "no sharing block on eight GPUs": (shared(8, 8, 2), "allocatable", "SharingNotApplied"),
    "fewer replicas": (looked(item(2)), "allocatable", "AllocatableMismatch"),
    "more replicas": (looked(item(8)), "allocatable", "AllocatableMismatch"),
    "whole GPUs shared after all": (whole(16), "allocatable", "AllocatableMismatch"),
    "three replicas instead of four on two GPUs": (shared(6, 2, 4), "allocatable", "AllocatableMismatch"),
}  # fmt: skip


@pytest.mark.parametrize("situation", DEFECTS)
def test_a_defect_has_its_own_reason_and_what_rests_on_it_is_left_out(situation: str) -> None:
    evidence, name, reason = DEFECTS[situation]
    checks = look_at_node(evidence)
    assert [(check.name, check.reason) for check in checks if check.outcome is Outcome.FAILED] == [(name, reason)]
    assert [check.name for check in checks] == [rule for rule, _ in NODE_RULES]
    after = checks[[check.name for check in checks].index(name) + 1 :]
    assert {check.reason for check in after} <= {"NotReached"}
    failure = next(check for check in checks if check.outcome is Outcome.FAILED)
    assert NODE in failure.message or reason == "RuntimeClassMissing"


@pytest.mark.parametrize("situation", DEFECTS)
def test_a_node_with_a_defect_is_not_probed_at_all(situation: str) -> None:
    report = unfit_node(Probe.SHARING, DEFECTS[situation][0])
    assert report is not None
    assert report.outcome is Outcome.FAILED
    assert report.cause is not None
    assert report.cause.reason == DEFECTS[situation][2]
    assert {"room", "concurrency", "bound"} <= {check.name for check in report.checks}


HEALTHY: dict[str, Looked] = {
    "time-sliced": looked(item()),
    "whole GPUs": whole(8),
    "MPS": mps([OLD, plugin_pod(NODE, owner=DAEMON)]),
    "eight GPUs shared by two": shared(16, 8, 2),
    "more taints and labels than promised": looked(item(labels=LABELS | {"team": "a"})),
    "quarantined and cordoned": looked(item(cordoned=True)),
    "agent content": looked(item(condition="Ready", hardware="True")),
    "agent that does not know": looked(item(condition="Starting", hardware="Unknown")),
    "plugin restarted and registered again": looked(item(), [RESTARTED]),
    "plugin of others, somewhere": looked(item(), [], devicePlugin__manage=False),
    "pool of others": looked(
        item(labels={}, taints=[]), nodePools__0__manage=False, teardown__uninstallKarpenter=False
    ),
    "another node's plugin in trouble": looked(item(), [OLD, plugin_pod("other", waiting=("CrashLoopBackOff", ""))]),
    "old pod of a rolling update still there": looked(item(), [plugin_pod(NODE, ready=False, age=900), OLD]),
}  # fmt: skip


@pytest.mark.parametrize("situation", HEALTHY)
def test_a_healthy_node_raises_no_alarm(situation: str) -> None:
    assert [c for c in look_at_node(HEALTHY[situation]) if not c.holds] == [], situation
    assert unfit_node(Probe.SHARING, HEALTHY[situation]) is None


def test_the_message_about_a_plugin_says_whether_it_is_there() -> None:
    messages = {
        situation: next(c.message for c in look_at_node(DEFECTS[situation][0]) if c.outcome is Outcome.FAILED)
        for situation in ("never registered", "plugin gone", "plugin in a crash loop")
    }
    assert "device-plugin pod nvidia-device-plugin-x7k2p is Ready" in messages["never registered"]
    assert "no device-plugin pod" in messages["plugin gone"]
    assert "CrashLoopBackOff no GPU" in messages["plugin in a crash loop"]


def test_the_xids_code_is_kept() -> None:
    check = next(c for c in look_at_node(DEFECTS["XID that took the GPU away"][0]) if c.reason == "XidError")
    assert check.figures["xid"] == 79


def test_a_plugins_start_is_its_newest_containers() -> None:
    pod = plugin_pod(NODE)
    pod["status"]["containerStatuses"].append({"name": "two", "state": {"running": {"startedAt": stamp(NOW - 5)}}})
    facts = node_facts(NODE, item(), pods=[pod], runtime_class=True)
    assert facts.plugin is not None
    assert facts.plugin.started == NOW - 5


@pytest.mark.parametrize("junk", [{}, {"status": None}, {"spec": {"taints": None}}, {"status": {"conditions": [{}]}}])
def test_nodes_without_anything_fail_and_never_crash(junk: dict[str, Any]) -> None:
    facts = node_facts(NODE, {"metadata": {}, **junk}, pods=[{}, {"metadata": None}], runtime_class=True)
    checks = look_at_node(replace(looked(None), facts=facts))
    assert [check.reason for check in checks if check.outcome is Outcome.FAILED] == ["NodeNotReady"]


def test_what_hits_every_node_alike_is_no_nodes_fault() -> None:
    lie_in_the_node = {reason for _, _, reason in DEFECTS.values()} - {"NodeVanished", "RuntimeClassMissing"}
    assert lie_in_the_node <= NODE_CAUSES
    assert NODE_CAUSES.isdisjoint({"RuntimeClassMissing", "ImageUnpullable", "NodeVanished", "Busy", "NodeClaimsLost"})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "nvidia-device-plugin"),
        ({"values": {"nameOverride": "gpu"}}, "nvidia-device-plugin-gpu"),
        ({"values": {"nameOverride": "plugin"}}, "nvidia-device-plugin"),
        ({"values": {"fullnameOverride": "mine"}}, "mine"),
        ({"manage": False}, ""),
    ],
)
def test_the_plugins_daemon_set_is_called_as_the_chart_calls_it(changes: dict[str, Any], name: str) -> None:
    assert plugin_daemon_set(DevicePlugin(**changes)) == name


def test_a_stranger_in_the_plugins_namespace_is_not_the_plugin() -> None:
    """Not even if it is newer, and crashes."""
    stranger = plugin_pod(NODE, ready=False, waiting=("CrashLoopBackOff", ""), age=1.0, owner="dcgm-exporter")
    pods = [plugin_pod(NODE), stranger]
    pods[0]["metadata"]["name"] = "plugin"
    facts = node_facts(NODE, node(NODE), pods=pods, runtime_class=True, daemon_set="nvidia-device-plugin")
    assert facts.plugin is not None
    assert (facts.plugin.name, facts.plugin.trouble) == ("plugin", "")
    assert node_facts(NODE, node(NODE), pods=[stranger], runtime_class=True, daemon_set="mine").plugin is None


# --- nodes whose AMI brings the plugin -------------------------------------------------------------------------------

BUILT_IN = LABELS | {"gpu-fleet.io/device-plugin": "built-in"}
BOTTLEROCKET = {"nodePools__0__amiAlias": "bottlerocket@1.60.0"}


def test_bottlerocket_needs_no_plugin_pod() -> None:
    checks = {check.name: check for check in look_at_node(looked(item(labels=BUILT_IN), [], **BOTTLEROCKET))}
    assert all(check.holds for check in checks.values()), checks
    assert checks["plugin"].reason == "NotOurs"
    assert "part of the AMI" in checks["plugin"].message


def test_on_bottlerocket_another_sharing_is_blamed_on_the_user_data() -> None:
    checks = look_at_node(looked(item(1, labels=BUILT_IN), [], **BOTTLEROCKET))
    failing = next(check for check in checks if not check.holds)
    assert (failing.name, failing.reason) == ("allocatable", "SharingNotApplied")
    assert "userData" in failing.message
