"""Starts a restoration of the pools that lost nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.operators.base import frozen_spec


class RestorePoolsOperator(TriggerDagRunOperator):
    """Start a run of ``gpu_restore`` for the pools that lost a node; one for each run, however often this is tried.

    That run takes the cluster lock, which this one must not wait for. It brings the pools to their ``wantedNodes``,
    proves the nodes and publishes the result.

    :param lost_task_id: the task whose result lists the pools.
    """

    def __init__(self, *, lost_task_id: str = "publish_lost", **kwargs: Any) -> None:
        super().__init__(
            # A run of ours refuses a conf with keys that are no Params.
            logical_date=None,
            skip_when_already_exists=True,
            openlineage_inject_parent_info=False,
            **kwargs,
        )
        self.lost_task_id = lost_task_id

    def execute(self, context: Mapping[str, Any]) -> None:
        ti = context["ti"]
        pools = (ti.xcom_pull(task_ids=self.lost_task_id) or {}).get("restore") or []
        if not pools:
            raise AirflowSkipException("no pool lost a node")
        if not frozen_spec(context).interruptions.prove_successor:
            raise AirflowSkipException("interruptions.proveSuccessor: false")
        self.conf = {"pools": pools}
        self.trigger_run_id = f"interruption__{ti.run_id}"
        self.log.info("starting a run of %s for %s", self.trigger_dag_id, ", ".join(pools))
        super().execute(context)
