"""What a probe does on a node, and the pods it makes."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.probes.plan import (
    SCRIPTS,
    NodeRound,
    Probe,
    Role,
    diagnosable_gpus,
    holds,
    plan_round,
    pod_name,
    reusable,
    selector,
)
from gpu_fleet.core.probes.pods import PodMaker
from tests.unit.core import probe_objects
from tests.unit.core.probe_objects import NODE
from tests.unit.core.specs import REPOSITORY, demo_spec

SHARED, WHOLE = "shared-a10g", "whole-a100"


def plan(probe: Probe, *, pool: str = SHARED, slots: int = 4, held: int = 0, **changes: Any) -> NodeRound:
    spec = demo_spec(**changes)
    return plan_round(probe, spec, spec.pool(pool), NODE, slots=slots, held=held)


@pytest.mark.parametrize(
    ("probe", "pool", "slots", "held", "expected"),
    [
        (Probe.SHARING, SHARED, 4, 0, NodeRound(NODE, users=5, fill=4, greedy=True, held=0)),
        (Probe.SHARING, SHARED, 4, 2, NodeRound(NODE, users=3, fill=2, greedy=True, held=2)),
        (Probe.SHARING, SHARED, 4, 3, NodeRound(NODE, users=2, fill=1, greedy=False, held=3)),
        (Probe.SHARING, SHARED, 4, 4, NodeRound(NODE, users=0, fill=0, greedy=False, held=4)),
        (Probe.SHARING, SHARED, 4, 9, NodeRound(NODE, users=0, fill=0, greedy=False, held=9)),
        (Probe.EXCLUSIVE, WHOLE, 8, 0, NodeRound(NODE, users=9, fill=8, greedy=False, held=0)),
        (Probe.VECTORADD, SHARED, 4, 0, NodeRound(NODE, users=1, fill=1, greedy=False, held=0)),
        (Probe.VECTORADD, SHARED, 4, 4, NodeRound(NODE, users=0, fill=0, greedy=False, held=4)),
        (Probe.OVERFLOW, SHARED, 4, 0, NodeRound(NODE, users=0, fill=0, greedy=True, held=0)),
        (Probe.OVERFLOW, SHARED, 4, 3, NodeRound(NODE, users=0, fill=0, greedy=False, held=3)),
        (Probe.OVERFLOW, WHOLE, 8, 0, NodeRound(NODE, users=0, fill=0, greedy=False, held=0)),
        (Probe.THROUGHPUT, SHARED, 4, 0, NodeRound(NODE, users=4, fill=4, greedy=False, held=0)),
        (Probe.THROUGHPUT, SHARED, 4, 1, NodeRound(NODE, users=0, fill=0, greedy=False, held=1)),
        (Probe.THROUGHPUT, SHARED, 16, 1, NodeRound(NODE, users=0, fill=0, greedy=False, held=1)),
        (Probe.THROUGHPUT, WHOLE, 8, 8, NodeRound(NODE, users=0, fill=0, greedy=False, held=8)),
        (Probe.DCGM, SHARED, 4, 0, NodeRound(NODE, users=1, fill=1, greedy=False, held=0, holders=3)),
        (Probe.DCGM, SHARED, 4, 1, NodeRound(NODE, users=0, fill=0, greedy=False, held=1)),
    ],
)
def test_only_what_is_free_is_used(probe: Probe, pool: str, slots: int, held: int, expected: NodeRound) -> None:
    found = plan(probe, pool=pool, slots=slots, held=held)
    assert found == expected
    assert NodeRound.from_json(found.to_json()) == found


def test_a_spec_that_allows_requests_for_two_tries_none() -> None:
    assert not plan(Probe.SHARING, nodePools__0__sharing__failRequestsGreaterThanOne=False).greedy


def test_a_spec_without_the_pod_too_many() -> None:
    assert plan(Probe.SHARING, validation__probes__oversubscription=False).users == 4


@pytest.mark.parametrize(
    ("sharing", "physical", "gpus"),
    [
        ({"mode": "exclusive"}, 8, 8),
        ({"mode": "exclusive"}, 1, 1),
        ({"mode": "timeSlicing", "replicas": 4}, 1, 1),
        ({"mode": "timeSlicing", "replicas": 4}, 8, None),
        ({"mode": "timeSlicing", "replicas": 4, "failRequestsGreaterThanOne": False}, 8, 32),
        ({"mode": "mps", "replicas": 4}, 1, None),
    ],
)
def test_what_a_container_asks_for_to_see_every_gpu(sharing: dict[str, Any], physical: int, gpus: int | None) -> None:
    pool = demo_spec(nodePools__0__sharing=sharing).node_pools[0]
    assert diagnosable_gpus(pool, physical) == gpus


@pytest.mark.parametrize("probe", [Probe.VECTORADD, Probe.SHARING, Probe.THROUGHPUT, Probe.DCGM])
def test_beside_clients_of_mps_of_others_nothing_is_probed(probe: Probe) -> None:
    """Their server serves one user id at a time: the probes would wait for them."""
    mps = {"nodePools__0__sharing": {"mode": "mps", "replicas": 4}}
    assert plan(probe, held=1, **mps).busy
    assert plan(probe, held=0, **mps).busy is (probe is Probe.DCGM)


def pods(probe: Probe = Probe.SHARING, pool: str = SHARED, **changes: Any) -> list[dict[str, Any]]:
    spec = demo_spec(**changes)
    slots = 4 if pool == SHARED else 8
    round_ = plan_round(probe, spec, spec.pool(pool), NODE, slots=slots, held=0)
    return PodMaker(probe, spec, spec.pool(pool), script="echo", run="d/r", run_label="abc").pods(round_)


def test_the_greedy_pod_comes_first_and_asks_for_two() -> None:
    made = pods()
    limits = [pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in made]
    assert limits == ["2", "1", "1", "1", "1", "1"]
    assert len({pod["metadata"]["name"] for pod in made}) == 6


@pytest.mark.parametrize("probe", [Probe.SHARING, Probe.VECTORADD, Probe.THROUGHPUT])
def test_every_pod_is_pinned_bounded_unprivileged_and_owned(probe: Probe) -> None:
    for pod in pods(probe):
        body, (container,) = pod["spec"], pod["spec"]["containers"]
        assert body["nodeSelector"] == {"kubernetes.io/hostname": NODE}
        assert body["activeDeadlineSeconds"] == 900
        assert body["restartPolicy"] == "Never"
        assert body["priorityClassName"] == "gpu-fleet-placeholder"
        assert body["runtimeClassName"] == "nvidia"
        assert body["automountServiceAccountToken"] is False
        assert body["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in body[
            "tolerations"
        ]
        # A quarantined node is cordoned and tainted; only a probe can show that it works again.
        tolerated = {toleration["key"] for toleration in body["tolerations"]}
        # Nor does a node of a gated pool take anything else before its proof.
        marks = {"gpu-fleet.io/quarantined", "gpu-fleet.io/unproven"}
        assert tolerated == {"nvidia.com/gpu", *marks, "node.kubernetes.io/unschedulable"}
        assert pod["metadata"]["annotations"]["gpu-fleet.io/dag-run"] == "d/r"
        assert len(pod["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("probe", "begins", "ends"),
    [
        (Probe.SHARING, ["/opt/busybox", "sh", "-c"], ["gpu", "20", "/opt/vectorAdd", "--device", "$(id)"]),
        (Probe.THROUGHPUT, ["/opt/python", "-I", "-c"], []),
        (Probe.DCGM, ["/opt/busybox", "sh", "-c"], ["dcgm", "1"]),
    ],
)
def test_commands_of_the_spec_are_used_as_they_stand(probe: Probe, begins: list[str], ends: list[str]) -> None:
    commands = {
        "vectorAdd": ["/opt/vectorAdd", "--device", "$(id)"],
        "shell": ["/opt/busybox", "sh"],
        "python": ["/opt/python", "-I"],
    }
    command = pods(probe, validation__commands=commands)[-1]["spec"]["containers"][0]["command"]
    assert command[: len(begins)] == begins
    assert command[len(command) - len(ends) :] == ends


def test_sharers_hold_the_gpu_so_that_they_overlap_and_a_single_vectoradd_does_not() -> None:
    assert pods()[1]["spec"]["containers"][0]["command"][:2] == ["/bin/sh", "-c"]
    assert pods()[1]["spec"]["containers"][0]["command"][-2:] == ["20", "/cuda-samples/vectorAdd"]
    assert pods()[0]["spec"]["containers"][0]["command"][-2] == "0"
    assert pods(Probe.VECTORADD)[0]["spec"]["containers"][0]["command"][-2] == "0"


def test_without_vectoradd_the_plain_cuda_image_is_used() -> None:
    (container,) = pods(validation__probes__vectorAdd=False)[1]["spec"]["containers"]
    assert container["image"].startswith("nvidia/cuda:")
    assert container["command"][-1] == "-"


def test_one_sharer_computes_on_alone_when_the_others_have_surely_ended() -> None:
    made = [pod["spec"]["containers"][0] for pod in pods(Probe.THROUGHPUT)]
    assert [container["command"] for container in made] == [
        ["python3", "-c", "echo", seconds] for seconds in ("60", "30", "30", "30")
    ]
    assert {container["image"] for container in made} == {"public.ecr.aws/docker/library/python:3.12-slim-bookworm"}
    assert made[0]["env"] == [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}]


def test_whole_gpus_wait_for_nobody() -> None:
    made = [pod["spec"]["containers"][0]["command"][-1] for pod in pods(Probe.THROUGHPUT, WHOLE)]
    assert made == ["10"] * 8


def test_diagnostics_run_as_root_without_any_capability_and_ask_for_all_gpus() -> None:
    spec = demo_spec(validation__probes__dcgm=2)
    whole = spec.pool(WHOLE)
    round_ = plan_round(Probe.DCGM, spec, whole, NODE, slots=8, held=0, physical=8)
    (pod,) = PodMaker(Probe.DCGM, spec, whole, script="echo", run="d/r", run_label="abc").pods(round_)
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["command"] == ["/bin/sh", "-c", "echo", "dcgm", "2"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["volumeMounts"][0]["mountPath"] == "/scratch"
    assert "runAsNonRoot" not in pod["spec"]["securityContext"]
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": NODE}


def test_diagnostics_of_a_shared_gpu_have_its_other_shares_held_by_pods_that_do_nothing() -> None:
    *holders, diagnostics = pods(Probe.DCGM)
    assert [pod["metadata"]["labels"]["gpu-fleet.io/role"] for pod in holders] == ["holder"] * 3
    assert len({pod["metadata"]["name"] for pod in [*holders, diagnostics]}) == 4
    for pod in holders:
        (container,) = pod["spec"]["containers"]
        assert container["image"].startswith("registry.k8s.io/pause")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "command" not in container
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["priorityClassName"] == diagnostics["spec"]["priorityClassName"]
    assert diagnostics["spec"]["containers"][0]["command"][-2] == "dcgm"


def test_every_probes_program_is_there() -> None:
    assert {(REPOSITORY / "include" / "probes" / name).is_file() for name in SCRIPTS.values()} == {True}
    assert set(SCRIPTS) == set(Probe)


def test_pull_secrets_of_the_spec() -> None:
    made = pods(validation__imagePullSecrets=["mirror"])
    assert made[0]["spec"]["imagePullSecrets"] == [{"name": "mirror"}]


def test_names_are_the_same_in_every_try_and_differ_between_nodes_and_runs() -> None:
    name = pod_name(Probe.SHARING, Role.USER, NODE, 0, "run-a")
    assert name == pod_name(Probe.SHARING, Role.USER, NODE, 0, "run-a")
    assert name != pod_name(Probe.SHARING, Role.USER, NODE, 0, "run-b")
    assert name != pod_name(Probe.SHARING, Role.USER, NODE.replace("west-2", "east-1"), 0, "run-a")
    assert len(pod_name(Probe.EXCLUSIVE, Role.GREEDY, "n" * 200, 100, "r")) <= 63


def test_selectors_narrow_down() -> None:
    assert selector("p") == "gpu-fleet.io/component=probe,gpu-fleet.io/pool=p"
    assert selector("p", Probe.SHARING, "r").endswith("gpu-fleet.io/probe=sharing,gpu-fleet.io/run=r")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"phase": "Pending"}, True),
        ({"phase": "Failed"}, False),
        ({"startTime": None}, False),
    ],
)
def test_a_share_is_held_once_the_kubelet_has_taken_the_holder_on(changes: dict[str, Any], expected: bool) -> None:
    pod = probe_objects.running(0, role="holder")
    pod["status"] |= {"startTime": "2026-01-01T00:00:00Z"} | changes
    assert holds(pod) is expected
    assert not holds(probe_objects.unplaced(0, role="holder"))


NAMES = [f"sharing-user-{index}" for index in range(3)]


@pytest.mark.parametrize(
    ("situation", "existing", "expected"),
    [
        ("killed while creating", [probe_objects.running(0)], True),
        ("killed while waiting", [probe_objects.running(0), probe_objects.ended(1), probe_objects.unplaced(2)], True),
        ("killed after the end", [probe_objects.ended(i) for i in range(3)], True),
        ("killed while creating, long ago", [probe_objects.ended(0)], False),
        ("killed while deleting", [probe_objects.ended(1), probe_objects.unplaced(2)], False),
        ("of a plan that no longer holds", [probe_objects.running(7)], False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_earlier_try_left(situation: str, existing: list[dict[str, Any]], expected: bool) -> None:
    assert reusable(existing, NAMES) is expected, situation


def test_terminating_pods_cannot_be_built_on() -> None:
    leaving = probe_objects.running(0)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not reusable([leaving], NAMES)
