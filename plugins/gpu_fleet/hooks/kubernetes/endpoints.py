"""How triggers get an API server's address, headers and connections: nothing here blocks the event loop, or a thread
that another region needs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, SpecError
from gpu_fleet.hooks import lanes
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.credentials import Credentials, Endpoint

if TYPE_CHECKING:
    import aiohttp

#: Seconds that a trigger waits for AWS to say where a cluster is, or for fresh credentials. The call continues beyond
#: that (boto3 repeats it for minutes); a second caller waits for the same one.
PATIENCE_S = 15.0
#: Seconds within which a failed look-up is not repeated for the same cluster: each of its watches would ask.
REFUSED_S = 5.0
#: Seconds that a trigger waits to learn whether a cluster's connection has changed. After that it uses the
#: endpoint that it has.
CHECK_PATIENCE_S = 5.0

_lock = threading.Lock()
_refused: dict[ClusterAccess, tuple[int, float, GpuFleetError]] = {}


def lane_of(access: ClusterAccess) -> Hashable:
    """What may hang together with this cluster: its region, as the connection sees it, or its kubeconfig."""
    if access.mode == "eks":
        return ("eks", access.aws_conn_id, access.region)
    return ("kubeconfig", access.path)


def aws_lane_of(access: ClusterAccess) -> Hashable:
    """The lane of AWS calls about this cluster."""
    return ("aws", access.aws_conn_id, access.region)


@contextmanager
def connection_was_there() -> Iterator[None]:
    """Around whatever a trigger does with its Airflow connection.

    A worker has used that connection just before it deferred. Airflow calls one absent also in an outage: errors of a
    secrets backend are passed over (Airflow 3.3.2 airflow/sdk/execution_time/context.py, ``_get_connection``). So in a
    trigger an absent connection is one that cannot be read at the moment, and no verdict about the cluster file.

    :raises ApiUnavailable: ``ConnectionUnreadable``.
    """
    try:
        yield
    except SpecError as error:
        if error.field != "aws.connection":
            raise
        raise ApiUnavailable(
            f"this triggerer cannot read the connection that the worker had: {error.message}; check Airflow's API "
            "server and secrets backend, and that the connection still exists",
            reason="ConnectionUnreadable",
        ) from error


async def endpoint_of(access: ClusterAccess) -> Endpoint:
    """The cluster's endpoint, looked up by one call for all who need it.

    :raises GpuFleetError: as :func:`kubernetes_access.resolve`; the same again for :data:`REFUSED_S`.
    :raises ApiUnavailable: also if the connection cannot be read, or there is no answer within :data:`PATIENCE_S`.
    """
    await _check_connection(access)
    known = kubernetes_access.known(access)
    if known is not None:
        return known
    with _lock:
        refused = _refused.get(access)
    if refused is not None and refused[0] == os.getpid() and time.monotonic() - refused[1] < REFUSED_S:
        raise refused[2].with_traceback(None)
    try:
        return await lanes.shared(lane_of(access), ("resolve", access), partial(_resolve, access), within=PATIENCE_S)
    except TimeoutError as error:
        raise ApiUnavailable(f"no address of {access} within {PATIENCE_S:.0f} s; {_remedy(access)}") from error


async def _check_connection(access: ClusterAccess) -> None:
    """Forget an endpoint whose connection has changed; the connection is read only now and then.

    In a lane of its own: reading a connection asks Airflow, not the region.
    """
    if not kubernetes_access.is_check_due(access):
        return
    lane = ("connection", lane_of(access))
    try:
        await lanes.shared(lane, access, partial(kubernetes_access.check, access), within=CHECK_PATIENCE_S)
    except TimeoutError:
        kubernetes_access.put_off_check(access)


async def headers_of(access: ClusterAccess, endpoint: Endpoint) -> dict[str, str]:
    """The headers that authenticate a request: at once, unless they have to be renewed.

    :raises GpuFleetError: there are no credentials, or none within :data:`PATIENCE_S`.
    """
    ready = endpoint.credentials.ready()
    if ready is not None:
        return ready
    found: dict[str, str] = await _with_credentials(
        access, ("headers", endpoint.credentials), endpoint.credentials.headers
    )
    return found


async def renewed(access: ClusterAccess, endpoint: Endpoint, refused: Mapping[str, str]) -> bool:
    """After a 401: drop the credentials; whether another attempt may be accepted.

    :param refused: the headers that were not accepted; of many watches that learn it, only the first drops them.
    """
    ready = endpoint.credentials.ready()
    if ready is not None and ready != refused:
        return True
    work = partial(_renew, endpoint.credentials)
    accepted: bool = await _with_credentials(access, ("renew", endpoint.credentials), work)
    return accepted


async def _with_credentials(access: ClusterAccess, key: Hashable, work: Any) -> Any:
    try:
        with connection_was_there():
            return await lanes.shared(lane_of(access), key, work, within=PATIENCE_S)
    except TimeoutError as error:
        raise ApiUnavailable(
            f"no fresh credentials for {access} within {PATIENCE_S:.0f} s; {_remedy(access)}"
        ) from error


def connector(access: ClusterAccess) -> aiohttp.TCPConnector:
    """Connections to one cluster, as many as there are watches, whose names are looked up in its lane.

    aiohttp's default of 100 would make further watches wait silently, and its resolver uses the event
    loop's default pool (aiohttp 3.14 aiohttp/connector.py, aiohttp/resolver.py). What the system cannot give (no file
    descriptor, no port) is an error that the watch reports.
    """
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class LaneResolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            look = partial(
                socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
            try:
                found = await lanes.shared(("dns", lane_of(access)), (host, port, family), look, within=PATIENCE_S)
            except TimeoutError as error:
                raise OSError(f"the name {host} was not resolved within {PATIENCE_S:.0f} s") from error
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=int(address[1]),
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for kind, _, protocol, _, address in found
            ]

        async def close(self) -> None:
            return

    return aiohttp.TCPConnector(limit=0, resolver=LaneResolver())


def _renew(credentials: Credentials) -> bool:
    """Drop and renew in one call: another watch finds this call under way, or the new headers after it."""
    if not credentials.renew():
        return False
    credentials.headers()
    return True


def _resolve(access: ClusterAccess) -> Endpoint:
    try:
        with connection_was_there():
            return kubernetes_access.resolve(access)
    except GpuFleetError as error:
        with _lock:
            _refused[access] = (os.getpid(), time.monotonic(), error)
        raise


def _remedy(access: ClusterAccess) -> str:
    if access.mode == "eks":
        return "AWS does not answer: check the region, the network and the connection's endpoints"
    return "check the disk that holds the kubeconfig"
