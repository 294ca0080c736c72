"""A boto3 session that follows its Airflow connection."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from gpu_fleet.core.aws.errors import BAD_CREDENTIALS, EXPIRED
from gpu_fleet.core.errors import ApiUnavailable, Forbidden, SpecError, Unauthorized
from gpu_fleet.hooks.aws.endpoints import regional_endpoint
from gpu_fleet.hooks.aws.errors import typed_errors
from gpu_fleet.hooks.aws.responses import dig

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: boto3's defaults wait 60 s for a connection; a wrong endpoint must show sooner. Overridden by the connection's
#: ``config_kwargs``.
CLIENT_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"mode": "standard", "max_attempts": 5},
}

#: What is less patient: prices are information, and no task should wait long for them.
SERVICE_DEFAULTS: dict[str, dict[str, Any]] = {
    "pricing": {"connect_timeout": 3, "read_timeout": 10, "retries": {"mode": "standard", "max_attempts": 2}},
}

#: Seconds after which a session looks whether its Airflow connection is still the one that it was made of. A triggerer
#: lives for weeks, and a connection may be given another account meanwhile, whose instances would then be 'gone'.
CONNECTION_TTL_S = 30.0


class AwsSession:
    """boto3 clients for one Airflow connection and region. Cheap to make: nothing is resolved before the first use.

    It follows the connection: when that has changed, session and clients are made anew.

    :param aws_conn_id: Airflow connection; ``None`` means boto3's own chain (environment, profile, instance role).
    :param region_name: AWS region; ``None`` takes the connection's.
    :param monotonic: the clock of :data:`CONNECTION_TTL_S`; injected by tests.
    """

    def __init__(
        self,
        aws_conn_id: str | None,
        region_name: str | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.aws_conn_id = aws_conn_id
        self._region = region_name
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._clients: dict[str, Any] = {}
        self._hook: Any = None
        self._session: Any = None
        #: Digest of the connection that these were made of, and when it was last looked at.
        self._made_of = ""
        self._looked_at = 0.0
        self._making = False

    @property
    def label(self) -> str:
        """The connection in words, for messages."""
        return f"Airflow connection {self.aws_conn_id!r}" if self.aws_conn_id else "the default AWS credential chain"

    @property
    def region(self) -> str:
        """The region in use.

        :raises SpecError: if neither the caller nor the connection names one.
        """
        region = self._region or self.session().region_name
        if not region:
            raise SpecError(
                f"no AWS region: neither the spec nor {self.label} names one", field="aws.region", remedy="set it"
            )
        return str(region)

    def fingerprint(self) -> str:
        """A digest of the Airflow connection, which is read at most every :data:`CONNECTION_TTL_S`; empty without one.

        :raises SpecError: if there is no such connection.
        :raises ApiUnavailable: if it can no longer be read.
        """
        with self._lock:
            self._forget_after_fork()
            self._follow_connection()
            self._connection_hook()
            return self._made_of

    def session(self) -> Any:
        """The boto3 session of the connection (role assumed, if it says so)."""
        with self._lock:
            self._forget_after_fork()
            self._follow_connection()
            if self._session is None:
                with self.errors("open a session"):
                    self._session = self._connection_hook().get_session()
            return self._session

    def custom_endpoint(self, service: str) -> str | None:
        """The endpoint URL that the connection names instead of AWS's own (VPC endpoint, stand-in), if any."""
        with self.errors("read the connection"):
            with self._lock:
                self._forget_after_fork()
                self._follow_connection()
            configured = self._connection_hook().conn_config.get_service_endpoint_url(service)
        return str(configured) if configured else None

    def is_unknown_region(self) -> bool:
        """Whether botocore knows no such region, and no endpoint of the connection stands in for AWS's own."""
        if self.custom_endpoint("ec2"):
            return False
        session = self.session()
        partitions = session.get_available_partitions()
        return self.region not in {r for name in partitions for r in session.get_available_regions("ec2", name)}

    def endpoint(self, service: str) -> str:
        """The endpoint URL that a client of this service would use."""
        configured = self.custom_endpoint(service)
        if configured:
            return configured
        if service == "sts":
            return regional_endpoint("sts", self.region)
        return str(self.client(service).meta.endpoint_url)

    def client(self, service: str) -> Any:
        """A boto3 client, made once per process; its errors are botocore's (:meth:`call` maps them)."""
        with self._lock:
            self._forget_after_fork()
            self._follow_connection()
            if service not in self._clients:
                self._making = True
                try:
                    with self.errors(f"make a client for {service}"):
                        self._clients[service] = self._make_client(service)
                finally:
                    self._making = False
            return self._clients[service]

    def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """One API call.

        :param operation: snake_case method of the client, for example ``describe_cluster``.
        :raises GpuFleetError: typed; ``reason`` is the AWS error code.
        """

        def work(client: Any) -> dict[str, Any]:
            return dict(getattr(client, operation)(**params))

        return self._with_client(service, operation, work)

    def paginate(self, service: str, operation: str, path: str, **params: Any) -> list[Any]:
        """All pages of a call, as the flat list of what is at ``path`` (see :func:`dig`)."""

        def work(client: Any) -> list[Any]:
            if not client.can_paginate(operation):
                return dig(getattr(client, operation)(**params), path)
            return [item for page in client.get_paginator(operation).paginate(**params) for item in dig(page, path)]

        return self._with_client(service, operation, work)

    def forget(self) -> None:
        """Read the connection again at the next use: its credentials may have been rotated."""
        self._forget(None)

    def errors(self, what: str) -> AbstractContextManager[None]:
        """Botocore's errors inside become typed ones that name the connection.

        :param what: what is done, for the message.
        """
        return typed_errors(f"AWS {what} ({self.label})", self)

    # --- internals ---------------------------------------------------------------------------------------------

    def _with_client(self, service: str, operation: str, work: Callable[[Any], Result]) -> Result:
        """Do the work; when AWS refuses the credentials, once more with those that the connection names by now.

        A session outlives many tasks in a triggerer: without this, rotated keys would fail every gate until a restart.
        AWS has carried out nothing of a request whose credentials it refuses, so any operation may be repeated.
        """
        client = None  # making one may already assume a role, and be refused
        try:
            client = self.client(service)
            with self.errors(f"{service} {operation}"):
                return work(client)
        except (Forbidden, Unauthorized) as error:
            if error.reason not in BAD_CREDENTIALS | EXPIRED:
                raise
            self._forget(client)
        with self.errors(f"{service} {operation}"):
            return work(self.client(service))

    def _forget(self, refused: Any) -> None:
        """Drop session and clients, unless another thread has replaced the refused client already."""
        with self._lock:
            if refused is None or any(client is refused for client in self._clients.values()):
                self._clients, self._session, self._hook = {}, None, None

    def _forget_after_fork(self) -> None:
        # Sockets must not be shared between a parent and its forked tasks.
        if self._pid != os.getpid():
            self._pid, self._clients, self._session, self._hook = os.getpid(), {}, None, None

    def _connection_hook(self) -> Any:
        with self._lock:
            self._forget_after_fork()
            if self._hook is None:
                from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

                found = self._read_connection()
                self._made_of, self._looked_at = _digest(found), self._monotonic()
                hook: Any = AwsGenericHook(aws_conn_id=self.aws_conn_id, region_name=self._region, client_type="sts")
                # It would read the connection once more, and without an answer use any credentials that it finds.
                hook.get_connection = lambda _: found
                self._hook = hook
            return self._hook

    def _follow_connection(self) -> None:
        """Drop what was made of a connection that is another one by now; under the lock.

        :raises ApiUnavailable: if the connection cannot be read. Airflow calls it absent also in an outage: errors of a
            secrets backend are passed over (Airflow 3.3.2 airflow/sdk/execution_time/context.py, ``_get_connection``).
        """
        # Not half-way: a client is made of hook and session, and both have to be of the same connection.
        if self.aws_conn_id is None or self._hook is None or self._making:
            return
        if self._monotonic() - self._looked_at < CONNECTION_TTL_S:
            return
        try:
            found = _digest(self._read_connection())
        except SpecError as error:
            raise ApiUnavailable(
                f"Airflow no longer hands out connection {self.aws_conn_id!r}, so the account of the "
                "present session is uncertain; check Airflow's API server and secrets backend, and that the connection "
                "exists",
                reason="ConnectionUnreadable",
            ) from error
        if found == self._made_of:
            self._looked_at = self._monotonic()
            return
        log.info("%s has changed; its clients are made anew", self.label)
        self._forget(None)

    def _read_connection(self) -> Any:
        """The Airflow connection; ``None`` for boto3's own chain.

        :raises SpecError: if there is no such connection. The stock hook only warns and continues with any
            credentials that it finds, possibly another account's.
        :raises ApiUnavailable: if Airflow fails in any other way: that says nothing about the connection.
        """
        if self.aws_conn_id is None:
            return None
        from airflow.sdk import BaseHook
        from airflow.sdk.exceptions import AirflowNotFoundException

        try:
            return BaseHook.get_connection(self.aws_conn_id)
        except AirflowNotFoundException as error:
            raise SpecError(
                f"there is no Airflow connection {self.aws_conn_id!r}",
                field="aws.connection",
                remedy="create a connection of type 'aws' with that id, or name another one in the cluster file",
            ) from error
        except Exception as error:  # its errors have no common class: AirflowRuntimeError, PermissionError, ...
            raise ApiUnavailable(
                f"Airflow cannot hand out connection {self.aws_conn_id!r}: {error or type(error).__name__}; check "
                "Airflow's API server and secrets backend",
                reason="ConnectionUnreadable",
            ) from error

    def _make_client(self, service: str) -> Any:
        from botocore.config import Config

        hook = self._connection_hook()
        config = Config(**{**CLIENT_DEFAULTS, **SERVICE_DEFAULTS.get(service, {})})
        if hook.conn_config.botocore_config is not None:
            config = config.merge(hook.conn_config.botocore_config)
        return self.session().client(
            service,
            region_name=self.region,
            endpoint_url=hook.conn_config.get_service_endpoint_url(service),
            config=config,
            verify=hook.verify,
        )


def _digest(connection: Any) -> str:
    """What a connection says, as a digest: no secret is kept for the comparison. Empty without one."""
    return "" if connection is None else hashlib.sha256(connection.get_uri().encode()).hexdigest()


_sessions: dict[tuple[str | None, str | None], AwsSession] = {}


def aws_session(aws_conn_id: str | None, region_name: str | None = None) -> AwsSession:
    """The process's session for a connection and region; credentials and clients are shared between its users."""
    return _sessions.setdefault((aws_conn_id, region_name), AwsSession(aws_conn_id, region_name))


def forget_sessions() -> None:
    """Read the connections again at their next use."""
    _sessions.clear()
