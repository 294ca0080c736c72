"""The page about interrupted nodes, as an operator reads it."""

from __future__ import annotations

from dataclasses import replace

from gpu_fleet.core.interruptions.report import InterruptionReport
from gpu_fleet.core.markup import html, markdown
from gpu_fleet.core.reports.document import document
from gpu_fleet.core.reports.model import Left as XCom
from gpu_fleet.core.reports.model import RunReport, sort_out
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core.interruptions.test_report import REPORT, node, pod

PLACEMENT = {
    "phase": "Ready",
    "message": "2 pods that replace evicted ones are ready",
    "data": {
        "workloads": [
            {"workload": "ml/Job/train", "evicted": 2, "running": [{"pod": "train-1", "node": "n2"}], "pending": []}
        ]
    },
}


def run(**changes: object) -> RunReport:
    found = RunReport("demo", "gpu_spot_drain.demo", "r1", "success", (), interruption=REPORT, placement=PLACEMENT)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_the_page_names_every_node_pod_and_where_the_pods_went() -> None:
    text = markdown.render(document(run()))
    assert "Interrupted GPU nodes of demo" in text
    for words in (REPORT.headline(), "i-1", "SpotInterruption", "ml/train-0", "train-1 on n2", "00:17:59"):
        assert words in text, words
    assert "no report of any pool" not in text


def test_what_is_bad_comes_first() -> None:
    worse = replace(REPORT, nodes=(node("Lost"),), pods=(pod("Evicted", "a"), pod("Forced", "b"), pod("Lost", "c")))
    text = markdown.render(document(run(interruption=worse)))
    assert text.index("ml/c") < text.index("ml/b") < text.index("ml/a")


def test_a_refusal_is_shown_with_the_servers_words() -> None:
    refused = pod(
        "Forced", refused=3, words="budget web-pdb", reason="its grace of 30 s had to begin", note="loses data"
    )
    text = markdown.render(document(run(interruption=replace(REPORT, pods=(refused,)))))
    assert "its grace of 30 s had to begin; loses data; refused 3 times, at last: budget web-pdb" in text


def test_texts_of_clusters_are_escaped() -> None:
    evil = replace(REPORT, pods=(pod("Evicted", "<script>alert(1)</script>"),))
    assert "<script>alert" not in html.render(document(run(interruption=evil)), "t", [])


def test_the_verdict_follows_from_what_was_lost_and_from_the_run() -> None:
    assert run().outcome is Outcome.PASSED
    assert run(interruption=replace(REPORT, nodes=(node("Lost"),))).outcome is Outcome.FAILED
    failed = run(state="failed")
    assert failed.outcome is Outcome.FAILED
    assert failed.headline().endswith("but the run failed")


def test_it_is_read_from_the_runs_xcoms() -> None:
    remains = sort_out([XCom("drain", "interruption", REPORT.to_json()), XCom("placed", "placement", PLACEMENT)])
    assert remains.interruption is not None
    assert remains.interruption.headline() == REPORT.headline()
    assert remains.placement == PLACEMENT
    broken = sort_out([XCom("drain", "interruption", {"schema": "x"}), XCom("placed", "placement", 3)])
    assert (broken.interruption, broken.placement) == (None, None)
    assert broken.unreadable == ("drain: interruption", "placed: placement")


def test_of_the_reports_of_a_drain_by_hand_the_last_counts() -> None:
    """The drain tells of its pods, and the removal after it of the nodes as well."""
    drained = replace(REPORT, deed="drained")
    removed = replace(drained, ended=drained.ended + 1, nodes=(node(removed="NodeClaim c1 deleted"),))
    for tasks in ((drained, removed), (removed, drained)):
        remains = sort_out([XCom(str(index), "interruption", each.to_json()) for index, each in enumerate(tasks)])
        assert remains.interruption is not None
        assert remains.interruption.nodes[0].get("removed") == "NodeClaim c1 deleted"


def test_a_drain_by_hand_is_shown_as_one() -> None:
    text = markdown.render(document(run(interruption=replace(REPORT, deed="drained"))))
    for words in ("Drained GPU nodes of demo", "Drained nodes:", "Pods on the drained nodes:"):
        assert words in text
    assert "nterrupted" not in text


def test_what_was_lost_is_priced_with_date_and_source() -> None:
    said = "Spot prices of 10:42 UTC on 2026-11-30: EC2, DescribeSpotPriceHistory"
    lost = replace(REPORT, gpu_seconds=7200.0, usd=1.25, prices=said)
    text = markdown.render(document(run(interruption=lost)))
    assert "2.00 GPU hours, 1.25 USD" in text
    assert said in text
    unknown = markdown.render(document(run(interruption=replace(lost, usd=None, prices="Prices: none."))))
    assert "2.00 GPU hours, at an unknown price" in unknown


BLOCK = {
    "reservation": "cr-1",
    "words": "Capacity Block cr-1 (2 x p5.48xlarge in us-west-2a)",
    "paidHours": 48.0,
    "unusedHours": 26.25,
    "lateHours": 1.0,
    "earlyHours": 1.25,
    "idleHours": 24.0,
}


def test_the_hours_of_a_capacity_block_are_on_the_page_and_survive_an_xcom() -> None:
    told = InterruptionReport.from_json(replace(REPORT, block=BLOCK).to_json())
    assert told.block == BLOCK
    page = markdown.render(document(run(interruption=told)))
    assert "Paid and unused" in page
    assert "Capacity Block cr-1" in page
    assert "26.25" in page
    assert "Paid and unused" not in markdown.render(document(run()))
