"""The rules of a release's ``coordination.k8s.io/Lease``: who may act on a release. Pure; clocks are arguments.

The Lease is held only while a worker acts, never while a task is deferred. It cannot fence: a stopped process that
wakes up may still write. What it left behind is then detected in storage and repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT

COMPONENT = "lease"
#: Seconds without renewal after which a holder counts as dead. Long enough for a stalled API server or a garbage
#: collection pause, short enough that a retry does not wait for minutes.
LEASE_SECONDS = 30
#: Seconds beyond the duration before another worker may take a Lease: a holder that cannot renew it notices that at the
#: end of its duration, and then ends its helm, with SIGTERM first and SIGKILL after ``GRACE_SECONDS`` of
#: ``hooks/helm/binary/process.py``; if it were taken sooner, two helms would write at once. client-go's leader election
#: keeps the same distance from the other side: its ``RenewDeadline`` must be shorter than its ``LeaseDuration``
#: (client-go v0.36 tools/leaderelection/leaderelection.go).
TAKEOVER_GRACE_SECONDS = 6.0
#: Renewed this many times within its duration: three renewals may be lost.
RENEWALS = 4
#: Clocks of two workers may differ by this many seconds; a look takes a Lease that is older than its duration plus this
#: for dead.
CLOCK_SKEW_SECONDS = 60


@dataclass(frozen=True)
class LeaseRecord:
    """A Lease as read. An empty ``holder`` means that it was released.

    :ivar renewed: epoch seconds of the last renewal.
    :ivar duration: seconds without renewal after which the holder has lost it.
    """

    holder: str
    renewed: float
    duration: int
    version: str
    uid: str = ""
    transitions: int = 0


def lease_name(release: str) -> str:
    return f"gpu-fleet-release-{release}"


def micro_time(epoch: float) -> str:
    """Kubernetes' MicroTime: RFC 3339 with exactly six digits and Z."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _epoch(value: object) -> float:
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def parse_lease(lease: Mapping[str, Any] | None) -> LeaseRecord | None:
    """The record in a Lease object; ``None`` if there is no Lease."""
    if lease is None:
        return None
    spec = lease.get("spec") or {}
    metadata = lease.get("metadata") or {}
    return LeaseRecord(
        holder=str(spec.get("holderIdentity") or ""),
        renewed=_epoch(spec.get("renewTime")),
        duration=int(spec.get("leaseDurationSeconds") or LEASE_SECONDS),
        version=str(metadata.get("resourceVersion", "")),
        uid=str(metadata.get("uid", "")),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


def may_take(
    record: LeaseRecord | None, me: str, unchanged_for: float, *, grace: float = TAKEOVER_GRACE_SECONDS
) -> bool:
    """Whether ``me`` may take the Lease now.

    :param unchanged_for: seconds (by our own monotonic clock) for which this very record has been seen. No other
        worker's clock is trusted, as in client-go's leader election (client-go tools/leaderelection).
    :param grace: seconds beyond the Lease's duration within which the holder may still be ending its helm.
    """
    if record is None or not record.holder or record.holder == me:
        return True
    return unchanged_for >= record.duration + grace


def looks_alive(record: LeaseRecord | None, me: str, now: float) -> str | None:
    """The holder, if another worker seems to hold the Lease; for a look, which has no time to watch it.

    :param now: wall clock, epoch seconds; a wrong answer, because clocks differ, takes the Lease from no holder.
    """
    if record is None or may_take(record, me, unchanged_for=0.0):
        return None
    return record.holder if now - record.renewed <= record.duration + CLOCK_SKEW_SECONDS else None


def render_lease(
    release: str,
    namespace: str,
    holder: str,
    now: float,
    *,
    previous: LeaseRecord | None,
    acquired: float | None = None,
    duration: int = LEASE_SECONDS,
) -> dict[str, Any]:
    """The Lease object to be written; with ``resourceVersion`` (compare and swap) if one exists.

    :param holder: identity, or empty to release it.
    :param acquired: epoch seconds at which the holder took it; ``None`` for now.
    :param duration: seconds without renewal after which the holder counts as dead.
    """
    transitions = previous.transitions if previous else 0
    if previous is not None and holder and previous.holder != holder:
        transitions += 1
    spec: dict[str, Any] = {
        "holderIdentity": holder,
        "leaseDurationSeconds": duration if holder else 1,
        "renewTime": micro_time(now),
        "acquireTime": micro_time(acquired if acquired is not None else now),
        "leaseTransitions": transitions,
    }
    metadata: dict[str, Any] = {
        "name": lease_name(release),
        "namespace": namespace,
        "labels": {LABEL_COMPONENT: COMPONENT, "gpu-fleet.io/release": release},
    }
    if previous is not None:
        metadata["resourceVersion"] = previous.version
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
