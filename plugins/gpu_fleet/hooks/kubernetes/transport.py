"""HTTP to an API server: credentials, one fresh token after a 401, bounded retries, typed errors.

It uses urllib3, the transport of the stock client, without that client's generated models: importing those costs
seconds and about 80 MB in every task, and they refuse objects that lack a 'required' field.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, Throttled, Unauthorized
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.credentials import Endpoint
from gpu_fleet.hooks.kubernetes.errors import error_for, is_expired, parse_status

log = logging.getLogger(__name__)

#: Seconds from the beginning of a call after which no further attempt is begun, whatever took them: attempts that hung
#: until their time-out count as pauses do. Longer outages are the task's retries' business.
RETRY_BUDGET_S = 20.0
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
#: Connections that are kept open for the next calls. What asks from more threads than this opens a connection, with its
#: TLS handshake, for every call.
CONNECTIONS = 32
#: Seconds within which two clocks count as the same.
CLOSE_S = 2.0


def backoff_s(attempt: int) -> float:
    """Seconds before the next attempt (0-based): 0.2, 0.4, 0.8 … at most 5, with half of it random."""
    full = min(5.0, 0.2 * float(2 ** min(attempt, 10)))
    return full * (0.5 + random.random() / 2)  # noqa: S311  (jitter, not a secret)


class Transport:
    """Requests to one cluster. Safe for threads.

    :param sleep: waits between retries; injected by tests.
    :param monotonic: the clock of the retry budget; injected by tests.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self._sleep = sleep
        self._monotonic = monotonic
        self._pool: Any = None
        self._pool_key: Any = None
        self._opening, self._renewing = threading.Lock(), threading.Lock()
        self._ahead: float | None = None

    @property
    def ahead(self) -> float | None:
        """Seconds by which the API server's clock is ahead of this machine's; ``None`` before its first answer."""
        return self._ahead

    def now(self) -> float:
        """Epoch seconds by the API server's clock, as of its last answer; by this machine's before the first one.

        What is compared with time stamps of the cluster must be of the cluster: a worker whose clock is off would blame
        every node for it.
        """
        return time.time() + (self._ahead or 0.0)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        what: str | None = None,
        retry: bool = True,
        read_timeout: float = READ_TIMEOUT_S,
    ) -> bytes:
        """The body of a successful answer.

        :param retry: whether repeating it is harmless. A POST is repeated only if the server cannot have run it.
        :param read_timeout: seconds that one attempt waits for the server's next byte.
        """
        what = what or f"{method} {path}"
        begun = self._monotonic()
        attempt = 0
        renewed = False
        sent: dict[str, str] = {}
        error: GpuFleetError
        pause: float | None
        while True:
            reached = True
            try:
                endpoint = kubernetes_access.resolve(self.access)
                sent = endpoint.credentials.headers()
                return self._once(endpoint, sent, method, path, query, body, headers, what, read_timeout)
            except Unauthorized:
                if renewed or not self._renew(sent):
                    raise
                renewed = True
                continue
            except Throttled as throttled:
                error, pause, reached = throttled, throttled.retry_after, False
            except Unreached as unreached:
                error, pause, reached = unreached, None, False
            except ApiUnavailable as unavailable:
                if is_expired(unavailable):
                    raise
                error, pause = unavailable, None
            harmless = retry and (method != "POST" or not reached)
            pause = backoff_s(attempt) if pause is None else pause
            if not harmless or self._monotonic() - begun + pause > RETRY_BUDGET_S:
                raise error
            log.info("%s; trying again in %.1f s", error, pause)
            self._sleep(pause)
            attempt += 1

    def close(self) -> None:
        """Close idle connections; the next request opens new ones."""
        with self._opening:
            pool, self._pool, self._pool_key = self._pool, None, None
        if pool is not None:
            pool.clear()

    def _renew(self, refused: Mapping[str, str]) -> bool:
        """After a 401: get other credentials; whether another attempt may be accepted.

        :param refused: the headers that were not accepted. Of many threads that learn it at once only the first drops
            them: with an EKS token go the AWS session and its keys.
        """
        with self._renewing:
            credentials = kubernetes_access.resolve(self.access).credentials
            ready = credentials.ready()
            if ready is not None and ready != refused:
                return True
            if not credentials.renew():
                return False
            credentials.headers()
            return True

    def _once(
        self,
        endpoint: Endpoint,
        identity: Mapping[str, str],
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        headers: Mapping[str, str] | None,
        what: str,
        read_timeout: float,
    ) -> bytes:
        import urllib3

        sent = {"Accept": "application/json", "User-Agent": "gpu-fleet", **(headers or {}), **identity}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        url = endpoint.server + path + query_string(query)
        try:
            limits = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout)
            response = self._open_pool(endpoint).request(method, url, body=data, headers=sent, timeout=limits)
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            kubernetes_access.forget(self.access, endpoint)
            raise Unreached(
                f"{what}: cannot connect to {endpoint.server} ({self.access}): {error}; check the network, and whether "
                "the cluster's endpoint is reachable from here"
            ) from error
        except urllib3.exceptions.SSLError as error:
            kubernetes_access.forget(self.access, endpoint)
            raise Unreached(f"{what}: no trusted TLS connection to {endpoint.server}: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise ApiUnavailable(f"{what}: connection to {endpoint.server} failed: {error}") from error
        self._ahead = seconds_ahead(response.headers.get("Date"), time.time())
        if response.status >= 400:
            raise error_for(what, response.status, parse_status(response.data), response.headers)
        for warning in response.headers.getlist("Warning"):
            log.warning("%s: the API server warns: %s", what, warning)
        body_read: bytes = response.data
        return body_read

    def _open_pool(self, endpoint: Endpoint) -> Any:
        import urllib3

        with self._opening:
            if self._pool is None or self._pool_key is not endpoint:
                options: dict[str, Any] = {"maxsize": CONNECTIONS, "retries": False}
                if endpoint.ssl_context is not None:
                    options["ssl_context"] = endpoint.ssl_context
                proxy = proxy_for(endpoint.server)
                self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                self._pool_key = endpoint
            return self._pool


class Unreached(ApiUnavailable):
    """The request cannot have been executed: no connection was established. Reported as ApiUnavailable."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="ApiUnavailable")


def seconds_ahead(date: str | None, now: float) -> float:
    """By how many seconds the clock of an answer's ``Date`` is ahead of ours; 0 if that is unknown, or small.

    The header has whole seconds (RFC 9110, 6.6.1), and an answer takes a while.
    """
    try:
        ahead = parsedate_to_datetime(date or "").timestamp() - now
    except (ValueError, TypeError):
        return 0.0
    return ahead if abs(ahead) > CLOSE_S else 0.0


def proxy_for(server: str) -> str | None:
    """The HTTP proxy that the environment asks for (``HTTPS_PROXY``, ``NO_PROXY``), as the stock client does."""
    parts = urlsplit(server)
    proxy = getproxies().get(parts.scheme)
    return None if not proxy or proxy_bypass(parts.netloc) else proxy


def query_string(query: Mapping[str, Any] | None) -> str:
    """``?a=b`` with Kubernetes' lower-case booleans, empty without parameters."""
    if not query:
        return ""
    return "?" + urlencode({k: str(v).lower() if isinstance(v, bool) else v for k, v in query.items()})
