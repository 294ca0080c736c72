"""Notifiers by import path: found, checked, called, and never anybody's downfall."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.hooks.notifiers import VARIABLES, check_notifiers, load_notifier, send, ui_url, validation_overdue
from tests.unit import notifying

HERE = "tests.unit.notifying"
WORDS = {name: f"<{name}>" for name in VARIABLES}


@pytest.fixture(autouse=True)
def _calls() -> Iterator[None]:
    notifying.CALLS.clear()
    notifying.GO_ON.clear()
    yield
    notifying.GO_ON.set()


def entry(name: str, **arguments: Any) -> dict[str, Any]:
    return {"notifier": f"{HERE}.{name}", "arguments": arguments}


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"notifier": "nowhere.at.all.Notifier"}, "validation.notify[1].notifier", "No module named 'nowhere'"),
        (entry("Absent"), "validation.notify[1].notifier", "Absent"),
        (entry("not_a_notifier"), "validation.notify[1].notifier", "BaseNotifier"),
        (entry("RecordingNotifier"), "validation.notify[1].arguments", "message"),
        (entry("RecordingNotifier", message="m", colour="red"), "validation.notify[1].arguments", "colour"),
    ],
)
def test_what_cannot_be_used_is_named_with_field_and_remedy(wrong: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        check_notifiers([entry("RecordingNotifier", message="m"), wrong])
    assert caught.value.field == field
    assert caught.value.remedy


def test_checking_notifies_nobody() -> None:
    assert check_notifiers([entry("RecordingNotifier", message="m")]) == [f"{HERE}.RecordingNotifier"]
    assert notifying.CALLS == []


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_is_known_to_templates_also_under_the_name_of_a_field(name: str) -> None:
    """BaseNotifier's own __call__ would put the field's template in the place of the variable ``message``."""
    assert send(entry("RecordingNotifier", message=f"a {{{{ {name} }}}} b"), "f", WORDS) is None
    assert [("RecordingNotifier", {"message": f"a <{name}> b", "subject": ""})] == notifying.CALLS


@pytest.mark.parametrize("name", ["conn.aws_default.password", "var.value.token", "macros.datetime", "ti", "run_id"])
def test_nothing_of_airflows_context_is_known(name: str) -> None:
    """Who may edit a cluster file would else read every connection and variable of the deployment."""
    problem = send(entry("RecordingNotifier", message=f"{{{{ {name} }}}}"), "f", WORDS)
    assert problem is not None
    assert f"'{name.split('.')[0]}' is undefined" in problem
    assert notifying.CALLS == []


@pytest.mark.parametrize("hidden", ["message.__class__.__mro__", "cycler.__init__.__globals__"])
def test_a_template_does_not_reach_pythons_inside(hidden: str) -> None:
    problem = send(entry("RecordingNotifier", message=f"{{{{ {hidden} }}}}"), "f", WORDS)
    assert problem is not None
    assert "SecurityError" in problem


def test_a_notifier_gets_the_variables_as_its_context() -> None:
    send(entry("ContextNotifier", message="m"), "f", WORDS)
    assert notifying.CALLS == [("ContextNotifier", WORDS)]


def test_what_the_deployment_does_not_allow_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_FLEET_ALLOWED_NOTIFIERS", "airflow.providers")
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(SpecError, match="GPU_FLEET_ALLOWED_NOTIFIERS") as caught:
        load_notifier(entry("RecordingNotifier", message="m"), "validation.notify[0]")
    assert (caught.value.field, caught.value.reason) == ("validation.notify[0].notifier", "NotAllowedHere")
    assert "does not let cluster files name 'os.system'" in str(send({"notifier": "os.system"}, "f", WORDS))


def test_a_connection_that_is_not_allowed_is_not_used() -> None:
    named = entry("RecordingNotifier", message="m", hook={"slack_conn_id": "payroll"})
    with pytest.raises(SpecError, match="payroll") as caught:
        load_notifier(named, "validation.notify[0]")
    assert caught.value.field == "validation.notify[0].arguments.hook.slack_conn_id"


def test_what_a_message_contains_is_not_rendered_again() -> None:
    """A pod writes its own termination message: it must not reach a template engine."""
    hostile = {**WORDS, "message": "{{ 7 * 7 }} {% for x in y %}"}
    send(entry("RecordingNotifier", message="{{ message }}"), "f", hostile)
    assert notifying.CALLS[0][1]["message"] == hostile["message"]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (entry("FailingNotifier", message="m"), "FailingNotifier: ConnectionRefusedError: smtp.example.com"),
        (entry("RecordingNotifier", message="{{ mesage }}"), "'mesage' is undefined"),
        (entry("RecordingNotifier", message="{{ "), "TemplateSyntaxError"),
        (entry("Absent"), "cannot be imported"),
    ],
)
def test_a_notifier_that_fails_is_named_and_raises_nothing(named: dict[str, Any], words: str) -> None:
    problem = send(named, "validation.notify[0]", WORDS)
    assert problem is not None
    assert words in problem
    assert str(named["notifier"]) in problem


def test_a_notifier_that_hangs_is_left_behind() -> None:
    problem = send(entry("HangingNotifier", message="m"), "f", WORDS, patience_s=0.05)
    assert problem is not None
    assert "HangingNotifier: did not return within 0.05 s" in problem


@pytest.mark.parametrize(
    "named",
    [
        {
            "notifier": "airflow.providers.amazon.aws.notifications.sns.SnsNotifier",
            "arguments": {"target_arn": "arn:aws:sns:us-west-2:123456789012:gpu", "message": "{{ message }}"},
        },
        {
            "notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
            "arguments": {"to": "gpu@example.com", "subject": "{{ pool }}", "html_content": "{{ message | e }}"},
        },
    ],
    ids=["sns", "smtp"],
)
def test_the_documented_notifiers_take_the_documented_arguments(named: dict[str, Any]) -> None:
    assert load_notifier(named, "validation.notify[0]") is not None


def test_addresses_of_the_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/gpu/")
    assert ui_url("/gpu-fleet/reports/d/r") == "https://airflow.example.com/gpu/gpu-fleet/reports/d/r"


async def test_overdue_tells_every_notifier_and_fails_if_one_did() -> None:
    context = {"dag_run": {"dag_id": "gpu_revalidate.demo", "dag_run_id": "scheduled__1"}}
    good = entry("RecordingNotifier", message="{{ cluster }} {{ reason }}", subject="{{ message }}")
    with pytest.raises(RuntimeError, match="FailingNotifier"):
        await validation_overdue("demo", 3600, [entry("FailingNotifier", message="x"), good], context)
    assert notifying.CALLS[-1] == (
        "RecordingNotifier",
        {
            "message": "demo ValidationOverdue",
            "subject": "Revalidation of cluster demo is overdue: run scheduled__1 has not ended 60 min after it was "
            "due.",
        },
    )
    assert await validation_overdue("demo", 3600, [good]) == "1 notifier(s) told"


DUE = "2026-11-01T05:30:00Z"


@pytest.mark.parametrize("as_text", [True, False], ids=["due as text", "due as a time"])
@pytest.mark.parametrize(
    ("ended", "told"),
    [(None, True), ("2026-11-01T05:29:59.5Z", False), (DUE, False), ("2026-11-01T05:30:01Z", True)],
    ids=["still runs", "failed in time", "at the last moment", "too late"],
)
async def test_a_run_that_ended_in_time_is_not_overdue(ended: str | None, told: bool, as_text: bool) -> None:
    """Airflow calls back for every run that did not succeed, whenever it ended."""
    context = {
        "dag_run": {"dag_id": "gpu_revalidate.demo", "dag_run_id": "scheduled__1", "end_date": ended},
        "deadline": {"id": "1", "deadline_time": DUE if as_text else datetime.fromisoformat(DUE)},
    }
    answer = await validation_overdue("demo", 3600, [entry("RecordingNotifier", message="m")], context)
    assert answer.endswith("1 notifier(s) told" if told else "no notification sent")
    assert len(notifying.CALLS) == int(told)
