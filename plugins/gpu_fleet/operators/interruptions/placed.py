"""Waits until the evicted pods run elsewhere, and keeps the finding for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import DeadlinePassed
from gpu_fleet.operators.base import DRAIN_TASK_ID, FleetOperator, wait_started
from gpu_fleet.operators.interruptions.block import ends_a_block
from gpu_fleet.operators.interruptions.drain import DISPLACED
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.triggers.looking import look
from gpu_fleet.triggers.waiting import await_gate, conclude

#: XCom key of the finding.
PLACEMENT = "placement"


class AwaitPlacementOperator(FleetOperator):
    """Wait until what the drain evicted runs elsewhere, or is no longer wanted; at most ``deadlines.capacity``.

    :returns: the gate's finding as JSON; it is also in the XCom ``placement``, also of a wait that failed.
    :raises DeadlinePassed: pods have found no place; the message names them and what the scheduler says.
    """

    operator_extra_links = (ReportLink(),)
    ui_color = "#e8f3f1"
    needs_kube = False

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        args = self._args(context)
        seconds = float(self.spec.deadlines.capacity)
        until = wait_started(context) + seconds
        try:
            verdict = await_gate(self, context, "pods_placed", args, seconds, deadline=until)
        except DeadlinePassed:
            self._note_unplaced(context, args)
            raise
        return self._kept(context, verdict.to_json())

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            verdict = conclude(event)
        except DeadlinePassed:
            self.prepare(context)
            self._note_unplaced(context, self._args(context))
            raise
        return self._kept(context, verdict.to_json())

    def _args(self, context: Mapping[str, Any]) -> dict[str, Any]:
        displaced = context["ti"].xcom_pull(task_ids=DRAIN_TASK_ID, key=DISPLACED)
        if not displaced:
            raise AirflowSkipException("no pod with a controller was evicted")
        if ends_a_block(context):
            raise AirflowSkipException("the pool's capacity has ended: its pods wait for the next Capacity Block")
        return {"displaced": displaced}

    def _note_unplaced(self, context: Mapping[str, Any], args: Mapping[str, Any]) -> None:
        """What is known when the time is up; a cluster that cannot be asked then leaves no finding."""
        verdict = look("pods_placed", args, self.access())
        if not verdict.blind:
            self._kept(context, verdict.to_json())

    def _kept(self, context: Mapping[str, Any], finding: dict[str, Any]) -> dict[str, Any]:
        context["ti"].xcom_push(PLACEMENT, finding)
        self.log.info("%s: %s", finding["reason"], finding["message"])
        return finding
