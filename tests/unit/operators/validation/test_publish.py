"""Publishing a pool's verdict: which events with what in them, and who is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias

from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.nodes.drifted import DriftedNode
from gpu_fleet.core.nodes.template import Change
from gpu_fleet.core.pools.assets import MAX_EXTRA, Topic, uri
from gpu_fleet.core.reservations.reservation import Reservation
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.spec.capacity import CapacityBlock, ReservationTerm
from gpu_fleet.core.validation.report import PoolReport
from gpu_fleet.operators.admission.admit import AdmitNodesOperator
from gpu_fleet.operators.capacity.climbing import LADDER
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.drifted import DRIFTED
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.operators.pool import FAILURE
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import HoldCapacityOperator
from gpu_fleet.operators.validation.nodes import LOWER_RUNGS, ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import REMEDIATION, VERDICT, PublishPoolOperator
from gpu_fleet.operators.validation.telling import TOLD
from tests.unit import notifying
from tests.unit.airflow_context import StateStore, TaskInstance
from tests.unit.core.specs import demo_spec
from tests.unit.report_objects import broken, broken_node, busy_node, healthy, host, node, report

POOL = "shared-a10g"
#: Minutes; far more than the pool's consolidateAfter.
HOLD = 600
READY, VALIDATED, NOT_READY = (uri("demo", POOL, topic) for topic in (Topic.READY, Topic.VALIDATED, Topic.NOT_READY))


@pytest.fixture(autouse=True)
def _calls() -> Iterator[None]:
    notifying.CALLS.clear()
    yield
    notifying.GO_ON.set()


class Run(TaskInstance):
    """A run whose tasks before the publishing one left these XComs."""

    def __init__(self, spec: ClusterSpec, left: dict[tuple[str, str], Any]) -> None:
        super().__init__(run_id="scheduled__2026-11-23T04:00:00+00:00", dag_id="gpu_revalidate.demo", spec=spec)
        self.left = left

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value") -> Any:
        return self._frozen if task_ids == "freeze_spec" else self.left.get((task_ids, key))


class Emitted:
    """``context["outlet_events"][alias]``."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}

    def add(self, asset: Asset, extra: dict[str, Any]) -> None:
        self.events[asset.uri] = extra


class Past:
    """``context["inlet_events"][asset]``: newest first and limited, as the operator asks for it."""

    def __init__(self, at: float | None) -> None:
        self.found = [] if at is None else [SimpleNamespace(timestamp=datetime.fromtimestamp(at, UTC))]

    def ascending(self, value: bool) -> Past:
        assert value is False
        return self

    def limit(self, count: int) -> list[Any]:
        return self.found[:count]


