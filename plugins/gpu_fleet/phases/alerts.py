"""Alerts that the scheduler itself raises, because there may be no task that could."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from gpu_fleet.hooks.notifiers import validation_overdue

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


def overdue_alert(spec: ClusterSpec) -> DeadlineAlert | None:
    """For ``DAG(deadline=…)``: notifies ``validation.notify`` when a revalidation is late; ``None`` if not configured.

    Counted from the logical date, which with Airflow's default timetable for cron expressions is when the run was due
    (``[scheduler] create_cron_data_intervals`` false). A run by hand without a logical date has no such deadline. A
    paused DAG, or a scheduler that does not run, creates no run and so raises no alert.
    """
    after = spec.validation.overdue_after
    if after is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=timedelta(seconds=after.seconds),
        callback=AsyncCallback(
            validation_overdue,
            kwargs={
                "cluster": spec.name,
                "overdue_after_s": after.seconds,
                "notifiers": [entry.model_dump(mode="json") for entry in spec.validation.notify],
            },
        ),
    )
