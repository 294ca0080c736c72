"""Gate ``pool_capacity`` over every state that nodes, claims, placeholders and the device plugin can be in."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.causes import plugin_blamed
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.manifests.build import pool_labels, pool_taints
from gpu_fleet.core.nodes.pool_template import PoolTemplate
from gpu_fleet.core.reports.remedies import UNKNOWN, remedy
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.cluster_objects import NOW, POOL, claim, event, node, placeholder, plugin_pod
from tests.unit.core.specs import demo_spec

LIMITS = "Failed to schedule pod, all available instance types exceed limits for nodepool (NodePool=shared-a10g)"
NODE_LIMIT = "Failed to schedule pod, node limits have been exhausted for nodepool (NodePool=shared-a10g)"
TOO_SMALL = "Failed to schedule pod, no instance type has enough resources, requirements=…, resources={…}"
N1, N2, N3 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2, 3))
REGISTERING = ("Registered", "NodeNotFound", "Node not registered with cluster")


def judge(
    *, pool: str = POOL, wanted: int = 2, physical: int = 1, replicas: int = 4, started: float = 100.0, **objects: Any
) -> Verdict:
    gate = gate_named("pool_capacity")
    args = {
        "pool": pool,
        "wanted": wanted,
        "physical": physical,
        "replicas": replicas,
        "now": NOW,
        "started": NOW - started,
    }
    snapshot = {query.key: [] for query in gate.queries(args)} | objects
    return gate.judge(snapshot, args)


def test_every_node_has_what_was_promised() -> None:
    verdict = judge(claims=[claim("a", node_name=N1), claim("b", node_name=N2)], nodes=[node(N2), node(N1)])
    assert verdict.ready
    assert verdict.data is not None
    assert verdict.data["nodes"] == [N1, N2]
    assert verdict.data["nodeClaims"] == ["a", "b"]
    assert verdict.data["allocatable"] == {N1: 4, N2: 4}
    assert verdict.data["instances"][N1]["type"] == "g5.xlarge"
    assert (verdict.data["physical"], verdict.data["replicas"]) == (1, 4)


def test_exclusive_gpus() -> None:
    assert judge(wanted=1, physical=8, replicas=1, nodes=[node(N1, gpus=8)]).ready


def test_more_nodes_than_wanted_one_of_which_is_still_joining() -> None:
    joining = node(N3, gpus=None, ready=False, initialized=False)
    assert judge(nodes=[node(N1), node(N2), joining]).ready


@pytest.mark.parametrize("broken", [node(N3, gpus=5), node(N3, gpus=None)], ids=["wrong number", "no plugin"])
def test_a_broken_node_beyond_the_wanted_ones_is_named_and_fails_nothing(broken: dict[str, Any]) -> None:
    verdict = judge(nodes=[node(N1), node(N2), broken])
    assert verdict.ready
    assert f"beyond the 2 wanted: node {N3}" in verdict.message
    assert verdict.data is not None
    assert verdict.data["nodes"] == [N1, N2]


@pytest.mark.parametrize(
    ("objects", "reason", "words"),
    [
        ({}, "NodesMissing", "neither a NodeClaim nor a placeholder"),
        ({"nodes": [node(N1)]}, "NodesMissing", "1 of 2"),
        ({"nodes": [node(N1), node(N2, deleting=True)]}, "NodesMissing", "1 of 2"),
        ({"nodes": [node(N1), node(N2, taints=("karpenter.sh/disrupted",))]}, "NodesMissing", "1 of 2"),
        ({"nodes": [node(N1), node(N2, cordoned=True)]}, "NodeCordoned", "uncordon"),
        (
            {"nodes": [node(N1), node(N2, cordoned=True, annotations={"gpu-fleet.io/quarantined": "{}"})]},
            "NodeQuarantined",
            "released when it passes again",
        ),
        ({"nodes": [node(N1), node(N2, ready=False)]}, "NodeNotReady", "container runtime is down"),
        ({"nodes": [node(N1), node(N2, taints=("karpenter.sh/unregistered",))]}, "NodeNotRegistered", N2),
        ({"nodes": [node(N1), node(N2, initialized=False)]}, "NodeNotInitialized", N2),
        ({"placeholders": [placeholder(0)]}, "WaitingForKarpenter", "has not answered"),
        ({"claims": [claim(node_name="", waiting=REGISTERING)]}, "NodeNotFound", "waits for its node to join"),
        (
            {"claims": [claim(node_name="", waiting=("Launched", "AwaitingReconciliation", ""))]},
            "WaitingForLaunch",
            "waits for EC2",
        ),
        (
            {"claims": [claim(node_name="", waiting=("Launched", "LaunchFailed", "UnauthorizedOperation"), since=10)]},
            "LaunchFailed",
            "UnauthorizedOperation",
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "pod_events": [event("FailedScheduling", LIMITS)],
            },
            "NodePoolLimitReached",
            "limits",
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "pod_events": [event("FailedScheduling", NODE_LIMIT)],
            },
            "NodePoolLimitReached",
            "limits",
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "pod_events": [event("FailedScheduling", TOO_SMALL)],
            },
            "NoInstanceTypeFits",
            "no instance type",
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "claim_events": [event("InsufficientCapacityError", "no capacity", kind="NodeClaim")],
            },
            "InsufficientCapacity",
            "EC2 has no capacity",
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "pool_events": [event("NoCompatibleInstanceTypes", "filtered out all", kind="NodePool")],
            },
            "NoCompatibleInstanceTypes",
            "filtered out all",
        ),
        ({"nodes": [node(N1), node(N2, gpus=1, ready_for=10)]}, "SharingNotApplied", "expected 4"),
        ({"nodes": [node(N1), node(N2, gpus=None, ready_for=10)]}, "DevicePluginAbsent", "no device-plugin pod"),
        (
            {
                "nodes": [node(N1, gpus=None, ready_for=60)],
                "plugin_events": [event("FailedCreate", "refused before this node came", kind="DaemonSet", ago=300)],
            },
            "DevicePluginAbsent",
            "no device-plugin pod yet",
        ),
        (
            {"nodes": [node(N2, gpus=None, ready_for=10)], "plugin_pods": [plugin_pod(N2, ready=False, age=8)]},
            "DevicePluginStarting",
            "is starting",
        ),
        (
            {"nodes": [node(N2, gpus=0, ready_for=20)], "plugin_pods": [plugin_pod(N2, serving_for=10, age=15)]},
            "ResourceNotRegistered",
            "takes up to a minute",
        ),
        (
            {
                "nodes": [node(N2, gpus=None, ready_for=10)],
                "plugin_pods": [plugin_pod(N2, waiting=("ImagePullBackOff", "not found"), age=8)],
            },
            "DevicePluginImagePullBackOff",
            "not found",
        ),
    ],
)  # fmt: skip
def test_what_is_waited_for(objects: dict[str, Any], reason: str, words: str) -> None:
    verdict = judge(started=5, **objects)
    assert verdict.phase is Phase.PROGRESSING, verdict
    assert verdict.reason == reason
    assert words in verdict.message


@pytest.mark.parametrize(
    ("objects", "reason", "permanent", "plugin"),
    [
        ({}, "CapacityLost", False, False),
        ({"nodes": [node(N1), node(N2, gpus=1)]}, "SharingNotApplied", True, False),
        ({"nodes": [node(N1), node(N2, gpus=1), node(N3, gpus=5)]}, "SharingNotApplied", True, False),
        ({"nodes": [node(N1), node(N2, gpus=5)]}, "AllocatableMismatch", True, False),
        ({"nodes": [node(N1, gpus=None)]}, "DevicePluginAbsent", True, True),
        (
            {
                "nodes": [node(N1, gpus=None, ready_for=60)],
                "plugin_events": [
                    event(
                        "FailedCreate",
                        'Error creating: pods "p-" is forbidden: pod rejected: RuntimeClass "nvidia" not found',
                        kind="DaemonSet",
                        component="daemonset-controller",
                    )
                ],
            },
            "DevicePluginFailedCreate",
            True,
            True,
        ),
        (
            {
                "nodes": [node(N1, gpus=None)],
                "plugin_pods": [plugin_pod(N1, waiting=("ImagePullBackOff", 'Back-off pulling image "x"'))],
            },
            "DevicePluginImagePullBackOff",
            True,
            True,
        ),
        (
            {
                "nodes": [node(N1, gpus=0)],
                "plugin_pods": [plugin_pod(N1, waiting=("CrashLoopBackOff", "back-off 10s"), restarts=3, age=20)],
            },
            "DevicePluginCrashLoopBackOff",
            True,
            True,
        ),
        ({"nodes": [node(N1, gpus=0)], "plugin_pods": [plugin_pod(N1)]}, "DevicePluginNotRegistering", True, True),
        (
            {"claims": [claim(node_name="", waiting=("Launched", "LaunchFailed", "no"), since=150)]},
            "LaunchFailed",
            False,
            False,
        ),
        (
            {
                "placeholders": [placeholder(0)],
                "pod_events": [
                    event(
                        "FailedScheduling",
                        'Failed to schedule pod, incompatible with nodepool "other", no instance type met; '
                        'incompatible with nodepool "shared-a10g", did not tolerate taint (taint=nvidia.com/gpu=true)',
                    )
                ],
            },
            "TaintNotTolerated",
            True,
            False,
        ),
    ],
)
def test_what_fails(objects: dict[str, Any], reason: str, permanent: bool, plugin: bool) -> None:
    verdict = judge(**objects)
    assert verdict.phase is Phase.FAILED, verdict
    assert verdict.reason == reason
    assert verdict.permanent is permanent
    assert plugin_blamed(verdict.reason) is plugin


def test_a_mismatch_names_node_expected_and_actual() -> None:
    verdict = judge(nodes=[node(N1), node(N2, gpus=1)])
    assert verdict.data == {"node": N2, "expected": 4, "actual": 1, "capacity": None}
    assert "ip-10-0-0-2" in verdict.message
    assert "1 physical × 4" in verdict.message


def test_a_plugin_that_has_just_restarted_gets_time_to_correct_a_wrong_number() -> None:
    assert (
        judge(wanted=1, nodes=[node(N2, gpus=1)], plugin_pods=[plugin_pod(N2, serving_for=5)]).phase
        is Phase.PROGRESSING
    )


@pytest.mark.parametrize(
    "objects",
    [
        {"placeholders": [placeholder(0)]},
        {"claims": [claim(node_name="", waiting=REGISTERING)]},
        {"nodes": [node(N1, ready=False)]},
        {"nodes": [node(N1, gpus=None, ready_for=1)]},
        {"nodes": [node(N1, gpus=1, ready_for=1)]},
    ],
)
def test_the_message_does_not_count_seconds_so_only_changes_are_logged(objects: dict[str, Any]) -> None:
    gate = gate_named("pool_capacity")
    args = {"pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "started": NOW - 1}
    assert gate.judge(objects, args | {"now": NOW}) == gate.judge(objects, args | {"now": NOW + 3})


def test_the_mps_daemon_is_not_the_plugin() -> None:
    verdict = judge(
        nodes=[node(N1, gpus=None)], plugin_pods=[plugin_pod(N1, owner="nvidia-device-plugin-mps-control-daemon")]
    )
    assert verdict.reason == "DevicePluginAbsent"


def test_the_schedulers_own_events_are_not_karpenters() -> None:
    own = event("FailedScheduling", "0/3 nodes are available: did not tolerate taint", component="default-scheduler")
    assert judge(placeholders=[placeholder(0)], pod_events=[own]).reason == "WaitingForKarpenter"


def test_an_old_lack_of_capacity_is_not_todays() -> None:
    old = event("InsufficientCapacityError", "x", kind="NodeClaim", ago=3000)
    assert judge(placeholders=[placeholder(0)], claim_events=[old]).reason == "WaitingForKarpenter"


def test_a_launched_claim_has_got_its_capacity() -> None:
    ice = event("InsufficientCapacityError", "x", kind="NodeClaim")
    assert judge(claims=[claim(node_name="", waiting=REGISTERING)], claim_events=[ice]).reason == "NodeNotFound"


@pytest.mark.parametrize("value", ["4k", "", None, "many", -1])
def test_an_unreadable_count_is_never_ready(value: Any) -> None:
    odd = node(N1)
    odd["status"]["allocatable"]["nvidia.com/gpu"] = value
    assert not judge(wanted=1, nodes=[odd]).ready


def test_objects_without_anything_are_never_ready() -> None:
    bare = {"metadata": {"name": "n", "labels": {"karpenter.sh/nodepool": POOL}}}
    assert not judge(wanted=1, nodes=[bare], claims=[bare], placeholders=[{}], plugin_pods=[{}], pod_events=[{}]).ready


def test_wanting_nothing_is_never_ready_of_nothing() -> None:
    assert not judge(wanted=0).ready


# --- the pool's sharing has changed while nodes live ------------------------------------------------------------------
EIGHT = demo_spec(nodePools__0__sharing={"mode": "timeSlicing", "replicas": 8})


def launched(spec: Any, item: dict[str, Any]) -> dict[str, Any]:
    item["metadata"]["labels"] |= pool_labels(spec.pool(POOL))
    return {**item, "spec": {"taints": pool_taints(spec.pool(POOL))}}


def judged(wanted: int, **objects: Any) -> Verdict:
    gate = gate_named("pool_capacity")
    template = PoolTemplate.of(EIGHT.pool(POOL))
    assert template is not None
    args = {
        "pool": POOL, "wanted": wanted, "physical": 1, "replicas": 8, "now": NOW, "started": NOW - 5,
        "template": template.to_json(),
    }  # fmt: skip
    return gate.judge({query.key: [] for query in gate.queries(args)} | objects, args)


def test_nodes_of_the_old_template_are_no_capacity_and_no_failure() -> None:
    old, new = launched(demo_spec(), claim("a", node_name=N1)), launched(EIGHT, claim("b", node_name=N2))
    verdict = judged(1, claims=[old], nodes=[node(N1, gpus=4)])
    assert verdict.phase is Phase.PROGRESSING
    assert f"drifted, not counted: {N1} (sharing time-slicing-4 -> time-slicing-8)" in verdict.message
    verdict = judged(1, claims=[old, new], nodes=[node(N1, gpus=4), node(N2, gpus=8)])
    assert verdict.ready
    assert verdict.data is not None
    assert (verdict.data["nodes"], verdict.data["nodeClaims"]) == ([N2], ["b"])
    assert N1 in verdict.message


def test_a_claim_of_the_old_template_on_its_way_is_not_what_is_waited_for() -> None:
    old = launched(demo_spec(), claim("a", node_name="", waiting=REGISTERING))
    verdict = judged(1, claims=[old], placeholders=[placeholder(0)])
    assert verdict.reason == "WaitingForKarpenter"
    new = launched(EIGHT, claim("b", node_name="", waiting=REGISTERING))
    assert judged(1, claims=[old, new], placeholders=[placeholder(0)]).reason == "NodeNotFound"


def test_a_node_of_todays_template_with_the_wrong_number_still_fails() -> None:
    verdict = judged(1, claims=[launched(EIGHT, claim("a", node_name=N1))], nodes=[node(N1, gpus=4)])
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "AllocatableMismatch")


def test_an_instance_that_does_not_join_is_waited_for_and_then_asked_about() -> None:
    young = judge(claims=[claim("a", node_name="", waiting=REGISTERING, since=200.0)])
    assert (young.phase, young.reason) == (Phase.PROGRESSING, "NodeNotFound")
    verdict = judge(claims=[claim("a", node_name="", waiting=REGISTERING, since=400.0)])
    assert (verdict.phase, verdict.reason, verdict.permanent) == (Phase.FAILED, "NodeDoesNotJoin", False)
    assert "NodeClaim a launched, waits for its node to join" in verdict.message
    assert "access entry" in verdict.message
    assert remedy("NodeDoesNotJoin") != UNKNOWN


def test_once_asked_about_it_is_waited_for_as_long_as_karpenter_does() -> None:
    gate = gate_named("pool_capacity")
    args = {"pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "now": NOW, "started": NOW - 500.0}
    snapshot: dict[str, list[Any]] = {query.key: [] for query in gate.queries(args)}
    snapshot["claims"] = [claim("a", node_name="", waiting=REGISTERING, since=400.0)]
    assert gate.judge(snapshot, {**args, "join_patience_s": None}).reason == "NodeNotFound"
