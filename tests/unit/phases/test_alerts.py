"""The deadline alert of an overdue revalidation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.deadline import DagRunLogicalDateDeadline
from airflow.serialization.serialized_objects import DagSerialization
from airflow.triggers.callback import CallbackTrigger

from gpu_fleet.phases.alerts import overdue_alert
from tests.unit import notifying
from tests.unit.core.specs import demo_spec

MAIL: dict[str, Any] = {
    "notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
    "arguments": {"to": "gpu@example.com"},
}
RECORD: dict[str, Any] = {
    "notifier": "tests.unit.notifying.RecordingNotifier",
    "arguments": {"message": "{{ cluster }}: {{ now }}", "subject": "{{ report_url }}"},
}


def test_none_unless_asked_for() -> None:
    assert overdue_alert(demo_spec()) is None


def test_counted_from_when_the_run_was_due_and_told_to_the_same_notifiers() -> None:
    spec = demo_spec(schedule="0 4 * * *", validation={"overdueAfter": "90m", "notify": [MAIL]})
    alert = overdue_alert(spec)
    assert alert is not None
    assert isinstance(alert.reference, DagRunLogicalDateDeadline)
    assert alert.interval == timedelta(minutes=90)
    assert alert.callback.path == "gpu_fleet.hooks.notifiers.validation_overdue"
    assert alert.callback.kwargs == {"cluster": "demo", "overdue_after_s": 5400, "notifiers": [MAIL]}


def test_airflow_can_store_it() -> None:
    spec = demo_spec(schedule="0 4 * * *", validation={"overdueAfter": "90m", "notify": [MAIL]})
    with DAG("gpu_revalidate.demo", schedule=spec.schedule, deadline=overdue_alert(spec)) as dag:
        pass
    stored = DagSerialization.to_dict(dag)["dag"]["deadline"]
    assert stored


async def test_the_triggerer_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the context that the scheduler sends (``airflow.models.deadline.Deadline.handle_miss``)."""
    notifying.CALLS.clear()
    spec = demo_spec(schedule="0 4 * * *", validation={"overdueAfter": "90m", "notify": [RECORD]})
    alert = overdue_alert(spec)
    assert alert is not None
    context = {"dag_run": {"dag_id": "gpu_revalidate.demo", "dag_run_id": "scheduled__1"}, "deadline": {"id": "1"}}
    trigger = CallbackTrigger(alert.callback.path, {**alert.callback.kwargs, "context": context})
    events = [event.payload async for event in trigger.run()]
    assert [event["state"] for event in events] == ["running", "success"], events
    assert notifying.CALLS[0][1]["message"].startswith("demo: Overdue")
    assert notifying.CALLS[0][1]["subject"].endswith("/dags/gpu_revalidate.demo/runs/scheduled__1")
