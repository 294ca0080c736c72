"""Waits until GPU nodes that were asked for have the GPUs that were promised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kinds import DAEMON_SET
from gpu_fleet.core.pool_template import PoolTemplate
from gpu_fleet.operators.base import wait_started
from gpu_fleet.operators.pool import PoolOperator, hardware, reported_failure
from gpu_fleet.operators.request_capacity import request_capacity
from gpu_fleet.triggers.looking import await_gate, conclude


class AwaitCapacityOperator(PoolOperator):
    """Waits until every wanted node has exactly physical × replicas GPUs.

    A retry asks again first: a spot node that was taken away took its placeholder with it.

    :returns: ``{"nodes", "nodeClaims", "physical", "replicas", "allocatable": {node: GPUs}, "instances": {node: …}}``.
    :raises GateRefused: the device plugin is broken (reason ``DevicePlugin…``), a node has the wrong number of GPUs
        (``AllocatableMismatch``), or Karpenter cannot place the placeholders.
    :raises GateFailed: a launch failed, or nodes were lost; retried.
    :raises DeadlinePassed: naming what was missing and why, after the spec's ``deadlines.capacity``, counted
        from the first try.

    A failure also leaves its reason in the XCom ``failure``, for the task that decides about a roll-back.
    """

    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.capacity_plugin import plugin_daemon_set
        from gpu_fleet.core.device_plugins import Ours, plugins_of_others
        from gpu_fleet.operators.replacement import planned_replacement, without_surge

        pool = self.this_pool
        gpus = hardware(self.spec, pool)
        if not pool.wanted_nodes:
            self.log.info("pool %s wants no nodes", pool.name)
            return {"nodes": [], "nodeClaims": [], "physical": gpus.count, "replicas": pool.replicas} | {
                "allocatable": {},
                "instances": {},
            }
        surge = planned_replacement(self, context).surge
        if context["ti"].try_number > 1:
            with reported_failure(context):
                request_capacity(self, context, gpus, surge=surge)
        ours = Ours.of(self.spec)
        args = {
            "pool": pool.name,
            "wanted": pool.wanted_nodes + surge,
            "physical": gpus.count,
            "replicas": pool.replicas,
            "plugin_namespace": self.spec.device_plugin.namespace,
            "plugin_daemon_set": plugin_daemon_set(self.spec.device_plugin),
            "plugin_patience_s": self.spec.deadlines.prove.seconds,
            "template": template.to_json() if (template := PoolTemplate.of(pool)) is not None else None,
            "ours": ours.to_json(),
            "plugins_of_others": [plugin.ref for plugin in plugins_of_others(self.kube.list(DAEMON_SET), ours)],
        }
        seconds = float(self.spec.deadlines.capacity)
        until = wait_started(context) + seconds
        with reported_failure(context):
            try:
                verdict = await_gate(
                    self, context, "pool_capacity", args, seconds, deadline=until, kwargs={"surge": surge, "args": args}
                )
            except GpuFleetError as error:
                verdict = without_surge(self, error, args, surge)
        return self._found(verdict.message, verdict.data)

    def execute_complete(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        surge: int = 0,
        args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        from gpu_fleet.operators.replacement import without_surge

        with reported_failure(context):
            try:
                verdict = conclude(event)
            except GpuFleetError as error:
                self.prepare(context)
                verdict = without_surge(self, error, args or {}, surge)
        return self._found(verdict.message, verdict.data)

    def _found(self, message: str, data: dict[str, Any] | None) -> dict[str, Any]:
        self.log.info("%s", message)
        return dict(data or {})
