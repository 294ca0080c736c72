"""Checks what nodes and Karpenter need of the account and the cluster, before anything is changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GateRefused, PrerequisiteMissing
from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.operators.spec import selected_pools
from gpu_fleet.triggers.waiting import await_gate, conclude

if TYPE_CHECKING:
    from gpu_fleet.core.preflight.facts import Prerequisite


class CheckPrerequisitesOperator(FleetOperator):
    """Checks the node role and its access entry, discovery tags, the controller's identity, queue and nodes; that EC2
    can launch the nodes that the pools want: offers in the subnets' zones, vCPU quotas, free addresses, capacity
    reservations and Capacity Blocks; and the queue of ``interruptions.queue``: that it is not Karpenter's, has a
    dead-letter queue, and rules that fill it.

    If only nodes of a managed node group are missing, which are still joining, the task waits for them, at most
    ``deadlines.cluster_active``, and then checks everything again.

    What a node of each pool costs is listed with them, and fails no run either.

    What cannot be looked up is a warning that names the missing permission: the identity may rightly lack it. If the
    cluster cannot be described, everything is unknown; other tasks of preflight report the cause and fail.

    :returns: ``{"prerequisites": [{"name", "state", "message", "remedy"}], "unknown": n, "prices": […]}``, the prices
        in the same form.
    :raises PrerequisiteMissing: naming everything that is missing and how to create it.
    :raises DeadlinePassed: the nodes have not joined in time; the message names the node group.
    """

    needs_kube = False
    ui_color = "#eef2f7"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.preflight.facts import State
        from gpu_fleet.core.preflight.interruption_queue import judge_queue
        from gpu_fleet.core.preflight.launch_limits import judge_limits
        from gpu_fleet.core.preflight.prerequisites import judge
        from gpu_fleet.core.preflight.reservations import judge_reservations
        from gpu_fleet.hooks.aws import aws_session
        from gpu_fleet.hooks.settings import block_reclaim_s
        from gpu_fleet.operators.preflight.look import Look
        from gpu_fleet.operators.preflight.reservation_look import ReservationLook

        look = Look(self, aws_session(self.spec.aws.connection, self.spec.aws.region))
        facts = look.facts()
        selected = selected_pools(context["params"].get("pools"), self.spec.pool_names)
        found = judge(self.spec, facts) + judge_limits(self.spec, look.limits(facts), selected)
        reservations = ReservationLook(look).found(self.spec, facts)
        found += judge_reservations(self.spec, reservations, selected, now=time.time(), reclaim_s=block_reclaim_s())
        queue, karpenters = self.spec.interruptions.queue, self.spec.karpenter.interruption_queue
        found += judge_queue(queue, karpenters, self.spec.region, look.queue(queue))
        for each in found:
            (self.log.info if each.state is State.MET else self.log.warning)("%s: %s", each.state, each)
        missing = [each for each in found if each.state is State.MISSING]
        if missing:
            raise PrerequisiteMissing(
                f"cluster {self.spec.cluster.name} lacks {len(missing)} of {len(found)} prerequisites:"
                + "".join(f"\n  - {each}" for each in missing)
            )
        if any(each.state is State.COMING for each in found):
            self._await_nodes(context)
            return self.act(context)
        unknown = sum(each.state is State.UNKNOWN for each in found)
        if unknown:
            self.log.warning(
                "%d of %d prerequisites are unknown: if one of them is missing, a later task will fail",
                unknown,
                len(found),
            )
        prices = self._prices()
        return {
            "prerequisites": [each.to_json() for each in found],
            "unknown": unknown,
            "prices": [each.to_json() for each in prices],
        }

    def _prices(self) -> list[Prerequisite]:
        """What the pools' nodes cost; nothing depends on it."""
        from gpu_fleet.core.preflight.facts import State
        from gpu_fleet.core.preflight.prices import judge_prices
        from gpu_fleet.hooks.cluster.prices import prices_for

        pools = [pool for pool in self.spec.node_pools if pool.manage]
        types = [name for pool in pools for name in pool.instance_types]
        prices = prices_for(self.spec, types, spot=any("spot" in pool.capacity_types for pool in pools))
        found = judge_prices(self.spec, prices)
        for each in found:
            (self.log.info if each.state is State.MET else self.log.warning)("%s: %s", each.state, each)
        return found

    def _await_nodes(self, context: Mapping[str, Any]) -> None:
        """Return when there are enough nodes or none is joining any more; else defer."""
        from gpu_fleet.core.preflight.karpenter_nodes import Placement
        from gpu_fleet.hooks.aws import aws_session
        from gpu_fleet.operators.preflight.look import Look

        seconds = float(self.spec.deadlines.cluster_active)
        until = wait_started(context) + seconds
        groups = Look(self, aws_session(self.spec.aws.connection, self.spec.aws.region)).node_group_names()
        args = {
            "placement": Placement.of(self.spec).to_json(),
            "cluster": self.spec.cluster.name,
            "groups": groups,
            "until": datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds"),
        }
        try:
            await_gate(self, context, "karpenter_nodes", args, seconds, "after_nodes", deadline=until)
        except GateRefused as error:
            self.log.warning("%s", error.message)  # What is missing is reported with everything else.

    def after_nodes(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """Called when there are enough nodes, or none is joining any more."""
        self.prepare(context)
        try:
            conclude(event)
        except GateRefused as error:
            self.log.warning("%s", error.message)
        return self.act(context)
