"""The end of a Capacity Block in ``gpu_drain``: whether it is due, and what happens before the first eviction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import Conflict, NotFound
from gpu_fleet.core.interruptions.request import DrainRequest
from gpu_fleet.core.kubernetes.kinds import NODE_POOL, POD, ObjectRef
from gpu_fleet.core.nodes.freeze import frozen, needs_freeze
from gpu_fleet.operators.base import FleetOperator, run_name
from gpu_fleet.operators.interruptions.fleet_nodes import fleet_nodes
from gpu_fleet.operators.interruptions.manual_plan import planned_nodes
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from gpu_fleet.operators.reservations.booking import EARLY_S

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.reservations.calendar import Ending
    from gpu_fleet.core.reservations.reservation import Reservation
    from gpu_fleet.core.spec import NodePool


class CheckBlockEndOperator(FleetOperator):
    """Skips a run that was booked for the end of a Capacity Block which has been extended since.

    A run that is about no reservation goes on, and so does one whose block is gone: its nodes end, if any are left.

    :returns: ``{"reservation", "ends"}``; empty in a run that is about no block.
    """

    needs_kube = False

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        request = DrainRequest.of(context["params"])
        if not request.ends_a_block:
            return {}
        found = _block_of(self, request)
        if found is None:
            self.log.warning("capacity reservation %s is gone; the nodes of it are drained", request.reservation)
            return {"reservation": request.reservation, "ends": None}
        from gpu_fleet.core.reservations.reservation import shown

        block, _, end = found
        if end is not None and time.time() < end.stops - EARLY_S:
            raise AirflowSkipException(
                f"{block} was extended: it ends at {shown(block.end)} by now, and is given up at {shown(end.stops)}"
            )
        return {"reservation": block.id, "ends": block.end}


class StopAdmittingOperator(FleetOperator):
    """Closes the pool of a Capacity Block that ends, tells the jobs, and waits until their notice is over.

    The nodes are cordoned by now. The NodePool is frozen (``limits.nodes`` 0), or Karpenter would buy new instances in
    the same block for the evicted pods; not if another block of the pool goes on. The next lifecycle run, which applies
    the NodePool, opens it again. Pods get the annotation ``gpu-fleet.io/interruption``, as for an interruption that EC2
    announces, and the wait takes no worker.

    :param plan_task_id: the task whose plan is carried out.
    :returns: ``{"frozen", "told": [pods], "drains": epoch seconds}``; empty in a run that ends no block.
    """

    preconditions = CHANGES_CLUSTER
    ui_color = "#fdf0e3"

    def __init__(self, *, plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        request = DrainRequest.of(context["params"])
        if not request.ends_a_block or request.until is None:
            return {}
        nodes = fleet_nodes(self.kube, self.spec).with_uids(set(planned_nodes(context, self.plan_task_id)))
        found = _block_of(self, request)
        end = found[2] if found is not None else None
        done: dict[str, Any] = {
            "frozen": found is not None and self._freeze(context, found[1], found[0]),
            "told": self._tell(nodes, request.reservation, request.until, end.stops if end else request.until),
            "drains": end.drains if end else None,
        }
        if end is not None and self.kube.now() < end.drains:
            self._defer(end.drains, done)
        return done

    def after_notice(self, context: Mapping[str, Any], event: Any, done: dict[str, Any]) -> dict[str, Any]:
        """Called when the notice is over."""
        del context, event
        return done

    def _defer(self, moment: float, done: dict[str, Any]) -> None:
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        self.log.info("the jobs have until %s", datetime.fromtimestamp(moment, UTC))
        self.defer(
            trigger=DateTimeTrigger(moment=datetime.fromtimestamp(moment, UTC)),
            method_name="after_notice",
            kwargs={"done": done},
        )

    def _freeze(self, context: Mapping[str, Any], pool: NodePool, block: Reservation) -> bool:
        from gpu_fleet.core.reservations.calendar import usable
        from gpu_fleet.hooks.aws.reservations import reservations_of

        calendar = pool.capacity_block
        others = [
            each
            for each in reservations_of(self.spec, pool)
            if each.id != block.id and calendar is not None and each.block and usable(each, calendar, self.kube.now())
        ]
        if others:
            self.log.info("NodePool %s stays open: %s goes on", pool.name, ", ".join(map(str, others)))
            return False
        there = self.kube.get(ObjectRef(NODE_POOL, pool.name))
        run = run_name(context)
        if there is not None and needs_freeze(there, run):
            # force: a limit of another field manager must not keep the pool open, see the teardown's freeze.
            self.kube.apply(frozen(there, run), force=True)
            self.log.info("froze NodePool %s: Karpenter launches no more nodes for it", pool.name)
        return there is not None

    def _tell(self, nodes: list[OurNode], reservation: str, until: float, stops: float) -> list[str]:
        from gpu_fleet.core.interruptions.marks import Mark
        from gpu_fleet.core.interruptions.messages import Kind, Notice
        from gpu_fleet.core.interruptions.wishes import signal
        from gpu_fleet.core.reservations.told import is_told
        from gpu_fleet.hooks.cluster.pods import pods_on

        by_name = {node.name: node for node in nodes}
        told = []
        for pod in pods_on(self.kube, by_name):
            node = by_name.get(str((pod.get("spec") or {}).get("nodeName")))
            if node is None or not is_told(pod):
                continue
            notice = Notice(Kind.RESERVATION, node.instance, stops, until, "terminate", reservation)
            meta = pod["metadata"]
            # One text for all tries: a pod that was told already is left alone.
            patch = signal(pod, Mark(notice, stops))
            if patch is not None:
                try:
                    self.kube.patch(ObjectRef(POD, str(meta["name"]), str(meta["namespace"])), patch)
                except (NotFound, Conflict):
                    continue  # it ended meanwhile; another one of its name is on another node
            told.append(f"{meta['namespace']}/{meta['name']}")
        self.log.info("told %s", ", ".join(sorted(told)) or "no pod")
        return sorted(told)


def _block_of(operator: FleetOperator, request: DrainRequest) -> tuple[Reservation, NodePool, Ending | None] | None:
    """The run's block, its pool, and how it ends by the pool's calendar; ``None`` if EC2 has no such block.

    :raises GpuFleetError: EC2 could not be asked.
    """
    from gpu_fleet.core.reservations.calendar import ending
    from gpu_fleet.hooks.aws.reservations import reservation

    block = reservation(operator.spec, request.reservation)
    pool = operator.spec.pool(request.pools[0]) if request.pools else None
    if block is None or pool is None:
        return None
    calendar = pool.capacity_block
    end = ending(calendar, block.end) if calendar is not None and block.end is not None else None
    return block, pool, end
