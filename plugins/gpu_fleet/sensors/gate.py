"""The sensor on gates: waits for one and reports why it is still waiting."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseSensorOperator

from gpu_fleet.core.errors import SpecError
from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.triggers.looking import gate_named
from gpu_fleet.triggers.waiting import await_gate, conclude

#: Gate -> the field of the spec's ``deadlines`` that bounds it, unless the sensor is given a deadline.
DEADLINE_OF_GATE = {
    "cluster_active": "cluster_active",
    "crds_established": "crds",
    "karpenter_available": "release",
    "node_class_gone": "teardown",
    "node_class_ready": "node_class_ready",
    "node_pool_ready": "node_pool_ready",
    "nodeclaims_gone": "teardown",
    "instances_gone": "teardown",
    "object_exists": "cleanup",
    "object_gone": "cleanup",
    "turn_free": "turn",
}


class GateSensor(FleetOperator, BaseSensorOperator):
    """Looks once; if the gate is not Ready it defers until it is, fails, or its deadline passes.

    :param gate: name of a registered gate (``gpu_fleet.core.gates.registry``).
    :param args: the gate's arguments; templated, so they may come from XComs.
    :param deadline: upper bound of the wait, counted from the first try's first look; by default the spec's
        ``deadlines`` entry for the gate.
    :returns: the verdict as JSON: phase, reason, message, data.
    :raises GateFailed: the gate failed for a cause that may pass: the task is retried.
    :raises GateRefused: the gate failed for good: the task is not retried.
    :raises GateBlind: the gate could not look, for good or at the deadline.
    :raises DeadlinePassed: naming what was still missing and why.
    """

    template_fields = ("gate", "args")
    template_fields_renderers: ClassVar[dict[str, str]] = {"args": "json"}
    ui_color = "#e8f3f1"
    needs_kube = False

    def __init__(
        self,
        *,
        gate: str,
        args: Mapping[str, Any] | None = None,
        deadline: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gate = gate
        self.args = args if args is not None else {}
        self.deadline = deadline

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        args, seconds = self._arguments(), self._deadline_s()
        until = wait_started(context) + seconds
        return await_gate(self, context, self.gate, args, seconds, deadline=until).to_json()

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        verdict = conclude(event)
        if gate_named(self.gate).confirm:
            self.log.info("gate %s: %s: %s; looking once more", self.gate, verdict.reason, verdict.message)
            self.prepare(context)
            return self.act(context)
        self.log.info("gate %s: %s %s: %s", self.gate, verdict.phase.value, verdict.reason, verdict.message)
        return verdict.to_json()

    def _arguments(self) -> Mapping[str, Any]:
        if not isinstance(self.args, Mapping):
            raise SpecError(
                f"task {self.task_id}: args is a {type(self.args).__name__}", field="args", remedy="give a mapping"
            )
        return self.args

    def _deadline_s(self) -> float:
        if self.deadline is not None:
            return self.deadline.total_seconds()
        field = DEADLINE_OF_GATE.get(self.gate)
        if field is None:
            raise SpecError(
                f"task {self.task_id}: gate {self.gate} has no default deadline", field="deadline", remedy="set one"
            )
        return float(getattr(self.spec.deadlines, field).seconds)


__all__ = ["DEADLINE_OF_GATE", "GateSensor"]
