"""What an operator of the package may set through the environment of Airflow's components. Frozen once read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.lock import NAMELESS_DEPLOYMENT
from gpu_fleet.core.reservations.calendar import RECLAIM_S
from gpu_fleet.core.trust import CONNECTIONS_VARIABLE, KUBECONFIGS_VARIABLE, NOTIFIERS_VARIABLE, Trust


@dataclass(frozen=True)
class Settings:
    """
    :ivar poll_interval_s: seconds between looks at what cannot be watched (AWS). ``GPU_FLEET_POLL_INTERVAL``; 5 keeps
        a triggerer with a hundred gates far below EC2's and EKS's request quotas.
    :ivar turn_recheck_s: seconds after which a run that waits for the cluster lock asks Airflow whether the holder is
        still running. ``GPU_FLEET_TURN_RECHECK``; each time costs a short task.
    :ivar retry_delay_s: seconds before a failed task is tried again. ``GPU_FLEET_RETRY_DELAY``, read when a DAG is
        parsed; what waiting cures is waited for by gates, so the delay only has to outlast a short failure of
        an API.
    :ivar deployment: name of this Airflow deployment in the record of the cluster lock. ``GPU_FLEET_DEPLOYMENT``; by
        default the base URL of the Airflow UI, which differs between deployments. Without either it is a name that
        other deployments may have too: then a lock whose run this Airflow does not know is never taken over.
    """

    poll_interval_s: float = 5.0
    turn_recheck_s: float = 60.0
    retry_delay_s: float = 5.0
    deployment: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """
        :raises SpecError: naming the variable that is not a positive number.
        """
        env = os.environ if environment is None else environment
        return cls(
            poll_interval_s=_seconds(env, "GPU_FLEET_POLL_INTERVAL", cls.poll_interval_s),
            turn_recheck_s=_seconds(env, "GPU_FLEET_TURN_RECHECK", cls.turn_recheck_s),
            retry_delay_s=retry_delay_s(env),
            deployment=env.get("GPU_FLEET_DEPLOYMENT") or _base_url(),
        )


def retry_delay_s(environment: Mapping[str, str] | None = None) -> float:
    """:attr:`Settings.retry_delay_s` alone: all that is needed to parse a DAG.

    :raises SpecError: if it is not a positive number.
    """
    env = os.environ if environment is None else environment
    return _seconds(env, "GPU_FLEET_RETRY_DELAY", Settings.retry_delay_s)


def block_reclaim_s(environment: Mapping[str, str] | None = None) -> float:
    """Seconds before the end of a Capacity Block at which EC2 begins to terminate its instances; of UltraServers it
    begins twice as early. ``GPU_FLEET_BLOCK_RECLAIM``: another value is for a stand-in of EC2 with a faster clock.

    :raises SpecError: if it is not a positive number.
    """
    env = os.environ if environment is None else environment
    return _seconds(env, "GPU_FLEET_BLOCK_RECLAIM", RECLAIM_S)


def trust(environment: Mapping[str, str] | None = None) -> Trust:
    """What this deployment lets its cluster files name: comma-separated lists, each in a variable of its own.

    An empty variable is an empty list, which allows nothing; one that is not set leaves the default.
    """
    env = os.environ if environment is None else environment
    variables = {
        "notifiers": NOTIFIERS_VARIABLE,
        "connections": CONNECTIONS_VARIABLE,
        "kubeconfigs": KUBECONFIGS_VARIABLE,
    }
    given = {
        name: tuple(part for item in env[variable].split(",") if (part := item.strip()))
        for name, variable in variables.items()
        if variable in env
    }
    return Trust(**given)


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise SpecError(f"{text!r} is not a positive number of seconds", field=name, remedy=f"for example {default:g}")
    return value


def _base_url() -> str:
    from airflow.sdk import conf

    return str(conf.get("api", "base_url", fallback="") or NAMELESS_DEPLOYMENT).rstrip("/")
