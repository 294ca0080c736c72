"""Whether a drain in which work was lost fails its run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.interruptions.report import InterruptionReport
from gpu_fleet.operators.interruptions.verdict import NothingLostOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.interruptions.test_report import REPORT, node, pod


def verdict(report: InterruptionReport) -> str:
    ti = TaskInstance(dag_id="gpu_spot_drain.demo")
    ti.xcom_push("interruption", report.to_json())
    return NothingLostOperator(task_id="nothing_lost").execute(context(ti))


def test_a_drain_that_lost_nothing_passes_with_its_headline() -> None:
    assert verdict(REPORT) == REPORT.headline()
    assert verdict(replace(REPORT, pods=(pod("Forced"), pod("Left", "agent")))).startswith("1 node")


def test_a_lost_pod_is_named() -> None:
    with pytest.raises(PermanentError, match="ml/train-0 on n1") as caught:
        verdict(replace(REPORT, nodes=(node("Lost"),), pods=(pod("Lost"),)))
    assert caught.value.reason == "PodsLost"


def test_a_node_that_nobody_could_look_at_is_no_success() -> None:
    with pytest.raises(PermanentError, match="the pods of n1") as caught:
        verdict(replace(REPORT, nodes=(node("Unseen"),), pods=()))
    assert caught.value.reason == "PodsUnseen"
