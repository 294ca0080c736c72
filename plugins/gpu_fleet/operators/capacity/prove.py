"""Waits until the requested GPU nodes have the GPUs that the spec promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET
from gpu_fleet.core.nodes.pool_template import PoolTemplate
from gpu_fleet.operators.base import wait_started
from gpu_fleet.operators.capacity.replacement import without_surge
from gpu_fleet.operators.capacity.request import planned_replacement, request_capacity
from gpu_fleet.operators.pool import PoolOperator, hardware, reported_failure
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.verdict import Verdict


class AwaitCapacityOperator(PoolOperator):
    """Waits until every wanted node has exactly physical × replicas GPUs.

    A retry first requests what is missing: a spot node that was interrupted took its placeholder with it.

    :returns: ``{"nodes", "nodeClaims", "physical", "replicas", "allocatable": {node: GPUs}, "instances": {node: …}}``.
    :raises GateRefused: the device plugin is broken (reason ``DevicePlugin…``), a node has the wrong number of GPUs
        (``AllocatableMismatch``, ``SharingNotApplied``) or broken hardware (``GpuLost``, ``XidError``), or Karpenter
        cannot place the placeholders.
    :raises GateRefused: ``NodeRoleNotAdmitted``: EKS admits no node with the pool's role.
    :raises GateFailed: a launch failed, or nodes were lost; retried.
    :raises DeadlinePassed: naming what was missing and why, after the spec's ``deadlines.capacity``, counted
        from the first try.

    A failure also leaves its reason in the XCom ``failure``, for the task that decides about a rollback.

    :param all_come: also the nodes beyond ``wantedNodes`` have to come. Without it a drifted node that cannot be
        replaced stays, which is no failure; a drain may not begin.
    """

    ui_color = "#e9f0fb"

    def __init__(self, *, all_come: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.all_come = all_come

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.device_plugin.causes import plugin_daemon_set
        from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others

        pool = self.this_pool
        gpus = hardware(self.spec, pool)
        surge = planned_replacement(self, context).surge
        if not pool.wanted_nodes + surge:
            self.log.info("pool %s wants no nodes", pool.name)
            return {"nodes": [], "nodeClaims": [], "physical": gpus.count, "replicas": pool.replicas} | {
                "allocatable": {},
                "instances": {},
            }
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
            **({"built_in": True} if self.spec.brings_plugin(pool) else {}),
            "plugins_of_others": [plugin.ref for plugin in plugins_of_others(self.kube.list(DAEMON_SET), ours)],
        }
        with reported_failure(context):
            verdict = self._awaited(context, args, surge, lambda: self._await(context, args, surge))
        return self._found(verdict.message, verdict.data)

    def _await(self, context: Mapping[str, Any], args: Mapping[str, Any], surge: int) -> Verdict:
        seconds = float(self.spec.deadlines.capacity)
        return await_gate(
            self,
            context,
            "pool_capacity",
            args,
            seconds,
            deadline=wait_started(context) + seconds,
            kwargs={"surge": surge, "args": dict(args)},
        )

    def _awaited(
        self, context: Mapping[str, Any], args: Mapping[str, Any], surge: int, wait: Callable[[], Verdict]
    ) -> Verdict:
        """The end of the wait. If a node does not join, the cause is looked up; without a cause the wait continues."""
        from gpu_fleet.core.capacity.launch import NODE_DOES_NOT_JOIN
        from gpu_fleet.operators.capacity.joining import not_admitted

        try:
            try:
                return wait()
            except GpuFleetError as error:
                if error.reason != NODE_DOES_NOT_JOIN or not args:
                    raise
                if refused := not_admitted(self, error):
                    raise refused from error
                self.log.warning("%s", error.message)
            return self._await(context, {**args, "join_patience_s": None}, surge)
        except GpuFleetError as error:
            if self.all_come:
                raise
            return without_surge(self, error, args, surge)

    def execute_complete(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        surge: int = 0,
        args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        with reported_failure(context):
            try:
                verdict = conclude(event)
            except GpuFleetError as error:
                self.prepare(context)
                ended = error  # the name of an exception is deleted after its clause
                verdict = self._awaited(context, args or {}, surge, lambda: _raise(ended))
        return self._found(verdict.message, verdict.data)

    def _found(self, message: str, data: dict[str, Any] | None) -> dict[str, Any]:
        self.log.info("%s", message)
        return dict(data or {})


def _raise(error: GpuFleetError) -> NoReturn:
    raise error
