"""Fails the run of a drain in which work was lost: somebody should know, although nothing can be done any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseOperator

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.operators.base import DRAIN_TASK_ID
from gpu_fleet.operators.interruptions.drain import INTERRUPTION
from gpu_fleet.operators.links import ReportLink


class NothingLostOperator(BaseOperator):
    """Succeeds if no pod ended with its instance, and every node's pods were seen.

    :returns: the report's headline.
    :raises PermanentError: ``PodsLost``, with the pods; ``PodsUnseen`` if a node's pods could not be listed in time.
    """

    operator_extra_links = (ReportLink(),)

    def execute(self, context: Mapping[str, Any]) -> str:
        # Here, so that a DAG file does not load what only this task needs.
        from gpu_fleet.core.interruptions.report import InterruptionReport, NodeOutcome

        report = InterruptionReport.from_json(context["ti"].xcom_pull(task_ids=DRAIN_TASK_ID, key=INTERRUPTION))
        lost = [f"{pod['namespace']}/{pod['name']} on {pod['node']}" for pod in report.with_outcome("Lost")]
        if lost:
            more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
            raise PermanentError(f"{report.headline()}: {', '.join(lost[:10])}{more}", reason="PodsLost")
        unseen = [str(node["node"]) for node in report.nodes if node.get("outcome") == NodeOutcome.UNSEEN]
        if unseen:
            raise PermanentError(
                f"the pods of {', '.join(unseen)} could not be listed before the instances ended; the task "
                f"{DRAIN_TASK_ID} says why",
                reason="PodsUnseen",
            )
        return report.headline()