def run(
    reports: list[PoolReport | None],
    *,
    before: Topic | None = None,
    remediation: dict[str, Any] | None = None,
    notify: list[dict[str, Any]] | None = None,
    store: StateStore | None = None,
    max_tries: int = 2,
    blamed: list[str] | None = None,
    held: list[str] | None = None,
    hold: bool = False,
    drifted: list[dict[str, Any]] | None = None,
    older: dict[str, list[str]] | None = None,
    refused: dict[str, str] | None = None,
    not_opened: dict[str, str] | None = None,
    climb: dict[str, Any] | None = None,
    lower: str | None = None,
    block: CapacityBlock | None = None,
) -> SimpleNamespace:
    """One publishing task after these probes; ``before``: which topic had the pool's newest event."""
    spec = demo_spec(validation={"notify": notify or []})
    pool = spec.pool(POOL)
    minutes = pool.capacity.model_copy(update={"hold": HOLD})
    changed = pool.model_copy(update={"capacity": minutes})
    if block is not None:
        terms = (ReservationTerm(id="cr-1"),)
        reserved = {"capacity_types": ("reserved",), "capacity_reservations": terms, "capacity_block": block}
        changed = changed.model_copy(update=reserved)
    spec = spec.model_copy(update={"node_pools": (changed,)})
    names = ["sharing", "vectoradd"][: len(reports)]
    with DAG("gpu_revalidate.demo", schedule=None):
        protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
        probes = [RunProbesOperator(task_id=name, node_pool=POOL, probe=name) for name in names]
        remediate = CleanUpValidationOperator(task_id="remediate", node_pool=POOL)
        publish = PublishPoolOperator(task_id="publish", node_pool=POOL)
        if climb is not None:
            AwaitCapacityOperator(task_id="await", node_pool=POOL) >> protect
        RequestCapacityOperator(task_id="request", node_pool=POOL) >> protect >> probes >> remediate >> publish
        if not_opened is not None:
            probes >> AdmitNodesOperator(task_id="admit_nodes", node_pool=POOL) >> publish
        if hold:
            probes >> HoldCapacityOperator(task_id="hold", node_pool=POOL) >> publish
    nodes = sorted({node.node for one in reports if one is not None for node in one.nodes})
    left: dict[tuple[str, str], Any] = {
        ("protect", "return_value"): {"nodes": nodes, "physical": 1, "replicas": 4, "blamed": blamed or []}
        | ({"drifted": older} if older else {}),
        ("protect", DRIFTED): drifted,
        ("remediate", REMEDIATION): remediation,
        ("request", FAILURE): refused,
        ("hold", "return_value"): held,
        ("admit_nodes", FAILURE): not_opened,
        ("await", LADDER): climb,
        ("protect", LOWER_RUNGS): lower,
    }
    for name, one in zip(names, reports, strict=True):
        if one is not None:
            left[name, "report"], left[name, "summary"] = one.to_json(), one.summary()
    ti, emitted = Run(spec, left), Emitted()
    ti.max_tries = max_tries
    context = {
        "ti": ti,
        "params": {},
        "task_state_store": StateStore() if store is None else store,
        "outlet_events": {AssetAlias(f"gpu-fleet://demo/{POOL}"): emitted},
        "inlet_events": {Asset(uri("demo", POOL, topic)): Past(5.0 if topic is before else None) for topic in Topic},
    }
    returned = publish.execute(context)
    return SimpleNamespace(returned=returned, events=emitted.events, verdict=ti.xcoms[VERDICT], task=publish, ti=ti)


def test_drifted_nodes_are_told_with_the_verdict_and_in_short_with_each_event() -> None:
    node = DriftedNode(
        host(1),
        "claim",
        POOL,
        since="2026-10-01T00:00:00Z",
        reason="AMIDrift",
        changes=(Change("amiAlias", "a", "b"),),
        pods=("ml/train", "ml/other"),
    )
    done = run([healthy()], drifted=[node.to_json()] * 30)
    assert len(done.verdict["drifted"]) == 30
    assert done.verdict["drifted"][0]["message"] == str(node)
    extra = done.events[READY]
    assert len(extra["drifted"]) == 10
    assert extra["drifted"][0] == {
        "node": host(1),
        "since": "2026-10-01T00:00:00Z",
        "reason": "AMIDrift",
        "fields": ["amiAlias"],
        "gpuPods": 2,
    }
    assert "drifted" not in run([healthy()]).events[READY]


# --- gated pools ---
def test_a_proven_pool_whose_nodes_were_not_opened_is_not_ready() -> None:
    """Its consumers' pods would find no node that takes them."""
    failure = {"reason": "Forbidden", "message": "cannot patch nodes/status"}
    done = run([healthy()], not_opened=failure)
    assert READY not in done.events
    assert (done.verdict["outcome"], done.verdict["reason"]) == ("NotValidated", "Forbidden")


def test_a_defect_that_was_found_counts_more_than_that_nodes_were_not_opened() -> None:
    done = run([broken()], not_opened={"reason": "Forbidden", "message": "cannot patch nodes/status"})
    assert done.verdict["outcome"] == "Failed"
    assert done.verdict["reason"] != "Forbidden"


def test_a_gated_pool_whose_nodes_were_opened_is_ready() -> None:
    assert READY in run([healthy()], not_opened={}).events


