"""Gate ``probes_finished``: settled means nothing is left to wait for, whatever came of it."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.probes.plan import NodeRound
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, POOL, node
from tests.unit.core.probe_objects import NODE

PULL = probes.waiting(3, "ErrImagePull", scheduled=5.0)
NO_ROOM = [probes.unplaced(i) for i in (1, 2, 3, 4)]
OTHER = "ip-10-0-0-2.us-west-2.compute.internal"
FULL = NodeRound(NODE, users=5, fill=4, greedy=False, held=0)
WITH_GREEDY = NodeRound(NODE, users=5, fill=4, greedy=True, held=0)
BUSY = NodeRound(OTHER, users=0, fill=0, greedy=False, held=4)

Pods = list[dict[str, Any]]


def judge(
    pods: Pods,
    *rounds: NodeRound,
    nodes: Pods | None = None,
    started: float = 60.0,
    failures: Pods | None = None,
    yields: bool = False,
    preemptions: Pods | None = None,
) -> Verdict:
    args = {
        "namespace": "gpu-fleet-validation",
        "selector": "x=y",
        "pool": POOL,
        "rounds": [round_.to_json() for round_ in rounds or (FULL,)],
        "now": NOW,
        "started": NOW - started,
        "yields": yields,
    }
    return gate_named("probes_finished").judge(
        {
            "pods": pods,
            "nodes": [node(NODE), node(OTHER)] if nodes is None else nodes,
            "failures": failures or [],
            "preemptions": preemptions or [],
        },
        args,
    )


def ended(*indices: int, **kwargs: Any) -> Pods:
    return [probes.ended(index, **kwargs) for index in indices]


def aged(pod: dict[str, Any], seconds: float = 90.0) -> dict[str, Any]:
    """The same pod, created earlier."""
    pod["metadata"]["creationTimestamp"] = probes.stamp(NOW - seconds)
    return pod


@pytest.mark.parametrize(
    ("situation", "pods"),
    [
        ("all ended, one waits", [*ended(0, 1, 2, 3), probes.unplaced(4)]),
        ("all ended, the one too many runs now", [*ended(0, 1, 2, 3), probes.running(4, scheduled=9.0)]),
        ("some failed", [*ended(0, 1, 2), probes.ended(3, code=1), probes.unplaced(4)]),
        ("refused by the kubelet", [*ended(0, 1, 2), probes.refused(3, role="user"), probes.unplaced(4)]),
        ("an image cannot be pulled", [*ended(0, 1, 2), probes.waiting(3, "ImagePullBackOff", scheduled=60.0)]),
        ("an image has an impossible name", [*ended(0, 1, 2), probes.waiting(3, "InvalidImageName", scheduled=1.0)]),
        ("pods were deleted by somebody", [*ended(0, 1)]),
        ("GPUs vanished and nothing runs", [*ended(0, 1, finished=25.0), *(probes.unplaced(i) for i in (2, 3, 4))]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settled(situation: str, pods: Pods) -> None:
    verdict = judge(pods)
    assert verdict.ready, f"{situation}: {verdict}"
    assert verdict.data == {"nodes": 1}


@pytest.mark.parametrize(
    ("situation", "pods", "reason"),
    [
        ("nothing is placed yet", [probes.pod(i, scheduled=None) for i in range(5)], "ProbesPending"),
        ("images are pulled", [probes.waiting(i, "ContainerCreating") for i in range(4)], "ProbesStarting"),
        ("all run", [probes.running(i) for i in range(4)] + [probes.unplaced(4)], "ProbesRunning"),
        ("one still runs", [*ended(0, 1, 2), probes.running(3), probes.unplaced(4)], "ProbesRunning"),
        ("a first failed pull", [*ended(0, 1, 2), PULL, probes.unplaced(4)], "ProbesStarting"),
        ("one after another: the next begins in a moment", [*ended(0, finished=2.0), *NO_ROOM], "ProbesPending"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_waited_for(situation: str, pods: Pods, reason: str) -> None:
    verdict = judge(pods)
    assert verdict.phase is Phase.PROGRESSING, situation
    assert verdict.reason == reason
    assert NODE in verdict.message


@pytest.mark.parametrize(
    ("pods", "settled"),
    [
        ([probes.running(0, role="holder"), probes.running(0)], False),
        ([probes.running(0, role="holder"), probes.ended(0)], True),
        # A user's pod was quicker: the probe would wait for ever for a share.
        ([probes.running(0, role="holder"), aged(probes.unplaced(0))], True),
    ],
)
def test_pods_that_only_hold_a_share_are_not_waited_for(pods: Pods, settled: bool) -> None:
    round_ = NodeRound(NODE, users=1, fill=1, greedy=False, held=0, holders=1)
    assert judge(pods, round_).ready is settled


def failure(index: int, *, first: float, last: float) -> dict[str, Any]:
    """The kubelet's event about a pull that failed, first and last so many seconds ago."""
    return {
        "reason": "Failed",
        "message": "Failed to pull image: 503 Service Unavailable",
        "involvedObject": {"kind": "Pod", "uid": f"uid-user-{index}"},
        "firstTimestamp": probes.stamp(NOW - first),
        "lastTimestamp": probes.stamp(NOW - last),
    }


