"""The defect table: whatever is wrong with GPU capacity, a revalidation finds it where it is and calls it by its name.

Defects are grouped into rounds, at most one per node; the first test of a round plays it. Each test asserts the reasons
of its own defect's nodes: exactly one, and that nodes without a defect are blamed for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e import revalidation
from tests.e2e.fleet import SHARED, WHOLE, Fleet, Json, cluster_spec, merged, until
from tests.e2e.revalidation import Defect, Findings, left_behind, play, revalidate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

PRESENT = "nvidia.com/gpu.present"

#: Round to its defects.
ROUNDS: dict[str, tuple[Defect, ...]] = {
    "starved and lost": (
        Defect("a starved sharer", "SharerStarved", fault="starved-sharer", params={"share": 0.05}),
        Defect("a GPU that is gone", "GpuLost", pool=WHOLE, fault="gpu-lost", slots=7),
    ),
    "replicas and XID": (
        Defect(
            "other replicas on one node",
            "AllocatableMismatch",
            fault="advertise-replicas",
            params={"value": 3},
            slots=3,
        ),
        Defect("an XID", "XidError", node=1, fault="xid", params={"code": 79}, slots=3),
    ),
    "split and garbage": (
        Defect("sharers on different GPUs", "DifferentGpus", fault="split-sharers"),
        Defect("output that is no JSON", "OutputNotJson", node=1, fault="probe-output", params={"kind": "garbage"}),
    ),
    "no sharing and old driver": (
        Defect("no sharing block", "SharingNotApplied", fault="no-sharing-block", slots=1),
        Defect("an old driver", "DriverTooOld", node=1, fault="driver-version", params={"value": "535.183.01"}),
    ),
    "huge and negative output": (
        Defect("huge output", "OutputTooLarge", fault="probe-output", params={"kind": "huge"}),
        Defect("negative figures", "AbsurdFigures", node=1, fault="probe-output", params={"kind": "negative"}),
    ),
    "skew and an image": (
        Defect("a clock that is wrong", "ClockSkew", fault="probe-output", params={"kind": "skew"}),
        Defect("an image that cannot be pulled", "ImageUnpullable", node=1, fault="image-unpullable"),
    ),
    "unregistered and silent": (
        # The kubelet forgets a plugin that does not come back after five minutes, here twenty seconds.
        Defect(
            "a plugin that never registers",
            "DevicePluginNotRegistered",
            fault="gpu-never-registers",
            slots=0,
            capacity=0,
        ),
        Defect("no output", "NoOutput", node=1, fault="probe-output", params={"kind": "empty"}),
    ),
    "taint and label": (
        Defect(
            "a taint that is missing", "TaintMissing", breaks=revalidation.without_taint, mends=revalidation.with_taint
        ),
        Defect(
            "a label that is missing",
            "LabelMissing",
            node=1,
            breaks=revalidation.without_label(PRESENT),
            mends=revalidation.with_label(PRESENT, "true"),
        ),
    ),
    "no RuntimeClass": (
        Defect(
            "no RuntimeClass",
            "RuntimeClassMissing",
            node=None,
            breaks=revalidation.without_runtime_class,
            mends=revalidation.with_runtime_class,
        ),
    ),
    "vanished and busy": (
        Defect("a node that vanishes", "NodeVanished", meanwhile=revalidation.lose_power),
        Defect("GPUs in use", "Busy", node=1, breaks=revalidation.occupy, mends=revalidation.vacate),
    ),
}
IN_MAKE_TEST = ("starved and lost", "replicas and XID", "split and garbage")
#: Round to what its spec has in addition. An image that no node has pulled yet: what is on a node's disk needs no
#: registry. And time for its pods, in simulated seconds, so that a pull is given up (45 real ones) before they are.
SPECS: dict[str, Json] = {
    "skew and an image": {
        "validation": {"images": {"vectorAdd": "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubi8"}},
        "deadlines": {"validation": "20m"},
    }
}

Rounds = Callable[[str], Findings]


@pytest.fixture(scope="module")
def rounds(the_fleet: Fleet) -> Rounds:
    """Plays a round when it is first asked for."""
    played: dict[str, Findings] = {}
    the_fleet.repair()
    the_fleet.stand()

    def findings(name: str) -> Findings:
        if name not in played:
            the_fleet.write_spec(merged(cluster_spec(), SPECS.get(name, {})))
            try:
                played[name] = play(the_fleet, ROUNDS[name])
            finally:
                the_fleet.write_cluster()
        return played[name]

    return findings


def every_defect() -> list[object]:
    return [
        pytest.param(
            name, defect, id=f"{defect.name}: {defect.reason}", marks=() if name in IN_MAKE_TEST else pytest.mark.full
        )
        for name, defects in ROUNDS.items()
        for defect in defects
    ]


@pytest.mark.parametrize(("name", "defect"), every_defect())
def test_defect_is_found_where_it_is_and_called_by_its_name(
    rounds: Rounds, fleet: Fleet, name: str, defect: Defect
) -> None:
    findings = rounds(name)
    fleet.runs.append((findings.run.dag_id, findings.run.run_id))
    expected = {
        node: {each.reason} for each in ROUNDS[name] if each.pool == defect.pool for node in findings.defects[each.name]
    }
    assert findings.blamed[defect.pool] == expected, findings.told(defect.pool)
    assert findings.left == []
    failures = [each for each in ROUNDS[name] if each.reason != "Busy"]
    assert findings.run.state == ("failed" if failures else "success")
    if defect in failures:
        told = [failure for report in findings.reports(defect.pool) for failure in report_failures(report)]
        assert {(failure["node"], failure["reason"]) for failure in told} >= {
            (node, defect.reason) for node in findings.defects[defect.name]
        }
        # The run's last words name the task that failed, and its log the cause.
        group = revalidation.group(defect.pool)
        failed = [task for task in findings.run.failed if task.startswith(f"{group}.")]
        naming = [task for task in failed if defect.reason in findings.run.log(task)]
        assert naming, f"none of {failed} names {defect.reason}"
        assert all(task in findings.run.log("run_verdict") for task in naming)


def report_failures(report: Json) -> list[Json]:
    """Node, reason and message of everything that failed."""
    return [
        {"node": node["node"], **check}
        for node in report["nodes"]
        for check in node["checks"]
        if check["outcome"] in ("Failed", "Inconclusive")
    ]


@pytest.mark.full
def test_healthy_capacity_raises_no_alarm_afterwards(rounds: Rounds, fleet: Fleet) -> None:
    """Also of one node alone."""
    fleet.stand()
    claims = set(fleet.node_claims())
    run = revalidate(fleet, SHARED, WHOLE).succeeded()
    for pool in (SHARED, WHOLE):
        assert revalidation.blamed(run, pool) == {}
        outcomes = {report["probe"]: report["outcome"] for report in revalidation.reports(run, pool)}
        assert set(outcomes) == {"sharing" if pool == SHARED else "exclusive", "throughput"}
        assert set(outcomes.values()) == {"Passed"}
    assert left_behind(fleet, claims) == []


@pytest.mark.full
def test_one_node_is_validated_alone(rounds: Rounds, fleet: Fleet) -> None:
    fleet.stand()
    one, other = revalidation.names_of(fleet, SHARED)
    with fleet.fault("xid", {"node": other, "code": 79}):
        until("the XID", lambda: revalidation.offers(fleet, other) == 3)
        run = revalidate(fleet, node=one).succeeded()
    until("healthy nodes again", lambda: revalidation.healthy(fleet))
    probed = {node["node"] for report in revalidation.reports(run, SHARED) for node in report["nodes"]}
    assert probed == {one}
    assert revalidation.reports(run, WHOLE) == []


@pytest.mark.full
def test_a_pool_that_is_not_there_is_named(rounds: Rounds, fleet: Fleet) -> None:
    with pytest.raises(Exception, match="no-such-pool"):
        revalidate(fleet, "no-such-pool")