# --- events ----------------------------------------------------------------------------------------------------------
def test_a_pool_that_stands_on_a_lower_rung_says_so_and_has_passed() -> None:
    attempts = [
        {"rung": 1, "what": "g5.xlarge spot", "result": "GivenUp", "reason": "InsufficientCapacity", "said": "x" * 500},
        {"rung": 2, "what": "g5.2xlarge on-demand", "result": "Capacity", "bought": [{"nodeClaim": "c"}]},
    ]
    climb = {"of": 2, "attempts": attempts, "lower": True, "sentence": "capacity came on a lower rung", "short": ""}
    done = run([healthy()], climb=climb, notify=told(("RecordingNotifier", "{{ message }}")))
    assert done.returned["outcome"] == "Passed"
    assert done.verdict["message"].endswith("; capacity came on a lower rung")
    assert done.verdict["ladder"] == climb
    assert [call for _, call in notifying.CALLS if "capacity came on a lower rung" in call["message"]]
    extra = done.events[READY]["ladder"]
    assert (extra["of"], extra["lower"]) == (2, True)
    assert [each["rung"] for each in extra["attempts"]] == [1, 2]
    assert len(extra["attempts"][0]["said"]) < 200
    assert extra["attempts"][1]["nodeClaims"] == ["c"]
    assert "ladder" not in run([healthy()]).events[READY]


def test_a_revalidation_says_which_nodes_stand_on_a_lower_rung() -> None:
    assert run([healthy()], lower="1 node(s) stand on a lower rung").verdict["lowerRungs"].startswith("1 node(s)")
    assert run([healthy()]).verdict["lowerRungs"] == ""


def test_the_first_proof_makes_the_pool_ready() -> None:
    done = run([healthy()])
    assert set(done.events) == {VALIDATED, READY}
    extra = done.events[READY]
    assert extra["nodes"] == {host(1): "Passed", host(2): "Passed"}
    assert extra["gpus"] == {"physical": 2, "allocatable": 8}
    assert extra["report"] == ("/gpu-fleet/reports/gpu_revalidate.demo/scheduled__2026-11-23T04%3A00%3A00%2B00%3A00")
    assert extra["validUntil"] > extra["at"]
    assert done.returned == {
        "pool": POOL,
        "outcome": "Passed",
        "reason": "Validated",
        "events": [VALIDATED, READY],
    }


def test_a_revalidation_does_not_start_users_jobs_again() -> None:
    assert set(run([healthy()], before=Topic.READY).events) == {VALIDATED}
    assert set(run([healthy()], before=Topic.VALIDATED).events) == {VALIDATED}


def test_a_failure_has_no_validity_and_names_its_nodes() -> None:
    done = run([broken()], before=Topic.READY)
    assert set(done.events) == {NOT_READY}
    extra = done.events[NOT_READY]
    assert extra["nodes"][host(2)] == "Failed: AllocatableMismatch"
    assert "validUntil" not in extra
    assert (extra["was"], extra["outcome"], extra["reason"]) == ("Ready", "Failed", "AllocatableMismatch")


def test_a_quarantined_node_does_not_take_the_pool_down() -> None:
    remediation = {"policy": "quarantine", "quarantined": [host(2)], "released": [], "replaced": [], "left": []}
    done = run([broken()], before=Topic.READY, remediation=remediation)
    assert set(done.events) == {VALIDATED}
    extra = done.events[VALIDATED]
    assert (extra["reason"], extra["without"]) == ("ValidatedWithout", [host(2)])
    assert extra["gpus"] == {"physical": 1, "allocatable": 4}
    assert done.verdict["remediation"] == remediation
    assert done.verdict["now"] == "Ready"


def test_a_failed_pool_becomes_ready_when_its_bad_node_is_out() -> None:
    done = run([broken()], before=Topic.NOT_READY, remediation={"quarantined": [host(2)]})
    assert set(done.events) == {VALIDATED, READY}


def test_a_pool_does_not_become_ready_while_the_node_that_failed_is_busy() -> None:
    reports: list[PoolReport | None] = [report(busy_node(1), node(2))]
    done = run(reports, before=Topic.NOT_READY, blamed=[host(1)], notify=TELL)
    assert (done.events, notifying.CALLS) == ({}, [])
    assert (done.verdict["now"], done.verdict["reason"]) == ("NotReady", "NodesUnproven")
    assert host(1) in done.verdict["message"]
    assert set(run([healthy()], before=Topic.NOT_READY, blamed=[host(1)]).events) == {VALIDATED, READY}