@pytest.mark.parametrize(
    ("situation", "reason", "failures", "settled"),
    [
        ("a hiccup after a long pull", "ErrImagePull", [failure(3, first=2, last=2)], False),
        ("a hiccup after a long pull, waited out", "ImagePullBackOff", [failure(3, first=12, last=12)], False),
        ("a hiccup whose event is not seen yet", "ErrImagePull", [], False),
        ("failing for long", "ImagePullBackOff", [failure(3, first=50, last=5)], True),
        ("failing for long, tried again just now", "ErrImagePull", [failure(3, first=50, last=1)], True),
        ("another pod's failure", "ErrImagePull", [failure(2, first=50, last=1)], False),
        ("a container that cannot be made, just now", "CreateContainerError", [failure(3, first=2, last=2)], False),
        ("failing, and its events are lost", "ImagePullBackOff", [], True),
    ],
)
def test_patience_begins_with_the_first_failure(situation: str, reason: str, failures: Pods, settled: bool) -> None:
    pods = [*ended(0, 1, 2), probes.waiting(3, reason, scheduled=600.0), probes.unplaced(4)]
    assert judge(pods, failures=failures).ready is settled, situation


def test_no_pods_yet() -> None:
    assert judge([], started=1).reason == "ProbesAbsent"


def test_no_pods_any_more() -> None:
    verdict = judge([], started=30)
    assert verdict.reason == "ProbesVanished"
    assert verdict.failed
    assert not verdict.permanent


def test_a_round_of_busy_nodes_is_never_ready_of_nothing() -> None:
    assert judge([], BUSY).reason == "NothingToWaitFor"


def test_a_busy_node_does_not_hold_up_another() -> None:
    assert judge([*ended(0, 1, 2, 3), probes.unplaced(4)], BUSY, FULL).ready


@pytest.mark.parametrize(
    "nodes",
    [[], [node(NODE, deleting=True)], [node(NODE, taints=("karpenter.sh/disrupted",))]],
    ids=["gone", "being deleted", "disrupted"],
)
def test_a_node_that_vanished_in_mid_probe_is_settled(nodes: Pods) -> None:
    assert judge([probes.running(0)], nodes=nodes).ready


def test_one_nodes_probes_run_while_anothers_are_over() -> None:
    other = NodeRound(OTHER, users=1, fill=1, greedy=False, held=0)
    verdict = judge([*ended(0, 1, 2, 3), probes.running(9, node=OTHER)], FULL, other)
    assert verdict.reason == "ProbesRunning"
    assert OTHER in verdict.message


@pytest.mark.parametrize(
    ("greedy", "settled"),
    [
        (probes.refused(), True),
        (probes.running(0, role="greedy"), True),
        (probes.ended(0, role="greedy"), True),
        (probes.unplaced(0, role="greedy"), False),
        (None, True),
    ],
    ids=["refused", "granted", "ended", "not tried yet", "vanished"],
)
def test_the_request_for_two(greedy: dict[str, Any] | None, settled: bool) -> None:
    pods = [*ended(0, 1, 2, 3, finished=5.0), probes.unplaced(4), *([greedy] if greedy else [])]
    assert judge(pods, WITH_GREEDY).ready is settled


def test_a_request_for_two_that_finds_no_room_is_given_up() -> None:
    pods = [*ended(0, 1, 2, 3, finished=30.0), probes.unplaced(0, role="greedy")]
    assert judge(pods, WITH_GREEDY).ready


def test_pods_without_a_status_are_waited_for() -> None:
    bare = [{"metadata": {}, "spec": {"nodeSelector": {"kubernetes.io/hostname": NODE}}}] * 5
    assert judge(bare).phase is Phase.PROGRESSING


def test_a_pod_too_many_that_ends_before_a_sharer_does_not_stand_for_it() -> None:
    """Probes that end at once, because too little memory is free, let the pod too many in."""
    sharers, extra = ended(0, 1, scheduled=40.0), ended(3, scheduled=30.0)
    three = NodeRound(NODE, users=4, fill=3, greedy=False, held=1)
    assert judge([*sharers, probes.running(2, scheduled=39.0), *extra], three).reason == "ProbesRunning"
    assert judge([*sharers, *ended(2, scheduled=39.0), *extra], three).ready


def test_where_a_user_takes_a_probes_place_the_others_must_end_at_once() -> None:
    pods = [probes.preempted(0), *(probes.running(index) for index in (1, 2, 3))]
    full = NodeRound(NODE, users=4, fill=4, greedy=False, held=0)
    verdict = judge(pods, full, yields=True)
    assert (verdict.ready, verdict.reason, verdict.data) == (True, "ProbesDisplaced", {"nodes": [NODE]})
    assert judge(pods, full).reason == "ProbesRunning"
    over = [probes.preempted(0), *ended(1, 2, 3)]
    assert judge(over, full, yields=True).reason == "ProbesSettled"
    deleted = [probes.running(index) for index in (1, 2, 3)]
    assert judge(deleted, full, yields=True).reason == "ProbesRunning", "a person deleted one: no user has come"
    seen = [probes.preempted_event(NODE, NOW - 3)]
    assert judge(deleted, full, yields=True, preemptions=seen).reason == "ProbesDisplaced"
    for other in (probes.preempted_event(OTHER, NOW - 3), probes.preempted_event(NODE, NOW - 300)):
        assert judge(deleted, full, yields=True, preemptions=[other]).reason == "ProbesRunning"
