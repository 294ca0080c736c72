"""A second device plugin on a node is named before anything else is blamed, and is nobody else's fault."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.causes import plugin_blamed
from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.pools.remediation import Policy, Why, judgements, plan
from gpu_fleet.core.reports.remedies import remedy
from gpu_fleet.core.validation.facts import Looked, Promise, node_facts
from gpu_fleet.core.validation.node import look_at_node
from gpu_fleet.core.validation.report import NodeReport, Outcome, PoolReport
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core import cluster_objects as objects
from tests.unit.core.gates import test_releases as releases
from tests.unit.core.neighbour_objects import daemon_set, ours, pod_of, static
from tests.unit.core.specs import demo_spec

N1, N2 = "ip-10-0-0-1.us-west-2.compute.internal", "ip-10-0-0-2.us-west-2.compute.internal"
STATIC, POD = (
    "DaemonSet kube-system/nvidia-device-plugin-daemonset",
    "pod kube-system/nvidia-device-plugin-daemonset-abcde",
)
SECOND = "SecondDevicePlugin"
THEIRS = {"namespace": None, "coexistsWith": []}


def gate(*, plugins: tuple[dict[str, Any], ...] = (), wanted: int = 1, **more: Any) -> Verdict:
    pool = gate_named("pool_capacity")
    args = {"pool": objects.POOL, "wanted": wanted, "physical": 1, "replicas": 4, "now": objects.NOW}
    args |= {"started": objects.NOW - 100, "plugins_of_others": ["kube-system/x"], **more.pop("args", {})}
    snapshot = {query.key: [] for query in pool.queries(args)} | {"daemon_sets": list(plugins)} | more
    return pool.judge(snapshot, args)


def look(gpus: int, *plugins: dict[str, Any], pods: list[dict[str, Any]] | None = None, **changes: Any) -> list[Any]:
    spec = demo_spec(**changes)
    promise = Promise.of(spec, spec.node_pools[0])
    node = objects.node(N1, gpus=gpus)
    node["metadata"]["labels"] |= promise.labels
    node["status"]["capacity"] = {"nvidia.com/gpu": str(gpus)}
    facts = node_facts(
        N1,
        node,
        pods=[objects.plugin_pod(N1)],
        runtime_class=True,
        daemon_set="nvidia-device-plugin",
        plugins=plugins_of_others(plugins, Ours.of(spec)),
        pods_of_others=[pod_of(plugin, N1) for plugin in plugins] if pods is None else pods,
        ours=promise.plugin,
    )
    return look_at_node(Looked(facts, promise, 1, spec.node_pools[0].replicas))


def failure(checks: list[Any]) -> Any:
    return next((check for check in checks if check.outcome is Outcome.FAILED), None)


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 4, 0, 3])
def test_a_node_with_two_plugins_has_one_defect_whatever_number_it_shows(gpus: int) -> None:
    check = failure(look(gpus, static()))
    assert check.reason == SECOND
    for words in (POD, STATIC, "k8s-device-plugin:v0.20.0", "kubectl -n kube-system patch daemonset", "restart"):
        assert words in check.message


def test_the_mps_daemon_is_not_blamed_either() -> None:
    assert failure(look(0, static(), nodePools__0__sharing={"mode": "mps", "replicas": 4})).reason == SECOND


def test_a_daemon_set_whose_pod_is_yet_to_come_is_named_by_itself() -> None:
    assert STATIC in failure(look(4, static(), pods=[])).message


def test_a_plugin_that_leaves_the_node_alone_is_no_second_one() -> None:
    away = static(nodeSelector={"team": "b"})
    assert failure(look(4, away, pods=[pod_of(away, N2)])) is None
    assert failure(look(1, away, pods=[])).reason == "SharingNotApplied"


def test_it_is_not_the_nodes_fault_so_no_node_is_quarantined() -> None:
    judged = (NodeReport(N1, {}, tuple(look(1, static()))), NodeReport(N2, {}, tuple(look(4))))
    reports = [PoolReport("demo", objects.POOL, "sharing", "run", 1, 4, 0.0, 1.0, judged)]
    nodes = {name: PoolNode.of(objects.node(name)) for name in (N1, N2)}
    found = plan(Policy.REPLACE, 5, judgements(reports), nodes, {}, spent=(), probes={"sharing"})
    assert (found.quarantine, found.replace) == ((), ())
    assert [(left.node, left.reason) for left in found.left] == [(N1, Why.NOT_THE_NODE)]


def test_what_to_do_is_said_in_the_report() -> None:
    assert "manage: false" in remedy(SECOND)


# --- the plugin is theirs --------------------------------------------------------------------------------------------

MANAGED_ELSEWHERE = {"devicePlugin__manage": False}


def test_somebody_elses_plugin_serves_the_node_and_is_the_plugin_that_is_looked_at() -> None:
    plugin = daemon_set("plugin", "team-b", config_map="theirs", managed=True)
    checks = look(4, plugin, **MANAGED_ELSEWHERE)
    assert failure(checks) is None
    assert next(check for check in checks if check.name == "plugin").reason == "PluginReady"


@pytest.mark.parametrize(("gpus", "reason"), [(1, "SharingNotApplied"), (8, "AllocatableMismatch")])
def test_a_wrong_number_says_whose_plugin_it_is_and_where_its_config_is(gpus: int, reason: str) -> None:
    check = failure(look(gpus, daemon_set("plugin", "team-b", config_map="theirs"), **MANAGED_ELSEWHERE))
    assert check.reason == reason
    assert "DaemonSet team-b/plugin" in check.message
    assert "ConfigMap team-b/theirs" in check.message


def test_of_two_of_theirs_the_one_that_came_last_is_the_second() -> None:
    first, second = daemon_set("first", "team-b"), static()
    pods = [pod_of(second, N1, created="2026-02-01T00:00:00Z"), pod_of(first, N1)]
    check = failure(look(4, first, second, pods=pods, **MANAGED_ELSEWHERE))
    assert check.reason == SECOND
    assert f"{POD} of {STATIC}" in check.message.partition("fights with")[0]


# --- waiting for capacity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 4, None])
def test_capacity_is_not_reached_beside_a_second_plugin_and_our_config_map_is_not_blamed(gpus: int | None) -> None:
    verdict = gate(plugins=(ours(), static()), nodes=[objects.node(N1, gpus=gpus)])
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, SECOND)
    assert verdict.permanent
    assert STATIC in verdict.message
    assert "ConfigMap" not in verdict.message
    assert not plugin_blamed(verdict.reason)


def test_the_second_plugins_pod_is_named_where_it_is_seen() -> None:
    verdict = gate(
        plugins=(static(),),
        nodes=[objects.node(N1, gpus=1)],
        **{"plugin_pods/kube-system": [pod_of(static(), N1), pod_of(static(), N2, "elsewhere")]},
    )
    assert POD in verdict.message
    assert "elsewhere" not in verdict.message


def test_our_own_release_is_not_its_own_rival() -> None:
    assert gate(plugins=(ours(),), nodes=[objects.node(N1)]).ready


def test_capacity_with_somebody_elses_plugin() -> None:
    theirs = daemon_set("plugin", "team-b", config_map="theirs")
    args = {"ours": THEIRS, "plugins_of_others": ["team-b/plugin"]}
    pods = {"plugin_pods/team-b": [pod_of(theirs, N1)]}
    assert gate(plugins=(theirs,), nodes=[objects.node(N1)], args=args, **pods).ready
    verdict = gate(plugins=(theirs,), nodes=[objects.node(N1, gpus=1)], args=args, **pods)
    assert (verdict.reason, verdict.failed) == ("SharingNotApplied", True)
    assert "expected 4 (1 physical × 4)" in verdict.message
    assert "DaemonSet team-b/plugin" in verdict.message
    assert "ConfigMap team-b/theirs" in verdict.message


def test_their_plugin_in_a_crash_loop_is_named() -> None:
    theirs = daemon_set("plugin", "team-b")
    pod = pod_of(theirs, N1)
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "specified config time-slicing-4 does not exist"}}
    pod["status"] = {"containerStatuses": [{"name": "main", "restartCount": 4, "state": waiting}]}
    args = {"ours": THEIRS, "plugins_of_others": ["team-b/plugin"]}
    found = {"nodes": [objects.node(N1, gpus=None)], "plugin_pods/team-b": [pod]}
    verdict = gate(plugins=(theirs,), args=args, **found)
    assert verdict.reason == "DevicePluginCrashLoopBackOff"
    assert (
        "specified config time-slicing-4 does not exist; the plugin there is DaemonSet team-b/plugin" in verdict.message
    )


def test_nobodys_plugin_is_said_to_be_nobodys() -> None:
    verdict = gate(nodes=[objects.node(N1, gpus=None)], args={"ours": THEIRS, "plugins_of_others": []})
    assert verdict.reason == "DevicePluginAbsent"
    assert "no DaemonSet of others" in verdict.message


# --- proof and roll-back ---------------------------------------------------------------------------------------------


def proof(*nodes: dict[str, Any], pods: list[dict[str, Any]] | None = None, **args: Any) -> Verdict:
    plugin = gate_named("device_plugin_proven")
    found: dict[str, Any] = {"release": "plugin", "namespace": releases.NS, "now": releases.NOW}
    found |= {"started": releases.NOW - 600, "pools": releases.POOLS, "ours": {"namespace": releases.NS}, **args}
    snapshot: dict[str, Any] = {query.key: [] for query in plugin.queries(found)}
    snapshot["nodes"] = list(nodes)
    snapshot[f"daemonsets/{releases.NS}"] = [releases.daemon_set(len(nodes))]
    snapshot[f"pods/{releases.NS}"] = pods or [releases.pod(node=node["metadata"]["name"]) for node in nodes]
    snapshot[f"controllerrevisions/{releases.NS}"] = releases.HISTORY
    snapshot["every_daemon_set"] = [static(nodeSelector={"second": "yes"})]
    return plugin.judge(snapshot, found)


def fought_over(gpus: int, name: str = "node-1") -> dict[str, Any]:
    node = releases.node(gpus, name=name)
    node["metadata"]["labels"]["second"] = "yes"
    return node


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_node_that_is_fought_over_proves_nothing(gpus: int) -> None:
    verdict = proof(fought_over(gpus))
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, SECOND)


@pytest.mark.parametrize("gpus", [0, 1])
def test_and_disproves_nothing_so_our_release_is_not_rolled_back(gpus: int) -> None:
    """The remediation asks with ``allow_unproven``; Ready means that the release is not what failed."""
    verdict = proof(fought_over(gpus), allow_unproven=True)
    assert (verdict.phase, verdict.reason) == (Phase.READY, SECOND)
    assert verdict.data is not None
    assert verdict.data["unproven"]


def test_another_node_decides() -> None:
    assert proof(fought_over(1), releases.node(4, name="node-2")).reason == "PluginProven"
    verdict = proof(fought_over(1), releases.node(1, name="node-2"), allow_unproven=True)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "SharingNotApplied")


def test_a_plugin_that_crashes_there_is_our_release_s_fault_all_the_same() -> None:
    crashing = [releases.pod(waiting="CrashLoopBackOff", restarts=5)]
    verdict = proof(fought_over(1), pods=crashing, allow_unproven=True)
    assert verdict.failed
    assert verdict.reason != SECOND


def test_after_a_rollback_such_nodes_are_not_waited_for() -> None:
    assert proof(fought_over(1), allow_unproven=True, every_node=True).ready
    both = proof(fought_over(1), releases.node(1, name="node-2"), allow_unproven=True, every_node=True)
    assert both.reason == "SharingNotApplied"
