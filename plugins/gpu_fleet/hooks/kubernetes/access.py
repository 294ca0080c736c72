"""How a cluster is reached: address, trust and credentials, from EKS or from a kubeconfig file.

Resolved once per process and cluster: creating an SSL context or asking EKS again for every call would block a
triggerer's event loop for seconds (apache/airflow#71349, #73399). What was resolved follows the Airflow connection, or
the kubeconfig, that it was made of.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gpu_fleet.hooks.kubernetes.credentials import Endpoint

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

log = logging.getLogger(__name__)

#: Seconds after which address and trust are looked up again: a cluster may be recreated under its old name.
ENDPOINT_TTL_S = 600.0
#: Seconds after which a process reads again what an endpoint was made of. An AWS session reads its Airflow connection
#: at most as often (``hooks/aws``, ``CONNECTION_TTL_S``), so that a change is followed within a minute.
CONNECTION_CHECK_S = 30.0


@dataclass(frozen=True)
class ClusterAccess:
    """Where a cluster is and which identity to use: JSON-able, without credentials, fit for trigger arguments.

    :ivar mode: ``eks`` asks EKS for address and trust and signs tokens with the Airflow connection;
        ``kubeconfig`` reads a file.
    :ivar path: kubeconfig file; ``None`` means the one ``$KUBECONFIG`` names.
    :ivar context: kubeconfig context; ``None`` means the current one.
    """

    mode: Literal["eks", "kubeconfig"]
    aws_conn_id: str | None
    region: str | None
    cluster_name: str | None
    path: str | None = None
    context: str | None = None

    @classmethod
    def from_spec(cls, spec: ClusterSpec) -> ClusterAccess:
        access = spec.cluster.access
        return cls(
            mode=access.mode,
            aws_conn_id=spec.aws.connection,
            region=spec.aws.region,
            cluster_name=spec.cluster.name,
            path=getattr(access, "path", None),
            context=getattr(access, "context", None),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClusterAccess:
        return cls(**value)

    def __str__(self) -> str:
        if self.mode == "eks":
            return f"EKS cluster {self.cluster_name!r} in {self.region or 'the default region'}"
        return f"cluster of kubeconfig {self.path or '$KUBECONFIG'!r}"


@dataclass
class Known:
    """A resolved endpoint in the cache.

    :ivar fingerprint: a digest of the connection or kubeconfig that it was made of.
    :ivar checked_at: when that was last compared, by the monotonic clock.
    """

    endpoint: Endpoint
    fingerprint: str
    pid: int = field(default_factory=os.getpid)
    resolved_at: float = field(default_factory=lambda: time.monotonic())
    checked_at: float = field(default_factory=lambda: time.monotonic())


_lock = threading.Lock()
_locks: dict[ClusterAccess, threading.Lock] = {}
_cache: dict[ClusterAccess, Known] = {}


def resolve(access: ClusterAccess) -> Endpoint:
    """The cluster's endpoint, cached for :data:`ENDPOINT_TTL_S`. Blocking; triggers use ``endpoints.py``.

    :raises NotFound: the EKS cluster, file or context does not exist.
    :raises ApiUnavailable: the cluster has no endpoint yet.
    :raises SpecError: the kubeconfig, or what it holds or names, is not usable.
    """
    with _lock:
        own = _locks.setdefault(access, threading.Lock())
    # One lock per cluster: an AWS region that does not answer must not hold up the others.
    with own:
        if is_check_due(access):
            check(access)
        found = known(access)
        if found is not None:
            return found
        endpoint, fingerprint = _look_up(access)
        _cache[access] = Known(endpoint, fingerprint)
        return endpoint


def known(access: ClusterAccess) -> Endpoint | None:
    """The cluster's endpoint if it was looked up lately; never blocks."""
    found = _known(access)
    return None if found is None else found.endpoint


def is_check_due(access: ClusterAccess) -> bool:
    """Whether what the endpoint was made of may have changed since it was last read; never blocks."""
    found = _known(access)
    return found is not None and time.monotonic() - found.checked_at >= CONNECTION_CHECK_S


def check(access: ClusterAccess) -> None:
    """Forget the endpoint if the connection or kubeconfig that it was made of has changed. Blocking.

    One that cannot be read changes nothing: the endpoint works until it is refused, or has to be looked up again.
    """
    found = _known(access)
    if found is None:
        return
    try:
        fingerprint = _fingerprint(access)
    except Exception as error:  # noqa: BLE001  (whatever keeps Airflow or the disk from answering)
        log.warning("%s: cannot check whether its connection has changed: %s", access, error)
    else:
        if fingerprint != found.fingerprint:
            log.info("%s: the connection has changed; address and credentials are looked up again", access)
            forget(access, found.endpoint)
    found.checked_at = time.monotonic()


def put_off_check(access: ClusterAccess) -> None:
    """Count the check as done; for a caller that has waited for it in vain."""
    found = _known(access)
    if found is not None:
        found.checked_at = time.monotonic()


def forget(access: ClusterAccess, endpoint: Endpoint | None = None) -> None:
    """Look the cluster up again next time (its address or trust may have changed).

    :param endpoint: only if it is still this one: of many watches that break at once, one look-up is enough.
    """
    found = _cache.get(access)
    if found is not None and (endpoint is None or found.endpoint is endpoint):
        _cache.pop(access, None)


def _known(access: ClusterAccess) -> Known | None:
    found = _cache.get(access)
    if found and found.pid == os.getpid() and time.monotonic() - found.resolved_at < ENDPOINT_TTL_S:
        return found
    return None


def _look_up(access: ClusterAccess) -> tuple[Endpoint, str]:
    """The endpoint and what it is made of; that is read first, so that a change in between is noticed."""
    if access.mode == "eks":
        from gpu_fleet.hooks.kubernetes.eks_cluster import eks_endpoint

        fingerprint = _fingerprint(access)
        return eks_endpoint(access), fingerprint
    from gpu_fleet.hooks.kubernetes.kubeconfig import Kubeconfig

    found = Kubeconfig.read(access.path, access.context)
    return found.endpoint(), found.fingerprint()


def _fingerprint(access: ClusterAccess) -> str:
    if access.mode == "eks":
        from gpu_fleet.hooks.kubernetes.eks_cluster import eks_fingerprint

        return eks_fingerprint(access)
    from gpu_fleet.hooks.kubernetes.kubeconfig import Kubeconfig

    return Kubeconfig.read(access.path, access.context).fingerprint()
