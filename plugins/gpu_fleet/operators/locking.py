"""Taking and keeping the cluster lock for one Dag run; the rules are in ``core/lock.py``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core import lock as rules
from gpu_fleet.core.errors import ClusterBusy, Conflict
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, ObjectRef
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.lock import LOCK_REF, Action, Holder, LockState
from gpu_fleet.operators.base import FleetOperator, tasks_before
from gpu_fleet.operators.manifests import ensure_objects

#: Attempts at one compare-and-swap. More than a handful of writers at the same instant means that something else is
#: wrong.
SWAPS = 5


def this_run(context: Mapping[str, Any]) -> Holder:
    """The current run as a holder."""
    from gpu_fleet.hooks.settings import Settings

    ti = context["ti"]
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Holder(Settings.from_environment().deployment, ti.dag_id, ti.run_id, since)


def lock_tasks(operator: FleetOperator) -> list[str]:
    """The ids of the tasks upstream that take the cluster lock."""
    return tasks_before(operator, lambda task: getattr(task, "takes_lock", False))


def run_state(context: Mapping[str, Any], holder: Holder) -> str | None:
    """The state of the holder's Dag run in this Airflow; ``None`` if Airflow has no such run."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        state = context["ti"].get_dagrun_state(dag_id=holder.dag_id, run_id=holder.run_id)
        # Airflow returns a member of an enumeration, whose text is its name and whose value is the state.
        return str(getattr(state, "value", state))
    except AirflowRuntimeError as error:
        # The status itself: the message of any other error may contain these digits, for example in a run id.
        if (error.error.detail or {}).get("status_code") == 404:
            return None
        raise


def take_lock(operator: FleetOperator, context: Mapping[str, Any]) -> Holder | None:
    """Take the lock if it is free or its holder's run is over; keep it if this run holds it.

    :returns: this run as the holder; ``None`` if another live run holds the lock, which is logged.
    :raises ClusterBusy: too many others wrote the record at the same time.
    """
    me, kube, log = this_run(context), operator.kube, operator.log
    for _ in range(SWAPS):
        found = kube.get(LOCK_REF)
        lock = rules.observe(found, me)
        holder = rules.read_holder(found)
        state = run_state(context, holder) if lock is LockState.HELD_HERE and holder else None
        action = rules.decide(lock, state, nameless=me.deployment == rules.NAMELESS_DEPLOYMENT)
        if action is Action.KEEP and holder:
            log.debug("this run has held the cluster lock since %s", holder.since)
            return holder
        if action is not Action.TAKE:
            log.info("the cluster lock is held by %s", rules.held_by(found or {}))
            return None
        if lock is LockState.HELD_HERE:
            log.warning("taking the cluster lock over from %s: that run is %s", holder, state or "unknown to Airflow")
        if _swap(operator, found, me):
            log.info("took the cluster lock: %s", me)
            return me
    raise ClusterBusy(f"{LOCK_REF} changed {SWAPS} times while it was being taken; the task will be retried")


def keep_lock(operator: FleetOperator, context: Mapping[str, Any]) -> None:
    """Ensure that this run holds the cluster lock before one of its tasks changes something.

    It usually does. A task that a person clears after its run has released the lock takes it again if it is free, and
    leaves it with the run until that is over. A DAG without a task that takes the lock needs none.

    :raises ClusterBusy: another run holds the lock; a retry looks again.
    """
    if not lock_tasks(operator) or take_lock(operator, context) is not None:
        return
    holder = rules.held_by(operator.kube.get(LOCK_REF) or {})
    raise ClusterBusy(
        f"task {operator.task_id} changes the cluster, whose lock is held by {holder}: wait until that run has ended, "
        "then clear this task again"
    )


def _swap(operator: FleetOperator, found: dict[str, Any] | None, me: Holder) -> bool:
    record = rules.record(me, found)
    try:
        if found is None:
            _ensure_namespace(operator)
            operator.kube.create(record)
        else:
            operator.kube.replace(record)
    except Conflict as error:
        if error.reason == "NamespaceTerminating":
            raise
        operator.log.info("another writer changed the record of the cluster lock first; looking again")
        return False
    return True


def _ensure_namespace(operator: FleetOperator) -> None:
    """With the spec's labels: others would be reported as drift until something is applied there."""
    if operator.kube.get(ObjectRef(NAMESPACE, SYSTEM_NAMESPACE)) is None:
        ensure_objects(operator.kube, operator.spec, "system_namespaces", {SYSTEM_NAMESPACE})