@pytest.mark.parametrize(
    ("reports", "reason"),
    [([report(busy_node(1))], "Busy"), ([report()], "Idle")],
    ids=["busy", "idle"],
)
def test_neither_pass_nor_alarm(reports: list[PoolReport | None], reason: str) -> None:
    done = run(reports)
    assert done.events == {}
    assert (done.verdict["reason"], done.verdict["was"], done.verdict["now"]) == (reason, "Unknown", "Unknown")


def test_fifty_failed_nodes_fit_into_the_event() -> None:
    done = run([report(*(broken_node(number, "DevicePluginNotRegistered", "w" * 500) for number in range(50)))])
    extra = done.events[NOT_READY]
    assert len(json.dumps(extra)) <= MAX_EXTRA
    assert len(extra["nodes"]) == 50


@pytest.mark.parametrize(
    ("hold", "held", "counts"),
    [(False, None, False), (True, ["hold-1"], True), (True, [], False), (True, None, False)],
    ids=["a revalidation", "held", "nothing to hold", "the hold failed"],
)
def test_a_hold_counts_only_where_the_run_holds_nodes(hold: bool, held: list[str] | None, counts: bool) -> None:
    extra = run([healthy()], hold=hold, held=held).events[VALIDATED]
    valid = datetime.fromisoformat(extra["validUntil"]) - datetime.fromisoformat(extra["at"])
    assert (valid >= timedelta(minutes=HOLD)) is counts


def block_that_ends(monkeypatch: pytest.MonkeyPatch, seconds: float) -> float:
    """A pool's block ends in so many seconds; the moment."""
    now = datetime.now(UTC).timestamp()
    found = Reservation("cr-1", "active", "capacity-block", "g5.xlarge", start=0.0, end=now + seconds)
    monkeypatch.setattr("gpu_fleet.hooks.aws.reservations.reservations_of", lambda *_: (found,))
    return now + seconds


def test_a_proof_is_valid_until_the_block_stops_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = block_that_ends(monkeypatch, 75 * 60 + 60)
    extra = run([healthy()], block=CapacityBlock()).events[VALIDATED]
    assert datetime.fromisoformat(extra["validUntil"]).timestamp() == pytest.approx(ends - 75 * 60, abs=1)
    assert extra["capacityBlock"]["reservation"] == "cr-1"
    assert datetime.fromisoformat(extra["capacityBlock"]["ends"]).timestamp() == pytest.approx(ends, abs=1)


def test_a_block_that_ends_later_shortens_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run([healthy()]).events[VALIDATED]
    block_that_ends(monkeypatch, 10 * 86_400)
    extra = run([healthy()], block=CapacityBlock()).events[VALIDATED]
    seconds = [
        (datetime.fromisoformat(each["validUntil"]) - datetime.fromisoformat(each["at"])).total_seconds()
        for each in (plain, extra)
    ]
    assert seconds[0] == seconds[1]


def test_an_end_that_cannot_be_asked_for_fails_no_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise Forbidden("ec2:DescribeCapacityReservations is not allowed", reason="UnauthorizedOperation")

    monkeypatch.setattr("gpu_fleet.hooks.aws.reservations.reservations_of", denied)
    extra = run([healthy()], block=CapacityBlock()).events[VALIDATED]
    assert "not allowed" in extra["capacityBlock"]["unknown"]
    assert extra["validUntil"] > extra["at"]


# --- notifications ---------------------------------------------------------------------------------------------------
def told(*entries: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"notifier": f"tests.unit.notifying.{name}", "arguments": {"message": text, "subject": "{{ report_url }}"}}
        for name, text in entries
    ]


TELL = told(("RecordingNotifier", "{{ cluster }}/{{ pool }}: {{ was }} -> {{ now }} ({{ reason }})"))


