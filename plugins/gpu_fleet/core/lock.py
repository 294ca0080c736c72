"""The cluster lock: at most one Dag run at a time changes a cluster.

The record is the ConfigMap ``turn`` in ``gpu-fleet-system``, written by compare-and-swap. It has no expiry: a run may
wait for hours, and a lock that expires while its holder works does not lock. It is stale only when Airflow reports that
the holder's run is over, and only the deployment that the record names can know that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT, SYSTEM_NAMESPACE, TURN_CONFIG_MAP

LOCK_REF = ObjectRef(CONFIG_MAP, TURN_CONFIG_MAP, SYSTEM_NAMESPACE)

#: The name of a deployment without a name of its own. Several deployments may use it.
NAMELESS_DEPLOYMENT = "airflow"

#: States of a Dag run that is over (``airflow.utils.state.DagRunState``).
OVER_STATES = frozenset({"success", "failed"})
ALIVE_STATES = frozenset({"queued", "running"})


@dataclass(frozen=True)
class Holder:
    """Who holds the lock.

    :ivar deployment: the Airflow deployment.
    :ivar since: when the lock was taken, RFC 3339.
    """

    deployment: str
    dag_id: str
    run_id: str
    since: str = ""

    def same_run(self, other: Holder) -> bool:
        return (self.deployment, self.dag_id, self.run_id) == (other.deployment, other.dag_id, other.run_id)

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since else ""
        return f"{self.dag_id}/{self.run_id} of {self.deployment}{since}"

    def to_data(self) -> dict[str, str]:
        return {
            "deployment": self.deployment,
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "since": self.since,
        }


class LockState(StrEnum):
    """The lock as one run sees it."""

    FREE = "Free"
    OURS = "Ours"
    HELD_HERE = "HeldHere"  # by a run of this deployment: Airflow knows whether it is over
    HELD_ELSEWHERE = "HeldElsewhere"  # by another deployment: never stale by itself
    UNREADABLE = "Unreadable"  # a record that this version does not understand


class Action(StrEnum):
    """What to do about it."""

    TAKE = "Take"
    KEEP = "Keep"
    WAIT = "Wait"


def read_holder(config_map: Mapping[str, Any] | None) -> Holder | None:
    """The holder in a record; ``None`` without one. A field that the record lacks is an empty string."""
    data = (config_map or {}).get("data") or {}
    if not data:
        return None
    return Holder(*(str(data.get(key, "")) for key in ("deployment", "dag_id", "run_id", "since")))


def observe(config_map: Mapping[str, Any] | None, me: Holder) -> LockState:
    """The lock as ``me`` sees it."""
    holder = read_holder(config_map)
    if holder is None:
        return LockState.FREE
    if not (holder.deployment and holder.dag_id and holder.run_id):
        return LockState.UNREADABLE
    if holder.same_run(me):
        return LockState.OURS
    return LockState.HELD_HERE if holder.deployment == me.deployment else LockState.HELD_ELSEWHERE


def decide(lock: LockState, run_state: str | None = None, *, nameless: bool = False) -> Action:
    """What to do, given for ``HELD_HERE`` the state of the holder's run (``None``: Airflow has no such run).

    :param nameless: this deployment is :data:`NAMELESS_DEPLOYMENT`, so a run that it does not know may be a live run of
        another deployment without a name. (One with the same DAG and run id is still mistaken for our own.)
    :raises ValueError: for a state of a Dag run that is not known.
    """
    match lock:
        case LockState.FREE:
            return Action.TAKE
        case LockState.OURS:
            return Action.KEEP
        case LockState.HELD_ELSEWHERE | LockState.UNREADABLE:
            return Action.WAIT
        case LockState.HELD_HERE:
            if run_state is None:
                return Action.WAIT if nameless else Action.TAKE
            if run_state in OVER_STATES:
                return Action.TAKE
            if run_state in ALIVE_STATES:
                return Action.WAIT
            raise ValueError(f"state {run_state!r} of a Dag run is not known")


def record(holder: Holder | None, previous: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ConfigMap that names ``holder`` (``None``: the lock is free), with the version that it replaces."""
    metadata: dict[str, Any] = {
        "name": TURN_CONFIG_MAP,
        "namespace": SYSTEM_NAMESPACE,
        "labels": {LABEL_COMPONENT: "turn"},
    }
    if previous is not None:
        metadata["resourceVersion"] = previous["metadata"]["resourceVersion"]
        metadata["uid"] = previous["metadata"]["uid"]
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": metadata,
        "data": holder.to_data() if holder else {},
    }


def held_longer_than(seconds: float, config_map: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether the lock has been held for longer, or a record that holds it does not say since when.

    A run that works will end; a lock that a dead run left behind blocks every other run until a person removes it.

    :param now: with a time zone.
    """
    holder = read_holder(config_map)
    if holder is None:
        return False
    try:
        since = datetime.fromisoformat(holder.since)
    except ValueError:
        return True
    return (now - since.astimezone(UTC)).total_seconds() > seconds


def held_by(config_map: Mapping[str, Any]) -> str:
    """Who holds the lock, in words, with the remedy if it cannot be known whether that run is over."""
    holder = read_holder(config_map)
    if holder is None:
        return "no run"
    if not (holder.deployment and holder.dag_id and holder.run_id):
        return f"a record that cannot be read; delete {LOCK_REF} if nothing is running"
    if holder.deployment == NAMELESS_DEPLOYMENT:
        return (
            f"{holder}, a deployment without a name of its own: if its Airflow no longer knows that run, delete "
            f"{LOCK_REF} by hand; and set GPU_FLEET_DEPLOYMENT or [api] base_url in every deployment"
        )
    return str(holder)
