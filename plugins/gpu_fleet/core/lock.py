"""The cluster's turn: at most one Dag run at a time changes a cluster.

The record is the ConfigMap ``turn`` in ``gpu-fleet-system``, written by compare-and-swap. It has no expiry: a run may
wait for hours, and a lock that expires under its holder is none. It is stale only when Airflow says that the holder's
run is over, and only the deployment that the record names can know that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT, SYSTEM_NAMESPACE, TURN_CONFIG_MAP

TURN_REF = ObjectRef(CONFIG_MAP, TURN_CONFIG_MAP, SYSTEM_NAMESPACE)

#: The name of a deployment that nobody has named. Several may call themselves so.
NAMELESS_DEPLOYMENT = "airflow"

#: States in which Airflow runs nothing of a Dag run any more (``airflow.utils.state.DagRunState``).
OVER_STATES = frozenset({"success", "failed"})
ALIVE_STATES = frozenset({"queued", "running"})


@dataclass(frozen=True)
class Holder:
    """Who holds the turn.

    :ivar deployment: the Airflow deployment; :ivar since: RFC 3339, when the turn was taken.
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


class Turn(StrEnum):
    """What the record says to one run."""

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
    """The holder in a turn record; ``None`` without one. A record that lacks a field gives empty strings."""
    data = (config_map or {}).get("data") or {}
    if not data:
        return None
    return Holder(*(str(data.get(key, "")) for key in ("deployment", "dag_id", "run_id", "since")))


def observe(config_map: Mapping[str, Any] | None, me: Holder) -> Turn:
    """What the record says to ``me``."""
    holder = read_holder(config_map)
    if holder is None:
        return Turn.FREE
    if not (holder.deployment and holder.dag_id and holder.run_id):
        return Turn.UNREADABLE
    if holder.same_run(me):
        return Turn.OURS
    return Turn.HELD_HERE if holder.deployment == me.deployment else Turn.HELD_ELSEWHERE


def decide(turn: Turn, run_state: str | None = None, *, nameless: bool = False) -> Action:
    """What to do, given for ``HELD_HERE`` the state of the holder's run (``None``: Airflow has no such run).

    :param nameless: this deployment is :data:`NAMELESS_DEPLOYMENT`, so a run that it does not know may be a live one of
        another deployment without a name. (One of the same DAG and run id is still mistaken for our own.)
    :raises ValueError: for a state of a Dag run that is not known.
    """
    match turn:
        case Turn.FREE:
            return Action.TAKE
        case Turn.OURS:
            return Action.KEEP
        case Turn.HELD_ELSEWHERE | Turn.UNREADABLE:
            return Action.WAIT
        case Turn.HELD_HERE:
            if run_state is None:
                return Action.WAIT if nameless else Action.TAKE
            if run_state in OVER_STATES:
                return Action.TAKE
            if run_state in ALIVE_STATES:
                return Action.WAIT
            raise ValueError(f"state {run_state!r} of a Dag run is not known")


def record(holder: Holder | None, previous: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ConfigMap that names ``holder`` (``None``: the turn is free), carrying the version it replaces."""
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


def kept_longer_than(seconds: float, config_map: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether somebody has had the turn for longer, or a record in the way does not tell since when.

    A run that only now works takes its time; a turn that was left behind keeps every other run away for ever.

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
    """Who holds the turn, in words, with the remedy if nobody can tell whether that run is over."""
    holder = read_holder(config_map)
    if holder is None:
        return "nobody"
    if not (holder.deployment and holder.dag_id and holder.run_id):
        return f"a record that cannot be read; delete {TURN_REF} if nothing is running"
    if holder.deployment == NAMELESS_DEPLOYMENT:
        return (
            f"{holder}, a deployment without a name of its own: should its Airflow no longer know that run, delete "
            f"{TURN_REF} by hand; and set GPU_FLEET_DEPLOYMENT or [api] base_url in every deployment"
        )
    return str(holder)