@pytest.mark.parametrize(
    ("reports", "before", "message"),
    [
        ([broken()], Topic.READY, "demo/shared-a10g: Ready -> NotReady (AllocatableMismatch)"),
        ([healthy()], Topic.NOT_READY, "demo/shared-a10g: NotReady -> Ready (Validated)"),
        ([healthy()], None, "demo/shared-a10g: Unknown -> Ready (Validated)"),
    ],
)
def test_a_change_of_the_verdict_is_told(reports: list[PoolReport | None], before: Topic | None, message: str) -> None:
    run(reports, before=before, notify=TELL)
    assert [call["message"] for _, call in notifying.CALLS] == [message]
    assert "/gpu-fleet/reports/gpu_revalidate.demo/" in notifying.CALLS[0][1]["subject"]


@pytest.mark.parametrize(
    ("reports", "before"),
    [
        ([healthy()], Topic.READY),
        ([broken()], Topic.NOT_READY),
        ([report(busy_node(1))], Topic.READY),
        ([report()], Topic.READY),
        ([None], Topic.READY),
    ],
    ids=["still ready", "still not ready", "busy says nothing", "no nodes are no alarm", "nobody looked"],
)
def test_nothing_new_is_not_told(reports: list[PoolReport | None], before: Topic) -> None:
    """Nor what is no alarm: consumers of the event are told, people are not."""
    run(reports, before=before, notify=TELL)
    assert notifying.CALLS == []


def test_a_notifier_that_fails_or_is_missing_loses_neither_the_verdict_nor_the_others() -> None:
    bad = [*told(("FailingNotifier", "x"), ("Absent", "x")), *TELL]
    done = run([broken()], before=Topic.READY, notify=bad)
    assert set(done.events) == {NOT_READY}
    assert [name for name, _ in notifying.CALLS] == ["FailingNotifier", "RecordingNotifier"]


def test_a_retry_tells_nobody_twice() -> None:
    store = StateStore()
    for _ in range(2):
        run([broken()], before=Topic.READY, notify=TELL, store=store)
    assert len(notifying.CALLS) == 1


def test_a_retry_after_a_death_tells_those_who_have_not_been_told() -> None:
    store = StateStore()
    two = told(("RecordingNotifier", "first"), ("RecordingNotifier", "second"))
    run([broken()], before=Topic.READY, notify=two, store=store)
    del store[TOLD]["notifiers"]["1 tests.unit.notifying.RecordingNotifier"]
    run([broken()], before=Topic.READY, notify=two, store=store)
    assert [call["message"] for _, call in notifying.CALLS] == ["first", "second", "second"]


def test_a_cleared_task_tells_again() -> None:
    store = StateStore()
    for max_tries in (2, 5):
        run([broken()], before=Topic.READY, notify=TELL, store=store, max_tries=max_tries)
    assert len(notifying.CALLS) == 2


# --- the link --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("base_url", "prefix"),
    [("", ""), ("https://airflow.example.com/", ""), ("https://example.com/air/flow", "/air/flow")],
)
def test_the_link_to_the_report(monkeypatch: pytest.MonkeyPatch, base_url: str, prefix: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    done = run([healthy()])
    (link,) = done.task.operator_extra_links
    assert isinstance(link, ReportLink)
    assert link.get_link(done.task, ti_key=done.ti) == (
        f"{prefix}/gpu-fleet/reports/gpu_revalidate.demo/scheduled__2026-11-23T04%3A00%3A00%2B00%3A00"
    )


# --- nodes of an older template --------------------------------------------------------------------------------------
def test_nodes_of_an_older_template_are_named_and_are_none_of_the_pools_gpus() -> None:
    why = {"n9": ["sharing time-slicing-2 -> time-slicing-4"]}
    done = run([healthy()], older=why)
    extra = done.events[READY]
    assert extra["older"] == ["n9"]
    assert extra["gpus"] == {"physical": 2, "allocatable": 8}
    assert done.verdict["older"] == why


def test_a_cap_that_drifted_nodes_hold_is_the_reason_that_is_told() -> None:
    refused = {"reason": "DriftedNodesHoldTheCap", "message": "node n9 drifted"}
    done = run([None], refused=refused)
    assert (done.verdict["reason"], done.verdict["message"]) == ("DriftedNodesHoldTheCap", "node n9 drifted")
