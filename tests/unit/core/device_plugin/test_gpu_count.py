"""The same node before the capacity gate, the proof and validation: one answer, from capacity and allocatable."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.gpu_count import ENDPOINT_GRACE_S, HARDWARE_REASONS, Cause, count, vouched_for
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.validation.facts import Looked, Promise, node_facts
from gpu_fleet.core.validation.node import look_at_node
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core import cluster_objects as objects
from tests.unit.core.cluster_objects import NOW, POOL, claim, plugin_pod, stamp
from tests.unit.core.specs import demo_spec

N1, N2 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2))
NAMESPACE = "nvidia-device-plugin"
DAEMON = "nvidia-device-plugin-mps-control-daemon"
CRASHING = ("CrashLoopBackOff", "back-off 5m0s restarting failed container")


def entry_of(mode: str, replicas: int) -> str:
    return {"exclusive": "exclusive", "mps": f"mps-{replicas}"}.get(mode, f"time-slicing-{replicas}")


def spec_of(mode: str, replicas: int) -> ClusterSpec:
    sharing = {"mode": mode} if mode == "exclusive" else {"mode": mode, "replicas": replicas}
    return demo_spec(nodePools__0__sharing=sharing)


def node(
    name: str, allocatable: int | None, capacity: int | None, *, entry: str, fault: str = "", **changes: Any
) -> dict[str, Any]:
    found = objects.node(name, gpus=allocatable, **changes)
    found["metadata"]["labels"] |= {
        "gpu-fleet.io/device-plugin": "true",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/device-plugin.config": entry,
        **({"nvidia.com/mps.capable": "true"} if entry.startswith("mps-") else {}),
    }
    found["status"]["capacity"] = {} if capacity is None else {"nvidia.com/gpu": str(capacity)}
    if fault:
        found["status"]["conditions"].append(
            {"type": "AcceleratedHardwareReady", "status": "False", "reason": fault, "message": "see dmesg"}
        )
    return found


def by_capacity(
    *nodes: dict[str, Any], pods: list[dict[str, Any]], physical: int, replicas: int, wanted: int = 1, **more: Any
) -> Verdict:
    gate = gate_named("pool_capacity")
    args = {"pool": POOL, "wanted": wanted, "physical": physical, "replicas": replicas, "now": NOW}
    args |= {"started": NOW - 100, "plugin_daemon_set": "nvidia-device-plugin"}
    snapshot: dict[str, Any] = {query.key: [] for query in gate.queries(args)}
    claims = [claim(f"c{i}", node_name=item["metadata"]["name"], since=590) for i, item in enumerate(nodes)]
    snapshot |= {"nodes": list(nodes), "plugin_pods": pods, "claims": claims, **more}
    return gate.judge(snapshot, args)


def by_proof(*nodes: dict[str, Any], pods: list[dict[str, Any]], physical: int, replicas: int, **more: Any) -> Verdict:
    gate = gate_named("device_plugin_proven")
    args = {"release": "nvidia-device-plugin", "namespace": NAMESPACE, "now": NOW, "started": NOW - 100, **more}
    args |= {"pools": {POOL: {"physical": physical, "replicas": replicas}}}
    snapshot: dict[str, Any] = {query.key: [] for query in gate.queries(args)}
    owner = {"kind": "DaemonSet", "name": "nvidia-device-plugin", "uid": "uid-plugin"}
    for pod in pods:
        pod["metadata"]["labels"] = {"controller-revision-hash": "new"}
        if pod["metadata"]["ownerReferences"][0]["name"] == "nvidia-device-plugin":
            pod["metadata"]["ownerReferences"] = [owner]
    helm = {"meta.helm.sh/release-name": "nvidia-device-plugin", "meta.helm.sh/release-namespace": NAMESPACE}
    mine = [pod for pod in pods if pod["metadata"]["ownerReferences"] == [owner]]
    up = sum(pod["status"]["conditions"][0]["status"] == "True" for pod in mine)
    snapshot |= {
        "nodes": list(nodes),
        "claims": [claim(f"c{i}", node_name=n["metadata"]["name"], since=590) for i, n in enumerate(nodes)],
        f"pods/{NAMESPACE}": pods,
        f"daemonsets/{NAMESPACE}": [
            {
                "kind": "DaemonSet",
                "metadata": {
                    "name": "nvidia-device-plugin", "namespace": NAMESPACE, "uid": "uid-plugin", "generation": 1,
                    "labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": helm,
                },
                "spec": {},
                "status": {
                    "observedGeneration": 1, "desiredNumberScheduled": len(mine), "updatedNumberScheduled": len(mine),
                    "numberAvailable": up,
                },
            }
        ],
        f"controllerrevisions/{NAMESPACE}": [
            {
                "kind": "ControllerRevision", "revision": 1,
                "metadata": {"name": "r", "labels": {"controller-revision-hash": "new"}, "ownerReferences": [owner]},
            }
        ],
    }  # fmt: skip
    return gate.judge(snapshot, args)


def by_validation(
    item: dict[str, Any], *, pods: list[dict[str, Any]], mode: str, physical: int, replicas: int
) -> str | None:
    spec = spec_of(mode, replicas)
    facts = node_facts(
        item["metadata"]["name"], item, pods=pods, runtime_class=True,
        claims=[claim(node_name=item["metadata"]["name"], since=590)],
    )  # fmt: skip
    checks = look_at_node(Looked(facts, Promise.of(spec, spec.node_pools[0]), physical, replicas))
    return next((check.reason for check in checks if check.outcome.value == "Failed"), None)


#: situation -> (mode, physical, replicas, allocatable, capacity, condition's reason), what all three have to say
SITUATIONS: dict[str, tuple[tuple[str, int, int, int, int, str], str | None]] = {
    "as promised": (("exclusive", 8, 1, 8, 8, ""), None),
    "one of eight GPUs lost to an XID": (("exclusive", 8, 1, 7, 8, ""), "GpuLost"),
    "the same, with the agent that says so": (("exclusive", 8, 1, 7, 8, "NvidiaXID79Error"), "XidError"),
    "a fault that costs no device": (("exclusive", 8, 1, 8, 8, "NvidiaNVLinkError"), "HardwareNotReady"),
    "lost before the plugin started": (("exclusive", 8, 1, 7, 7, ""), "GpuLost"),
    "one share of a shared GPU is unhealthy": (("timeSlicing", 1, 4, 3, 4, ""), "GpuLost"),
    "the only GPU is lost": (("timeSlicing", 1, 4, 0, 4, ""), "GpuLost"),
    "not shared": (("timeSlicing", 1, 4, 1, 1, ""), "SharingNotApplied"),
    "not shared, and a GPU is lost": (("timeSlicing", 4, 4, 3, 4, ""), "SharingNotApplied"),
    "another number of replicas": (("timeSlicing", 1, 4, 2, 2, ""), "AllocatableMismatch"),
    "another number of replicas, one unhealthy": (("timeSlicing", 1, 4, 7, 8, ""), "AllocatableMismatch"),
    "shared although exclusive": (("exclusive", 8, 1, 16, 16, ""), "AllocatableMismatch"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_capacity_proof_and_validation_give_one_answer(situation: str) -> None:
    (mode, physical, replicas, allocatable, capacity, fault), reason = SITUATIONS[situation]
    item = node(N1, allocatable, capacity, entry=entry_of(mode, replicas), fault=fault)
    plugin = plugin_pod(N1, serving_for=600, age=600)
    numbers = {"physical": physical, "replicas": replicas}
    assert by_validation(item, pods=[plugin], mode=mode, **numbers) == reason
    verdicts = [by_capacity(item, pods=[plugin], **numbers), by_proof(item, pods=[plugin], **numbers)]
    if reason is None:
        assert all(verdict.ready for verdict in verdicts), verdicts
    else:
        assert [(verdict.phase, verdict.reason) for verdict in verdicts] == [(Phase.FAILED, reason)] * 2, verdicts
        assert all(N1 in verdict.message for verdict in verdicts)


def test_a_reason_of_the_hardware_is_one_that_lies_in_the_node() -> None:
    assert HARDWARE_REASONS <= NODE_CAUSES


BROKEN = {
    "one GPU lost": (7, 8, ""),
    "all GPUs there, the agent reports an XID": (8, 8, "NvidiaXID48Error"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_hardware_never_condemns_the_release(fault: str) -> None:
    """The remediation asks with ``allow_unproven``; Ready means that there is nothing to roll back."""
    allocatable, capacity, condition = BROKEN[fault]
    item = node(N1, allocatable, capacity, entry="exclusive", fault=condition)
    verdict = by_proof(item, pods=[plugin_pod(N1)], physical=8, replicas=1, allow_unproven=True)
    assert verdict.ready
    assert verdict.data == {"unproven": True}
    assert verdict.reason in HARDWARE_REASONS


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_node_does_not_outvote_one_that_proves(fault: str) -> None:
    allocatable, capacity, condition = BROKEN[fault]
    bad, good = node(N1, allocatable, capacity, entry="exclusive", fault=condition), node(N2, 8, 8, entry="exclusive")
    verdict = by_proof(bad, good, pods=[plugin_pod(N1), plugin_pod(N2)], physical=8, replicas=1)
    assert (verdict.reason, verdict.data) == ("PluginProven", {"nodes": [N2]})
    assert f"not counted: node {N1}" in verdict.message


def test_a_broken_node_does_not_make_a_rollback_fail_even_if_the_plugin_crashes_there() -> None:
    bad = node(N1, None, None, entry="exclusive", fault="NvidiaXID79Error")
    good = node(N2, 8, 8, entry="exclusive")
    pods = [plugin_pod(N1, waiting=CRASHING, restarts=9), plugin_pod(N2)]
    verdict = by_proof(bad, good, pods=pods, physical=8, replicas=1, every_node=True, allow_unproven=True)
    assert (verdict.reason, verdict.ready) == ("PluginProven", True), verdict
    assert N1 in verdict.message
    alone = by_proof(bad, pods=pods[:1], physical=8, replicas=1, every_node=True, allow_unproven=True)
    assert (alone.ready, alone.data) == (True, {"unproven": True})


def test_of_two_nodes_of_one_kind_the_one_that_works_is_believed() -> None:
    """Three quarters of four GPUs with four replicas are as many as four GPUs with three: arithmetic alone is mute."""
    bad, good = (node(name, gpus, gpus, entry="time-slicing-4") for name, gpus in ((N1, 12), (N2, 16)))
    verdict = by_proof(bad, good, pods=[plugin_pod(N1), plugin_pod(N2)], physical=4, replicas=4)
    assert verdict.ready
    assert f"node {N1} runs" in verdict.message.partition("not counted")[2]
    alone = by_proof(bad, pods=[plugin_pod(N1)], physical=4, replicas=4)
    assert (alone.phase, alone.reason) == (Phase.FAILED, "AllocatableMismatch")


def test_a_node_with_another_entry_refutes_nothing() -> None:
    bad, other = node(N1, 12, 12, entry="time-slicing-4"), node(N2, 4, 4, entry="exclusive")
    verdict = by_proof(bad, other, pods=[plugin_pod(N1), plugin_pod(N2)], physical=4, replicas=4)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "AllocatableMismatch")


def test_a_node_that_has_been_away_for_long_condemns_no_release() -> None:
    away = node(N1, 8, 8, entry="exclusive", ready=False)
    pods = [plugin_pod(N1, ready=False)]
    asked = by_proof(away, pods=pods, physical=8, replicas=1, allow_unproven=True)
    assert (asked.ready, asked.reason) == (True, "NodeNotReady")
    assert by_proof(away, pods=pods, physical=8, replicas=1).phase is Phase.PROGRESSING
    rebooting = node(N1, 8, 8, entry="exclusive", ready=False, ready_for=20)
    young = by_proof(rebooting, pods=pods, physical=8, replicas=1, allow_unproven=True)
    assert young.phase is Phase.PROGRESSING


def test_a_broken_node_does_not_fail_a_pool_while_another_one_is_on_its_way() -> None:
    bad = node(N1, 7, 8, entry="exclusive")
    arriving = [claim("a", node_name=N1, since=590), claim("b", node_name="", waiting=("Launched", "Waiting", ""))]
    verdict = by_capacity(bad, pods=[plugin_pod(N1)], physical=8, replicas=1, claims=arriving)
    assert verdict.phase is Phase.PROGRESSING
    assert "not counted" in verdict.message
    assert by_capacity(bad, pods=[plugin_pod(N1)], physical=8, replicas=1).reason == "GpuLost"


def test_a_pool_that_has_what_it_wants_is_not_condemned_by_a_broken_node() -> None:
    bad, good = node(N1, 7, 8, entry="exclusive"), node(N2, 8, 8, entry="exclusive")
    verdict = by_capacity(bad, good, pods=[plugin_pod(N1), plugin_pod(N2)], physical=8, replicas=1)
    assert verdict.ready
    assert "beyond the 1 wanted" in verdict.message


# --- what a plugin that has gone leaves behind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving_for", "registered_ago", "reason"),
    [(600, 590, "GpuLost"), (60, 590, "DevicePluginNotRegistering"), (ENDPOINT_GRACE_S + 1, 590, "GpuLost")],
    ids=["it has served since", "it came back", "it came back longer ago than the kubelet remembers"],
)
def test_no_healthy_device_is_the_plugins_word_or_what_a_gone_one_left(
    serving_for: float, registered_ago: float, reason: str
) -> None:
    item = node(N1, 0, 4, entry="time-slicing-4")
    plugin = plugin_pod(N1, serving_for=serving_for, age=serving_for)
    assert by_proof(item, pods=[plugin], physical=1, replicas=4).reason == reason


@pytest.mark.parametrize(
    ("started", "initialized", "now", "vouched"),
    [
        (None, 100.0, 1000.0, False), (90.0, 100.0, None, True), (110.0, 100.0, None, False),
        (110.0, 100.0, 120.0, False), (110.0, None, 110.0 + ENDPOINT_GRACE_S, True), (110.0, None, None, False),
    ],
)  # fmt: skip
def test_whose_word_it_is(started: float | None, initialized: float | None, now: float | None, vouched: bool) -> None:
    assert vouched_for(started, initialized, now) is vouched


@pytest.mark.parametrize("allocatable", range(20))
@pytest.mark.parametrize("unhealthy", range(5))
@pytest.mark.parametrize(("physical", "replicas"), [(1, 1), (1, 4), (4, 4), (8, 1), (8, 2)])
def test_the_rule_is_total(allocatable: int, unhealthy: int, physical: int, replicas: int) -> None:
    found = count(
        "n", allocatable=allocatable, capacity=allocatable + unhealthy, physical=physical, replicas=replicas,
        vouched=True,
    )  # fmt: skip
    assert found.right is (allocatable == physical * replicas and not unhealthy)
    assert (found.cause is Cause.NOT_REGISTERED) is (allocatable + unhealthy == 0)
    assert found.message


# --- the MPS control daemon ------------------------------------------------------------------------------------------


def without_gpus(ready_for: float = 600.0) -> dict[str, Any]:
    return node(N1, None, None, entry="mps-4", ready_for=ready_for)


def test_a_crash_looping_mps_daemon_is_named_at_once_and_not_after_the_plugins_patience() -> None:
    """Its pod is in the gate's own snapshot; the plugin's pod is Ready and waits for it."""
    pods = [plugin_pod(N1, serving_for=40, age=45), plugin_pod(N1, owner=DAEMON, waiting=CRASHING, restarts=4)]
    verdict = by_capacity(without_gpus(ready_for=60), pods=pods, physical=1, replicas=4)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "DevicePluginMpsDaemon")
    assert f"{DAEMON}-x7k2p" in verdict.message
    assert "CrashLoopBackOff" in verdict.message


def test_a_young_mps_daemon_is_waited_for_by_name() -> None:
    pods = [plugin_pod(N1, serving_for=5, age=8), plugin_pod(N1, owner=DAEMON, ready=False, age=8)]
    verdict = by_capacity(without_gpus(ready_for=10), pods=pods, physical=1, replicas=4)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "DevicePluginMpsDaemon")


def test_without_an_mps_daemon_the_message_does_not_guess() -> None:
    verdict = by_capacity(without_gpus(), pods=[plugin_pod(N1)], physical=1, replicas=4)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "DevicePluginMpsDaemon")
    assert "has no pod of the MPS control daemon" in verdict.message


def test_a_daemon_of_a_node_that_does_not_share_by_mps_explains_nothing() -> None:
    pods = [plugin_pod(N1), plugin_pod(N1, owner=DAEMON, waiting=CRASHING)]
    verdict = by_capacity(node(N1, None, None, entry="time-slicing-4"), pods=pods, physical=1, replicas=4)
    assert verdict.reason == "DevicePluginNotRegistering"


def test_the_proof_names_the_mps_daemon_too() -> None:
    pods = [plugin_pod(N1), plugin_pod(N1, owner=DAEMON, waiting=CRASHING)]
    verdict = by_proof(without_gpus(), pods=pods, physical=1, replicas=4)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "DevicePluginMpsDaemon")
    assert "CrashLoopBackOff" in verdict.message


def test_a_node_tells_its_capacity_condition_and_entry() -> None:
    found = PoolNode.of(node(N1, 7, 8, entry="exclusive", fault="NvidiaXID79Error", ready=False))
    assert (found.gpus, found.capacity, found.entry) == (7, 8, "exclusive")
    assert found.hardware == ("False", "NvidiaXID79Error", "see dmesg")
    assert stamp(found.not_ready_since or 0) == stamp(NOW - 600)
