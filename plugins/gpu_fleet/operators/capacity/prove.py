"""Waits until the requested GPU nodes have the GPUs that the spec promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET
from gpu_fleet.core.nodes.pool_template import PoolTemplate
from gpu_fleet.operators.base import wait_started
from gpu_fleet.operators.capacity.climbing import LADDER, Climber, climber_of, content_with_fewer
from gpu_fleet.operators.capacity.replacement import without_surge
from gpu_fleet.operators.capacity.request import planned_replacement, request_capacity
from gpu_fleet.operators.locking import keep_lock
from gpu_fleet.operators.pool import PoolOperator, hardware, reported_failure
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.verdict import Verdict


class AwaitCapacityOperator(PoolOperator):
    """Waits until every wanted node has exactly physical × replicas GPUs.

    A retry first requests what is missing: a spot node that was interrupted took its placeholder with it.

    If the pool has a ladder (``capacity.ladder``), it is climbed here, one rung after the other; the XCom ``ladder``
    has what was tried, when, with what answer of EC2 and at what price. A retry continues on the rung that was reached.
    With ``capacity.minimum`` fewer nodes than wanted are enough in the end.

    :returns: ``{"nodes", "nodeClaims", "physical", "replicas", "allocatable": {node: GPUs}, "instances": {node: …}}``.
    :raises GateRefused: the device plugin is broken (reason ``DevicePlugin…``), a node has the wrong number of GPUs
        (``AllocatableMismatch``, ``SharingNotApplied``) or broken hardware (``GpuLost``, ``XidError``), or Karpenter
        cannot place the placeholders.
    :raises GateRefused: ``NodeRoleNotAdmitted``: EKS admits no node with the pool's role.
    :raises GateRefused: ``LadderExhausted``: every rung was tried; the message has the account of all.
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
        climber = climber_of(self, context, gpus, surge)
        with reported_failure(context):
            if climber is not None:
                keep_lock(self, context)
                climber.resume()
            elif context["ti"].try_number > 1:
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
            verdict = self._awaited(context, args, surge, lambda: self._await(context, args, surge, climber), climber)
        return self._found(verdict.message, verdict.data)

    def _await(
        self, context: Mapping[str, Any], args: Mapping[str, Any], surge: int, climber: Climber | None
    ) -> Verdict:
        seconds = float(self.spec.deadlines.capacity)
        return await_gate(
            self,
            context,
            "pool_capacity",
            args if climber is None else climber.gate(args),
            seconds,
            deadline=wait_started(context) + seconds,
            kwargs={"surge": surge, "args": dict(args)},
        )

    def _awaited(
        self,
        context: Mapping[str, Any],
        args: Mapping[str, Any],
        surge: int,
        wait: Callable[[], Verdict],
        climber: Climber | None,
    ) -> Verdict:
        """The end of the wait. If a rung is given up, the next is waited for. If a node does not join, the cause is
        looked up; without a cause the wait continues."""
        from gpu_fleet.core.capacity.launch import NODE_DOES_NOT_JOIN
        from gpu_fleet.core.gates.capacity.rung import GIVEN_UP
        from gpu_fleet.operators.capacity.joining import not_admitted

        try:
            while True:
                try:
                    verdict = wait()
                except GpuFleetError as error:
                    if error.reason == GIVEN_UP and climber is not None:
                        climber.give_up(error)
                    elif error.reason == NODE_DOES_NOT_JOIN and args:
                        if refused := not_admitted(self, error):
                            raise refused from error
                        self.log.warning("%s", error.message)
                        args = {**args, "join_patience_s": None}
                    else:
                        raise
                    wait = partial(self._await, context, args, surge, climber)
                else:
                    if climber is not None:
                        climber.succeed()
                    return verdict
        except GpuFleetError as error:
            told = error if climber is None else climber.account_for(error)
            if (fewer := content_with_fewer(self, context, told, args, surge)) is not None:
                return fewer
            if self.all_come:
                raise told from error
            return without_surge(self, told, args, surge)

    def execute_complete(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        surge: int = 0,
        args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        with reported_failure(context):
            climber = None
            if context["task_state_store"].get(LADDER):
                climber = self._resumed(context, surge)
            try:
                verdict = conclude(event)
                if climber is not None:
                    climber.succeed()
            except GpuFleetError as error:
                if climber is None:
                    self.prepare(context)
                ended = error  # the name of an exception is deleted after its clause
                verdict = self._awaited(context, args or {}, surge, lambda: _raise(ended), climber)
        return self._found(verdict.message, verdict.data)

    def _resumed(self, context: Mapping[str, Any], surge: int) -> Climber | None:
        """The climb goes on after a deferral, which may have lasted: only while the run still holds the lock."""
        self.prepare(context)
        keep_lock(self, context)
        return climber_of(self, context, hardware(self.spec, self.this_pool), surge)

    def _found(self, message: str, data: dict[str, Any] | None) -> dict[str, Any]:
        self.log.info("%s", message)
        return dict(data or {})


def _raise(error: GpuFleetError) -> NoReturn:
    raise error
