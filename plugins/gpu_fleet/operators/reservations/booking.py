"""Books the end of a Capacity Block: a run of ``gpu_drain`` that begins when the block's pool has to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.base import frozen_spec
from gpu_fleet.operators.spec import selected_pools

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: A run that begins so shortly before its time is not too early: schedulers and clocks differ.
EARLY_S = 60.0
#: Param of ``gpu_drain``.
PARAM_RESERVATION = "reservation"


class BookBlockEndOperator(TriggerDagRunOperator):
    """Start a run of ``gpu_drain`` with ``run_after`` at the moment at which the pool's block is given up.

    Until then it waits in Airflow's database: no worker, triggerer or lock is taken. There is one run per pool, block
    and moment, however often this is tried; a later run of the lifecycle finds it booked. Of several blocks the one
    that ends first is booked, and its run books the next one.

    :param node_pool: the pool; ``None`` in ``gpu_drain``: that of the run, if it is about a reservation.
    """

    def __init__(self, *, node_pool: str | None = None, **kwargs: Any) -> None:
        # A run of ours refuses a conf with keys that are no Params.
        super().__init__(
            logical_date=None, skip_when_already_exists=True, openlineage_inject_parent_info=False, **kwargs
        )
        self.node_pool = node_pool

    def execute(self, context: Mapping[str, Any]) -> None:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.reservations.calendar import ending, next_ending
        from gpu_fleet.core.reservations.reservation import shown
        from gpu_fleet.hooks.aws.reservations import reservations_of

        spec = frozen_spec(context)
        pool = spec.pool(self._pool(context, spec))
        if pool.capacity_block is None:
            raise AirflowSkipException(f"pool {pool.name} has no Capacity Block any more")
        now = time.time() + (EARLY_S if self.node_pool is None else 0.0)
        block = next_ending(reservations_of(spec, pool), pool.capacity_block, now)
        if block is None or block.end is None:
            raise AirflowSkipException(f"no Capacity Block of pool {pool.name} has yet to end")
        end = ending(pool.capacity_block, block.end)
        self.conf = {
            "pools": [pool.name],
            PARAM_RESERVATION: block.id,
            "until": _iso(end.empty),
            "askFirst": False,
            "reason": f"Capacity Block {block.id} ends at {shown(block.end)}",
        }
        self.trigger_run_id = f"block_end__{pool.name}__{block.id}__{int(end.stops)}"
        self.run_after = datetime.fromtimestamp(end.stops, UTC)
        self.log.info(
            "%s is given up at %s: run %s of %s", block, shown(end.stops), self.trigger_run_id, self.trigger_dag_id
        )
        super().execute(context)

    def _pool(self, context: Mapping[str, Any], spec: ClusterSpec) -> str:
        params = context["params"]
        if self.node_pool is not None:
            selected = selected_pools(params.get("pools"), spec.pool_names)
            if self.node_pool not in selected:
                raise AirflowSkipException(f"pool {self.node_pool} is not one of this run's: {', '.join(selected)}")
            return self.node_pool
        pools = params.get("pools") or []
        if not params.get(PARAM_RESERVATION) or not params.get("until") or len(pools) != 1:
            raise AirflowSkipException("this run is not about the end of a Capacity Block")
        return str(pools[0])


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
