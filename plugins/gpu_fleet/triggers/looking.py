"""One look through a gate: observe what its queries name, then judge it.

:func:`look` does both in the worker and blocks; the trigger observes by itself and shares :func:`judge` and
:func:`observe_aws`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GpuFleetError, TransientError
from gpu_fleet.core.queries import AwsQuery, KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, unseen

if TYPE_CHECKING:
    from gpu_fleet.core.gates.gate import Gate
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess

log = logging.getLogger(__name__)

API_UNAVAILABLE = "ApiUnavailable"


def gate_named(name: str) -> Gate:
    """The gate of that name; the gates are loaded by the first look: a DAG file that only defines a wait needs none.

    :raises KeyError: for a gate that is not registered.
    """
    from gpu_fleet.core.gates import registry

    return registry.gate_named(name)


def look(gate: str, args: Mapping[str, Any], access: ClusterAccess, *, started: float | None = None) -> Verdict:
    """One look, from the worker.

    :param args: the gate's JSON-able arguments.
    :param started: epoch seconds of the first look, by this machine's clock; now by default.
    :raises KeyError: for a gate that is not registered.
    """
    since = time.time() if started is None else started
    queries = gate_named(gate).queries(with_clocks(args, time.time(), since))
    try:
        snapshot = {query.key: _observe(access, query) for query in queries}
    except GpuFleetError as error:
        return verdict_of_error(error)
    # Only after the look: the answers carry the API server's time.
    ahead = clock_ahead(access) or 0.0
    return judge(gate, snapshot, args, now=time.time() + ahead, started=since + ahead)


def judge(
    gate: str, snapshot: Mapping[str, list[dict[str, Any]]], args: Mapping[str, Any], *, now: float, started: float
) -> Verdict:
    """The gate's verdict on a complete snapshot.

    :param now: epoch seconds by the API server's clock.
    :param started: epoch seconds of the first look, by the same clock.
    """
    return gate_named(gate).judge(snapshot, with_clocks(args, now, started))


def with_clocks(args: Mapping[str, Any], now: float, started: float) -> dict[str, Any]:
    """A gate's arguments with the clocks that it judges by, see :class:`gpu_fleet.core.gates.gate.Gate`."""
    return {**args, "now": now, "started": started, "here": time.time()}


def verdict_of_error(error: GpuFleetError) -> Verdict:
    """The verdict of a gate that cannot look, always blind: Progressing for a transient error, Failed for any other.

    The error's message names verb, resource and the server's words.
    """
    if isinstance(error, TransientError):
        return unseen(API_UNAVAILABLE, error.message, permanent=False)
    return unseen(error.reason, error.message, permanent=True)


def observe_aws(access: ClusterAccess, query: AwsQuery) -> list[dict[str, Any]]:
    """The result of a polled AWS query; blocking."""
    from gpu_fleet.hooks.aws import aws_session

    aws = aws_session(access.aws_conn_id, access.region)
    try:
        return aws.paginate(query.service, query.operation, query.path, **query.params)
    except GpuFleetError as error:
        if error.reason in query.absent_codes:
            return []
        raise


def clock_ahead(access: ClusterAccess) -> float | None:
    """Seconds by which the API server's clock is ahead of this machine's; ``None`` before its first answer to this
    process."""
    from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

    return KubernetesHook(access).client().ahead


def _observe(access: ClusterAccess, query: Query) -> list[dict[str, Any]]:
    if isinstance(query, AwsQuery):
        return observe_aws(access, query)
    try:
        return _list(access, query)
    except GpuFleetError as error:
        if query.watch:
            raise
        # The watched queries decide; a missing explanation only makes the message poorer. The trigger does the same.
        log.info("cannot list %s: %s", query.kind.plural, error)
        return []


def _list(access: ClusterAccess, query: KubeQuery) -> list[dict[str, Any]]:
    from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

    return (
        KubernetesHook(access)
        .client()
        .list(
            query.kind,
            query.namespace,
            name=query.name,
            label_selector=query.label_selector,
            field_selector=query.field_selector,
        )
    )


__all__ = [
    "API_UNAVAILABLE",
    "clock_ahead",
    "gate_named",
    "judge",
    "look",
    "observe_aws",
    "verdict_of_error",
    "with_clocks",
]
