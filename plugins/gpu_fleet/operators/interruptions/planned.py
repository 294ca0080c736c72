"""Starts the drains that an interruption leaves for later: on rebalance recommendations, and of scheduled changes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.base import DRAIN_TASK_ID, frozen_spec
from gpu_fleet.operators.interruptions.drain import PLANNED


class When(StrEnum):
    """Which of the planned drains a task starts."""

    NOW = "now"
    WINDOW = "window"


class StartDrainOperator(TriggerDagRunOperator):
    """Start a run of ``gpu_drain`` for the nodes that the drain has left for later; one for each run, however often
    this is tried.

    It replaces the nodes before it drains them, and asks no person: the cluster file has decided. The nodes are named
    by their instances, because EC2 may give a node's name to a later instance while a run waits for its window.

    :param when: ``now``: those whose drain begins at once; ``window``: those that wait for the next window of
        ``interruptions.maintenance``, and the run begins with it.
    """

    def __init__(self, *, when: str, **kwargs: Any) -> None:
        # A run of ours refuses a conf with keys that are no Params.
        super().__init__(
            logical_date=None, skip_when_already_exists=True, openlineage_inject_parent_info=False, **kwargs
        )
        self.when = When(when)

    def execute(self, context: Mapping[str, Any]) -> None:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.interruptions.planned import PlannedNode, moment, split

        ti = context["ti"]
        found = ti.xcom_pull(task_ids=DRAIN_TASK_ID, key=PLANNED) or {}
        planned = [PlannedNode.from_json(each) for each in found.get("nodes") or []]
        if not planned:
            raise AirflowSkipException("no drain is planned")
        spec = frozen_spec(context)
        # Decided for one moment: between two tasks a window may begin, and each would leave the node to the other.
        now, later, at = split(
            planned, spec.interruptions.maintenance, float(found["at"]), lead_s=float(spec.drain.timeout)
        )
        nodes = now if self.when is When.NOW else later
        if not nodes:
            raise AirflowSkipException("none of the planned drains begins then")
        kinds = ", ".join(sorted({node.kind.value for node in nodes}))
        self.conf = {
            "nodes": [node.instance for node in nodes],
            "replaceFirst": True,
            "askFirst": False,
            "reason": f"planned by {ti.dag_id}: {kinds}",
        }
        prefix = "planned" if self.when is When.NOW else "planned_window"
        self.trigger_run_id = f"{prefix}__{ti.run_id}"
        if self.when is When.WINDOW and at is not None:
            self.run_after = moment(at)
        self.log.info(
            "starting a run of %s for %s, %s",
            self.trigger_dag_id,
            ", ".join(node.node for node in nodes),
            f"at {self.run_after}" if self.when is When.WINDOW else "at once",
        )
        super().execute(context)
