"""The verdict on a node's GPUs: one defect, one reason; a healthy node has no false alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.probes.plan import NodeRound, Probe
from gpu_fleet.core.validation.evidence import NodeEvidence, evidence_of, overlap
from gpu_fleet.core.validation.facts import Promise, node_facts
from gpu_fleet.core.validation.judge import (
    judge_node,
    refusal_reason,
    refused_node,
)
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, UserPods, user_pods_by_node
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, node, plugin_pod, user_pod
from tests.unit.core.probe_objects import NODE, OTHER_UUID, UUID

Pods = list[dict[str, Any]]
#: What the nodes of ``cluster_objects`` have.
PROMISE = Promise(
    labels={"karpenter.sh/nodepool": "shared-a10g"}, taints=[("nvidia.com/gpu", "NoSchedule")], mps=False, plugin=True
)
MPS_DAEMON = plugin_pod(NODE, owner="nvidia-device-plugin-mps-control-daemon")
BEFORE = ("node", "runtimeClass", "labels", "taints", "hardware", "onePlugin", "mpsDaemon", "plugin", "allocatable")


def sharers(count: int = 4, **kwargs: Any) -> Pods:
    return [probes.ended(index, **kwargs) for index in range(count)]


def evidence(
    pods: Pods,
    *,
    node_now: dict[str, Any] | None = None,
    gone: bool = False,
    physical: int = 1,
    replicas: int = 4,
    fill: int | None = None,
    users: int | None = None,
    greedy: bool = False,
    held: int = 0,
    events: Pods | None = None,
    user_pods: UserPods = NO_USER_PODS,
    probe: Probe = Probe.SHARING,
    promise: Promise = PROMISE,
) -> NodeEvidence:
    slots = physical * replicas
    filled = slots - held if fill is None else fill
    planned = (filled + 1 if filled else 0) if users is None else users
    there = None if gone else node_now or node(NODE, gpus=slots)
    return evidence_of(
        probe,
        NodeRound(NODE, users=planned, fill=filled, greedy=greedy, held=held),
        node_facts(NODE, there, pods=[plugin_pod(NODE), MPS_DAEMON], runtime_class=True),
        promise,
        pods,
        events or [],
        physical=physical,
        replicas=replicas,
        now=NOW,
        user_pods=user_pods,
    )


def one_after_another(*, placed_late: bool) -> Pods:
    """Four sharers of 10 s each, the next one beginning when the one before has ended."""
    return [
        probes.ended(i, started=40.0 - 10 * i, finished=30.0 - 10 * i, scheduled=40.0 - 10 * i if placed_late else 40.0)
        for i in range(4)
    ]


def healthy(**kwargs: Any) -> NodeEvidence:
    return evidence([*sharers(), probes.unplaced(4)], **kwargs)


def check(report: NodeReport, name: str) -> Check:
    return next(found for found in report.checks if found.name == name)


# --- healthy ---------------------------------------------------------------------------------------------


def test_a_shared_gpu_that_does_all_it_should() -> None:
    report = judge_node(Probe.SHARING, evidence([*sharers(), probes.unplaced(4), probes.refused()], greedy=True))
    assert report.outcome is Outcome.PASSED
    applied = {found.name: found.outcome for found in report.checks if found.outcome is not Outcome.SKIPPED}
    assert applied == dict.fromkeys(
        (
            "node",
            "runtimeClass",
            "labels",
            "taints",
            "onePlugin",
            "plugin",
            "allocatable",
            "room",
            "probes",
            "clock",
            "vectorAdd",
            "visible",
            "unasked",
            "concurrency",
            "distribution",
            "physical",
            "bound",
            "refusal",
        ),
        Outcome.PASSED,
    )
    assert check(report, "concurrency").figures["seconds"] == 20
    assert check(report, "distribution").figures["containersPerGpu"] == {UUID: 4}
    assert check(report, "distribution").figures["memoryFreeMiB"] == {UUID: 22000}
    assert check(report, "probes").figures["driver"] == "570.133.20"
    assert report.cause is None


def test_exclusive_gpus_each_with_one_container() -> None:
    uuids = [f"GPU-0000000{index}-1111-2222-3333-444444444444" for index in range(8)]
    pods = [probes.ended(i, text=probes.message(uuids=(uuid,))) for i, uuid in enumerate(uuids)]
    report = judge_node(
        Probe.EXCLUSIVE, evidence([*pods, probes.unplaced(8)], physical=8, replicas=1, node_now=node(NODE, gpus=8))
    )
    assert report.outcome is Outcome.PASSED
    assert check(report, "physical").figures["seen"] == 8


def test_eight_gpus_shared_by_two_each() -> None:
    uuids = [f"GPU-0000000{index % 8}-1111-2222-3333-444444444444" for index in range(16)]
    pods = [probes.ended(i, text=probes.message(uuids=(uuid,))) for i, uuid in enumerate(uuids)]
    report = judge_node(Probe.SHARING, evidence([*pods, probes.unplaced(16)], physical=8, replicas=2))
    assert report.outcome is Outcome.PASSED


def test_the_pod_too_many_may_be_any_of_them() -> None:
    pods = [probes.unplaced(0), *(probes.ended(index) for index in range(1, 5))]
    assert judge_node(Probe.SHARING, evidence(pods)).outcome is Outcome.PASSED


def test_the_pod_too_many_was_placed_when_another_had_ended() -> None:
    late = probes.running(4, scheduled=10.0)
    report = judge_node(Probe.SHARING, evidence([*sharers(), late], events=[probes.no_gpu_event(4)]))
    assert check(report, "bound").reason == "OneMoreWaits"
    assert report.outcome is Outcome.PASSED


@pytest.mark.parametrize("ahead", [2.0, 5.0, 9.0])
def test_a_nodes_clock_that_is_ahead_makes_no_oversubscription(ahead: float) -> None:
    """The pod too many waited for its GPU, and was placed at the end of another by a clock that is right."""
    ends = [probes.ended(index, started=30.0 - ahead, finished=10.0 - ahead) for index in range(4)]
    late = probes.running(4, scheduled=9.0)
    report = judge_node(Probe.SHARING, evidence([*ends, late], events=[probes.no_gpu_event(4)]))
    assert check(report, "bound").reason == "OneMoreWaits"


def test_a_pod_that_was_refused_once_and_placed_long_before_any_end_is_one_too_many() -> None:
    late = probes.running(4, scheduled=25.0)
    report = judge_node(Probe.SHARING, evidence([*sharers(), late], events=[probes.no_gpu_event(4)]))
    assert check(report, "bound").reason == "Oversubscribed"


def test_vectoradd_alone() -> None:
    report = judge_node(Probe.VECTORADD, evidence([probes.ended(0)], fill=1, users=1))
    assert report.outcome is Outcome.PASSED
    assert [found.name for found in report.checks] == [
        *BEFORE, "room", "driver", "probes", "clock", "vectorAdd", "visible", "unasked",
    ]  # fmt: skip


def test_without_vectoradd_and_without_the_pod_too_many() -> None:
    pods = [probes.ended(i, text=probes.message(vector_add=None)) for i in range(4)]
    report = judge_node(Probe.SHARING, evidence(pods, users=4))
    assert report.outcome is Outcome.PASSED
    assert check(report, "vectorAdd").outcome is Outcome.SKIPPED
    assert check(report, "bound").outcome is Outcome.SKIPPED


def test_overlap_of_less_than_a_second_is_seen_by_the_probes_own_clock() -> None:
    pods = [
        probes.ended(0, started=30.0, finished=10.0, text=probes.message(started=NOW - 29.8, finished=NOW - 9.2)),
        probes.ended(1, started=10.0, finished=2.0, text=probes.message(started=NOW - 9.7, finished=NOW - 2)),
    ]
    found = overlap(evidence(pods, replicas=2, users=2).sharers)
    assert found == pytest.approx(0.5)


# --- defects, one by one ---------------------------------------------------------------------------------


def broken_pods(bad: dict[str, Any]) -> Pods:
    return [bad, *(probes.ended(index) for index in range(1, 4)), probes.unplaced(4)]


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        (healthy(gone=True), "node", "NodeVanished"),
        (healthy(node_now=node(NODE, deleting=True)), "node", "NodeVanished"),
        (healthy(node_now=node(NODE, taints=("karpenter.sh/disrupted",))), "node", "NodeVanished"),
        (healthy(node_now=node(NODE, ready=False)), "node", "NodeNotReady"),
        (healthy(node_now=node(NODE, gpus=1)), "allocatable", "SharingNotApplied"),
        (healthy(node_now=node(NODE, gpus=2)), "allocatable", "AllocatableMismatch"),
        (healthy(node_now=node(NODE, gpus=8)), "allocatable", "AllocatableMismatch"),
        (healthy(node_now=node(NODE, gpus=0)), "plugin", "DevicePluginNotRegistered"),
        (healthy(node_now=node(NODE, gpus=None)), "plugin", "DevicePluginNotRegistered"),
        (evidence([]), "probes", "PodVanished"),
        (evidence(sharers(3)), "probes", "PodVanished"),
        (evidence(broken_pods(probes.waiting(0, "ImagePullBackOff", "not found"))), "probes", "ImageUnpullable"),
        (evidence(broken_pods(probes.waiting(0, "ErrImagePull"))), "probes", "ImageUnpullable"),
        (evidence(broken_pods(probes.waiting(0, "CreateContainerError", "x"))), "probes", "ContainerNotStarted"),
        (evidence(broken_pods(probes.waiting(0, "ContainerCreating"))), "probes", "ProbeTimedOut"),
        (evidence(broken_pods(probes.running(0))), "probes", "ProbeTimedOut"),
        (evidence(broken_pods(probes.pod(0))), "probes", "ProbeTimedOut"),
        (
            evidence(broken_pods(probes.ended(0, text='no runtime for "nvidia"', code=128, reason="StartError"))),
            "probes",
            "ContainerNotStarted",
        ),
        (evidence(broken_pods(probes.ended(0, code=137, reason="OOMKilled"))), "probes", "ProbeOOMKilled"),
        (evidence(broken_pods(probes.ended(0, text="", code=0))), "probes", "NoOutput"),
        (evidence(broken_pods(probes.ended(0, text="", code=139))), "probes", "ProbeCrashed"),
        (evidence(broken_pods(probes.ended(0, code=3))), "probes", "ProbeCrashed"),
        (evidence(broken_pods(probes.ended(0, text="Test PASSED"))), "probes", "OutputNotJson"),
        (evidence(broken_pods(probes.ended(0, text="x" * 5000))), "probes", "OutputTooLarge"),
        (evidence(broken_pods(probes.ended(0, text=probes.message(startedAt=-1)))), "probes", "AbsurdFigures"),
        (
            evidence(broken_pods(probes.ended(0, code=1, text=probes.message(error=("NoGpuVisible", "none"))))),
            "probes",
            "NoGpuVisible",
        ),
        (
            evidence(
                broken_pods(
                    probes.ended(0, code=1, text=probes.message(vector_add=False, error=("VectorAddFailed", "wrong")))
                )
            ),
            "probes",
            "VectorAddFailed",
        ),
        (
            evidence(broken_pods(probes.refused(0, "no healthy devices present", role="user"))),
            "probes",
            "AdmissionRefused",
        ),
        (evidence(broken_pods(probes.refused(0, "x", "OutOfnvidia.com/gpu", role="user"))), "probes", "NoFreeGpu"),
        (evidence(broken_pods(probes.refused(0, "x", "DeadlineExceeded", role="user"))), "probes", "ProbeTimedOut"),
        (evidence(broken_pods(probes.refused(0, "x", "Evicted", role="user"))), "probes", "PodEvicted"),
        (evidence([*sharers(3), probes.unplaced(3), probes.unplaced(4)]), "probes", "NoFreeGpu"),
        (
            evidence([*sharers(3), probes.unplaced(3, "1 node(s) had untolerated taint"), probes.unplaced(4)]),
            "probes",
            "Unschedulable",
        ),
        (
            evidence(
                [*one_after_another(placed_late=True), probes.unplaced(4)],
                events=[probes.no_gpu_event(index) for index in range(4)],
            ),
            "concurrency",
            "RanOneAfterAnother",
        ),
        (
            evidence(
                [
                    *sharers(3),
                    probes.ended(3, text=probes.message(uuids=(OTHER_UUID,))),
                    probes.unplaced(4),
                ]
            ),
            "distribution",
            "DifferentGpus",
        ),
        (
            evidence(
                [*sharers(2), probes.ended(2, text=probes.message(uuids=(OTHER_UUID,))), probes.unplaced(3)], held=1
            ),
            "distribution",
            "DifferentGpus",
        ),
        (
            evidence(
                [*sharers(), probes.unplaced(4)], physical=4, replicas=1, node_now=node(NODE, gpus=4)
            ),
            "distribution",
            "GpuNotExclusive",
        ),
        (
            evidence([*sharers(), probes.unplaced(4)], physical=2, replicas=2, node_now=node(NODE, gpus=4)),
            "distribution",
            "GpuOvercommitted",
        ),
        (
            evidence([*sharers(3), probes.ended(3, text=probes.message(uuids=(UUID, OTHER_UUID))), probes.unplaced(4)]),
            "visible",
            "SeesWrongGpus",
        ),
        (evidence([*sharers(), probes.running(4, scheduled=35.0)]), "bound", "Oversubscribed"),
        (
            evidence([*sharers(), probes.unplaced(4), probes.ended(0, role="greedy")], greedy=True),
            "refusal",
            "TwoSharesGranted",
        ),
        (
            evidence([*sharers(), probes.unplaced(4), probes.running(0, role="greedy")], greedy=True),
            "refusal",
            "TwoSharesGranted",
        ),
    ],
)  # fmt: skip
def test_a_defect_has_its_own_reason_and_no_other(found: NodeEvidence, name: str, reason: str) -> None:
    report = judge_node(Probe.SHARING, found)
    failed = [(entry.name, entry.reason) for entry in report.checks if entry.outcome is Outcome.FAILED]
    assert failed == [(name, reason)]
    assert report.outcome is Outcome.FAILED
    assert report.cause is not None
    assert report.cause.reason == reason


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        (evidence([*sharers(), probes.unplaced(4, "node(s) had untolerated taint")]), "bound", "NotRefused"),
        (evidence([*sharers(), probes.pod(4, scheduled=None)]), "bound", "NotRefused"),
        (evidence([*sharers(), probes.running(4, scheduled=9.0)]), "bound", "NotRefused"),
        # Placed in time and started late, or placed late and not for want of a GPU: slow starts, not an unshared one.
        (evidence([*one_after_another(placed_late=False), probes.unplaced(4)]), "concurrency", "TooLittleOverlap"),
        (evidence([*one_after_another(placed_late=True), probes.unplaced(4)]), "concurrency", "TooLittleOverlap"),
        (
            evidence(
                [*one_after_another(placed_late=True), probes.unplaced(4)],
                events=[probes.refusal_event(3, "1 Insufficient cpu.")],
            ),
            "concurrency",
            "TooLittleOverlap",
        ),
    ],
)
def test_doubt_is_never_a_pass(found: NodeEvidence, name: str, reason: str) -> None:
    report = judge_node(Probe.SHARING, found)
    assert report.outcome is Outcome.INCONCLUSIVE
    assert check(report, name).reason == reason


# --- busy ------------------------------------------------------------------------------------------------


def test_a_node_that_a_probe_needs_to_itself_is_busy_and_not_said_to_be_full() -> None:
    report = judge_node(Probe.SHARING, evidence([], held=1, fill=0, users=0))
    assert report.outcome is Outcome.BUSY
    assert "users' pods hold 1 of its 4 shares of GPUs" in check(report, "room").message


def test_a_full_node_is_busy_not_broken() -> None:
    report = judge_node(Probe.SHARING, evidence([], held=4))
    assert report.outcome is Outcome.BUSY
    assert report.cause is not None
    assert report.cause.reason == "Busy"


def test_only_what_is_free_is_used_and_what_cannot_be_seen_is_skipped() -> None:
    report = judge_node(Probe.SHARING, evidence([*sharers(2), probes.unplaced(2)], held=2))
    assert report.outcome is Outcome.PASSED
    assert check(report, "physical").reason == "PartlyBusy"


def test_a_user_who_ends_meanwhile_makes_room_which_is_no_oversubscription() -> None:
    report = judge_node(Probe.SHARING, evidence([*sharers(2), probes.running(2, scheduled=20.0)], held=2))
    assert report.outcome is Outcome.PASSED
    assert check(report, "bound").reason == "OthersFreedGpus"


BUSY_PODS = UserPods(gpus=1, pods=1)
IDLE_PODS = UserPods(gpus=0, pods=1)
OUT_OF_MEMORY = "Failed to allocate device vector A (error code out of memory)"


def out_of_memory(reason: str = "VectorAddFailed", words: str = OUT_OF_MEMORY) -> Pods:
    bad = probes.ended(0, code=1, text=probes.message(vector_add=False, error=(reason, words)))
    return [bad, *(probes.ended(index) for index in range(1, 3)), probes.unplaced(3)]


@pytest.mark.parametrize(
    ("situation", "found", "name", "reason"),
    [
        (
            "a user's pod preempted a probe and runs",
            evidence([*sharers(3), probes.unplaced(4)], user_pods=BUSY_PODS),
            "probes",
            "TakenMeanwhile",
        ),
        (
            "a user's pod preempted a probe and has ended",
            evidence([*sharers(3), probes.unplaced(4)], user_pods=UserPods(preempted=True)),
            "probes",
            "TakenMeanwhile",
        ),
        (
            "a probe is just giving its place",
            evidence([probes.preempted(0), *(probes.ended(i) for i in range(1, 4)), probes.unplaced(4)]),
            "probes",
            "TakenMeanwhile",
        ),
        (
            "a user's pod took a GPU before the probes were placed",
            evidence([*sharers(3), probes.unplaced(3), probes.unplaced(4)], user_pods=BUSY_PODS),
            "probes",
            "TakenMeanwhile",
        ),
        (
            "a user's pod took a GPU for a while",
            evidence(
                [*one_after_another(placed_late=True), probes.unplaced(4)],
                events=[probes.no_gpu_event(3)],
                user_pods=BUSY_PODS,
            ),
            "concurrency",
            "TakenMeanwhile",
        ),
        (
            "clients of MPS wait for those of another user",
            evidence([probes.running(0), *sharers(3)], held=1, users=4, fill=4, promise=replace(PROMISE, mps=True)),
            "probes",
            "TakenMeanwhile",
        ),
        (
            "users' pods use up the CPU",
            evidence(
                [*sharers(3), probes.unplaced(3, "1 Insufficient cpu"), probes.unplaced(4, "1 Insufficient cpu")],
                user_pods=IDLE_PODS,
            ),
            "probes",
            "NoRoomLeft",
        ),
        (
            "users' pods used up the places for pods for a while",
            evidence(
                [*one_after_another(placed_late=True), probes.unplaced(4)],
                events=[probes.refusal_event(3, "1 Too many pods.")],
                user_pods=IDLE_PODS,
            ),
            "concurrency",
            "NoRoomLeft",
        ),
        ("a sharer of a user fills the memory", evidence(out_of_memory(), held=1), "probes", "MemoryInUse"),
        (
            "a sharer of a user fills the memory, by the driver's words",
            evidence(out_of_memory("CudaFailed", "cuCtxCreate_v2: out of memory (2)"), held=1),
            "probes",
            "MemoryInUse",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_what_others_do_meanwhile_is_not_the_nodes_fault(
    situation: str, found: NodeEvidence, name: str, reason: str
) -> None:
    report = judge_node(Probe.SHARING, found)
    assert report.outcome is Outcome.BUSY, situation
    assert report.cause is not None
    assert (report.cause.name, report.cause.reason) == (name, reason)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        # Nobody else is there.
        (evidence([*out_of_memory(), probes.unplaced(4)], users=5, fill=3), "VectorAddFailed"),
        # Others are there, and it is not the memory.
        (evidence(out_of_memory(words="no kernel image is available"), held=1), "VectorAddFailed"),
        # A GPU was taken, and another one is broken.
        (
            evidence(
                [
                    probes.ended(0, code=1, text=probes.message(error=("NoGpuVisible", "none"))),
                    *(probes.ended(i) for i in range(1, 3)),
                    probes.unplaced(4),
                ],
                user_pods=BUSY_PODS,
            ),
            "NoGpuVisible",
        ),
        # Those that were there when the probes were planned took nothing.
        (evidence([*sharers(2), probes.unplaced(2), probes.unplaced(3)], held=1, user_pods=BUSY_PODS), "NoFreeGpu"),
        (evidence(sharers(2), held=1, user_pods=BUSY_PODS), "PodVanished"),
        # Others are there, and it is not room that lacks.
        (
            evidence([*sharers(3), probes.unplaced(3, "untolerated taint"), probes.unplaced(4)], user_pods=IDLE_PODS),
            "Unschedulable",
        ),
    ],
)
def test_what_others_do_does_not_excuse_everything(found: NodeEvidence, reason: str) -> None:
    report = judge_node(Probe.SHARING, found)
    assert report.outcome is Outcome.FAILED
    assert report.cause is not None
    assert report.cause.reason == reason


def test_what_others_do_on_each_node() -> None:
    nominated = user_pod("arriving")
    nominated["status"] = {"phase": "Pending", "nominatedNodeName": "n2"}
    of_daemon_set = user_pod("agent", node_name="n2", gpus=0)
    of_daemon_set["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "agent"}]
    pods = [
        user_pod("training", node_name="n1", gpus=2),
        user_pod("over", node_name="n1", phase="Succeeded"),
        user_pod("unplaced"),
        probes.running(0, node="n1"),
        nominated,
        of_daemon_set,
    ]
    events = [probes.preempted_event("n3", NOW), probes.preempted_event("n4", NOW - 600)]
    assert user_pods_by_node(pods, events, since=NOW - 60) == {
        "n1": UserPods(gpus=2, pods=1),
        "n2": UserPods(gpus=1, pods=1),
        "n3": UserPods(preempted=True),
    }


@pytest.mark.parametrize(
    ("greedy", "reason"),
    [
        (None, "PodVanished"),
        (probes.refused(words="no healthy devices present"), "RefusedOtherwise"),
        (probes.unplaced(0, role="greedy"), "NotTried"),
    ],
)
def test_a_refusal_that_could_not_be_tried_is_skipped(greedy: dict[str, Any] | None, reason: str) -> None:
    pods = [*sharers(), probes.unplaced(4), *([greedy] if greedy else [])]
    report = judge_node(Probe.SHARING, evidence(pods, greedy=True))
    assert check(report, "refusal").reason == reason
    assert report.outcome is Outcome.PASSED


def test_every_rule_is_listed_whatever_failed() -> None:
    for probe in Probe:
        full = judge_node(probe, healthy())
        broken = judge_node(probe, healthy(gone=True))
        assert [entry.name for entry in full.checks] == [entry.name for entry in broken.checks]


@pytest.mark.parametrize("junk", [{}, {"status": None}, {"status": {"containerStatuses": [{}]}}, {"spec": None}])
def test_pods_without_anything_are_never_a_pass(junk: dict[str, Any]) -> None:
    junk = {"metadata": {}, **junk}
    junk["spec"] = {"nodeSelector": {"kubernetes.io/hostname": NODE}}
    assert judge_node(Probe.SHARING, evidence([junk] * 5)).outcome is Outcome.FAILED


# --- the pool --------------------------------------------------------------------------------------------


def pool(*outcomes: Outcome, checks: tuple[Check, ...] = ()) -> PoolReport:
    nodes = tuple(
        NodeReport(f"n{i}", {}, (Check("x", outcome, "Because", "of this"),)) for i, outcome in enumerate(outcomes)
    )
    return PoolReport("demo", "p", "sharing", "d/r", 1, 4, NOW - 9, NOW, nodes, checks)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((), Outcome.IDLE),
        ((Outcome.PASSED,), Outcome.PASSED),
        ((Outcome.PASSED, Outcome.BUSY), Outcome.PASSED),
        ((Outcome.BUSY, Outcome.BUSY), Outcome.BUSY),
        ((Outcome.PASSED, Outcome.FAILED, Outcome.BUSY), Outcome.FAILED),
        ((Outcome.FAILED, Outcome.INCONCLUSIVE), Outcome.FAILED),
        ((Outcome.PASSED, Outcome.INCONCLUSIVE), Outcome.INCONCLUSIVE),
        ((Outcome.SKIPPED,), Outcome.INCONCLUSIVE),
    ],
)
def test_a_pools_outcome(outcomes: tuple[Outcome, ...], expected: Outcome) -> None:
    assert pool(*outcomes).outcome is expected


def test_a_pool_check_that_passed_does_not_make_busy_nodes_pass() -> None:
    fine = Check("nodeClaims", Outcome.PASSED, "Unchanged", "")
    assert pool(Outcome.BUSY, checks=(fine,)).outcome is Outcome.BUSY


def test_a_pool_check_that_failed_fails_the_pool() -> None:
    bought = Check("nodeClaims", Outcome.FAILED, "NodeClaimsBought", "")
    report = pool(Outcome.PASSED, checks=(bought,))
    assert report.outcome is Outcome.FAILED
    assert report.failures()[0]["reason"] == "NodeClaimsBought"


def test_a_node_without_checks_is_never_a_pass() -> None:
    report = PoolReport("demo", "p", "sharing", "d/r", 1, 4, NOW, NOW, (NodeReport("n", {}, ()),))
    assert report.outcome is Outcome.INCONCLUSIVE
    assert report.failures()[0]["reason"] == "NothingChecked"


def test_a_report_survives_json() -> None:
    report = pool(Outcome.PASSED, Outcome.FAILED, checks=(Check("c", Outcome.PASSED, "R", "m", {"a": 1}),))
    assert PoolReport.from_json(report.to_json()) == report
    assert report.summary()["nodes"] == {"n0": "Passed", "n1": "Failed"}


def test_the_sentence_names_nodes_and_causes() -> None:
    sentence = pool(Outcome.PASSED, Outcome.FAILED).sentence()
    assert "1 Failed, 1 Passed" in sentence
    assert "n1: Because: of this" in sentence


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('pods "x" is forbidden: pod rejected: RuntimeClass "nvidia" not found', "RuntimeClassMissing"),
        ('pods "x" is forbidden: exceeded quota: q', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity', "ProbesForbidden"),
    ],
)
def test_probes_that_the_server_refuses_to_create(text: str, reason: str) -> None:
    report = refused_node("n", refusal_reason(text), text)
    assert report.outcome is Outcome.FAILED
    assert report.cause is not None
    assert report.cause.reason == reason
