"""Notifies people through any of Airflow's notifiers, named in the spec by import path.

A notifier is code of others that calls a service of others: it is bounded in time, and its failure is logged under its
name and never becomes the caller's.

Its template fields have ``message``, ``cluster``, ``pool``, ``was``, ``now``, ``reason`` and ``report_url``, and
nothing else. Airflow's own context has ``conn`` and ``var``, which read every connection and variable of the deployment
(airflow/sdk/execution_time/task_runner.py, ``get_template_context``, Airflow 3.3.2), and a cluster file is not trusted
with those. For the same reason the notifier is handed these variables as its context, and it and the connections
among its arguments have to be allowed (:mod:`gpu_fleet.core.trust`) before its module is imported.

The fields are rendered here and not by ``BaseNotifier.__call__``, which first copies the notifier's own fields over the
context (airflow/sdk/bases/notifier.py, ``_update_context``): a notifier with a field ``message``, as Amazon's
SnsNotifier is, would then find its own template under that name.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.links import run_path
from gpu_fleet.core.trust import NOT_ALLOWED, notifier_beyond
from gpu_fleet.hooks.settings import trust

log = logging.getLogger(__name__)

#: Seconds that one notifier may take; a mail server that does not answer must not hold a verdict back.
PATIENCE_S = 60.0

#: Names in a notifier's templates.
VARIABLES = ("message", "cluster", "pool", "was", "now", "reason", "report_url")


def load_notifier(entry: Mapping[str, Any], field: str) -> Any:
    """The notifier of one entry of ``validation.notify``, constructed and not yet used.

    :param entry: ``{"notifier": import path, "arguments": {…}}``.
    :param field: the entry's path in the spec, for messages.
    :raises SpecError: it may not be named here, cannot be imported, is no notifier, or does not take the arguments.
    """
    for problem in notifier_beyond(trust(), entry, field):
        raise SpecError(problem.message, field=problem.field, remedy=problem.remedy, reason=NOT_ALLOWED)
    path, arguments = str(entry.get("notifier", "")), dict(entry.get("arguments") or {})
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:
        # A module's import can fail in any way there is.
        raise SpecError(
            f"{path} cannot be imported here: {type(error).__name__}: {error}",
            field=f"{field}.notifier",
            remedy="correct the path, or install its package on scheduler, workers and triggerer",
        ) from error
    from airflow.sdk.bases.notifier import BaseNotifier

    if not (isinstance(kind, type) and issubclass(kind, BaseNotifier)):
        raise SpecError(
            f"{path} is not a class derived from Airflow's BaseNotifier",
            field=f"{field}.notifier",
            remedy="name one, for example airflow.providers.smtp.notifications.smtp.SmtpNotifier",
        )
    try:
        return kind(**arguments)
    except Exception as error:
        raise SpecError(
            f"{path} refuses its arguments: {type(error).__name__}: {error}",
            field=f"{field}.arguments",
            remedy="write its constructor's keyword arguments, see its provider's documentation",
        ) from error


def check_notifiers(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Load every notifier of a spec.

    :returns: their import paths.
    :raises SpecError: the first that cannot be used, with field and remedy.
    """
    for index, entry in enumerate(entries):
        load_notifier(entry, f"validation.notify[{index}]")
    return [str(entry["notifier"]) for entry in entries]


def send(
    entry: Mapping[str, Any],
    field: str,
    variables: Mapping[str, str],
    patience_s: float = PATIENCE_S,
) -> str | None:
    """Let one notifier do its work; never raises.

    :param variables: all that its templates know, and its context.
    :returns: ``None``, or what went wrong, with the notifier's name.
    """
    outcome: list[str | None] = []

    def work() -> None:
        try:
            notifier = load_notifier(entry, field)
            _deliver(notifier, variables)
        except Exception as error:  # noqa: BLE001  (see the module's docstring)
            outcome.append(f"{entry.get('notifier')}: {type(error).__name__}: {error}")
        else:
            outcome.append(None)

    _within(patience_s, work)
    if not outcome:
        return (
            f"{entry.get('notifier')}: did not return within {patience_s:g} s; the message may not have been delivered"
        )
    return outcome[0]


def _deliver(notifier: Any, variables: Mapping[str, str]) -> None:
    import jinja2

    known = dict(variables)
    # Without the DAG the environment is the sandboxed one, and a misspelt name is an error instead of an empty text.
    environment = notifier.get_template_env(dag=None)
    environment.undefined = jinja2.StrictUndefined
    notifier.render_template_fields(known, environment)
    notifier.notify(known)


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Run it in a thread, which is abandoned if it does not end in time."""
    scope = contextvars.copy_context()
    thread = threading.Thread(target=scope.run, args=(work,), name="notifier", daemon=True)
    thread.start()
    thread.join(seconds)


def ui_url(path: str) -> str:
    """A path of the Airflow UI as an address, by ``[api] base_url``; the bare path where that is not set."""
    from airflow.sdk import conf

    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/") + path


async def validation_overdue(
    cluster: str,
    overdue_after_s: float,
    notifiers: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None = None,
) -> str:
    """Callback of the deadline alert (:func:`gpu_fleet.phases.alerts.overdue_alert`); runs in the triggerer.

    The notifiers' synchronous side is used, in a thread: the asynchronous one of Amazon's needs aiobotocore, which
    their provider does not install.

    No notification is sent for a run that ended in time: Airflow itself drops a deadline only when its run *succeeds*
    (``DagRun.update_state``), and calls back also for runs that failed long before it.

    :param context: ``dag_run`` and ``deadline``, as the scheduler sends them
        (``airflow.models.deadline.Deadline.handle_miss``).
    :raises RuntimeError: if a notifier failed, so that the callback's state says so.
    """
    run, deadline = (dict((context or {}).get(key) or {}) for key in ("dag_run", "deadline"))
    dag_id, run_id = str(run.get("dag_id", "")), str(run.get("dag_run_id", ""))
    ended, due = _moment(run.get("end_date")), _moment(deadline.get("deadline_time"))
    if ended is not None and (due is None or ended <= due):
        return f"run {run_id} ended in time, at {ended.isoformat()}: no notification sent"
    message = (
        f"Revalidation of cluster {cluster} is overdue: run {run_id} has not ended "
        f"{overdue_after_s / 60:g} min after it was due."
    )
    failed = await asyncio.to_thread(tell_overdue, cluster, message, (dag_id, run_id), notifiers)
    if failed:
        raise RuntimeError("; ".join(failed))
    return f"{len(notifiers)} notifier(s) told"


def _moment(value: Any) -> datetime | None:
    """A time as Airflow hands it over: itself, or as text."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def tell_overdue(cluster: str, message: str, run: tuple[str, str], notifiers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell every notifier that a cluster's validation is overdue; never raises.

    :param run: DAG id and run id, for the link.
    :returns: what went wrong, by notifier.
    """
    variables = {
        "message": message,
        "cluster": cluster,
        "pool": "",
        "was": "",
        "now": "Overdue",
        "reason": "ValidationOverdue",
        "report_url": ui_url(run_path(*run)),
    }
    log.warning("%s", message)
    found = [send(entry, f"validation.notify[{index}]", variables) for index, entry in enumerate(notifiers)]
    failed = [problem for problem in found if problem is not None]
    for problem in failed:
        log.error("notifier failed: %s", problem)
    return failed
