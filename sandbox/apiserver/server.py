"""The API server as one aiohttp application, and its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from sandbox.apiserver import errors
from sandbox.apiserver.access import auth, impersonation
from sandbox.apiserver.access.auth import MASTERS, Authenticator, ServiceAccountTokens, User, refuse_tokens
from sandbox.apiserver.access.rbac import Attributes, Authorizer
from sandbox.apiserver.admission.chain import Admission
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.requests import discovery, routing
from sandbox.apiserver.requests.audit import WRITES, Auditor
from sandbox.apiserver.requests.faults import Injection, RequestFaults, Target
from sandbox.apiserver.requests.handlers import Handlers
from sandbox.apiserver.requests.messages import MAX_BODY, reply
from sandbox.apiserver.requests.openapi import OpenApi
from sandbox.apiserver.requests.routing import Call
from sandbox.apiserver.requests.subresources import PodLogs
from sandbox.apiserver.resources import Registry
from sandbox.apiserver.schema.types import Types
from sandbox.apiserver.storage import bootstrap
from sandbox.apiserver.storage.writer import Writer
from sandbox.apiserver.store import Store
from sandbox.doors import Door, links
from sandbox.latency import Latencies
from sandbox.pki import Pki
from sandbox.settings import Clock, Settings

log = logging.getLogger(__name__)

#: Minor version whose default is to try the modes of constrained impersonation (apiserver pkg/features).
_CONSTRAINED_IMPERSONATION = 36


@dataclass(frozen=True)
class Seen:
    """One kind of request that came in: what tests count."""

    verb: str
    resource: str
    subresource: str
    user_agent: str
    code: int
    dry_run: bool = False


class Application:
    """Authentication, faults, authorisation, then the handlers; and the non-resource paths."""

    def __init__(self, settings: Settings, authenticator: Authenticator, clock: Clock) -> None:
        self.settings = settings
        self.store = Store()
        self.registry = Registry()
        self.types = Types(settings.kubernetes_version)
        admission = self.admission = Admission(self.store, self.registry, settings.faults, settings.region)
        latencies = Latencies(settings.seed)
        self.writer = Writer(self.store, self.registry, self.types, admission, clock, latencies)
        self.authorizer = Authorizer(self.store)
        self.tokens = ServiceAccountTokens()
        self.seen: Counter[Seen] = Counter()
        self.port = 0
        self._openapi = OpenApi(self.registry, settings.kubernetes_version)
        self._faults = RequestFaults(settings.faults)
        self._authenticator = authenticator
        self._auditor = Auditor(settings.audit, self.store)
        self._handlers = Handlers(self.writer, self.authorizer, self.tokens, PodLogs(), clock)
        bootstrap.fill(self.writer)

    async def dispatch(self, request: web.Request) -> web.StreamResponse:
        try:
            user = await auth.authenticate(request, self._authenticator, self.tokens)
            target = routing.parse(request, self.registry)
            acting = self._impersonate(request, user, target)
            if target is None:
                return self._other(request, acting)
            return await self._resource(request, target, user, acting)
        except ApiError as refusal:
            return reply(refusal.status(), refusal.code, refusal.headers)
        except web.HTTPRequestEntityTooLarge:
            text = f"Request entity too large: limit is {MAX_BODY}"
            return reply(ApiError(413, "RequestEntityTooLarge", text).status(), 413)

    def _impersonate(self, request: web.Request, user: User, target: routing.Target | None) -> User:
        """Who the request acts as: its user, unless the headers ask for another."""
        wanted = impersonation.wanted(request)
        if wanted is None:
            return user
        if target is None:
            asked = Attributes(verb=request.method.lower(), path=request.path.rstrip("/") or "/")
        else:
            asked = _attributes(target)
        constrained = _minor(self.settings.control_plane) >= _CONSTRAINED_IMPERSONATION
        return impersonation.check(self.authorizer, user, wanted, asked, constrained=constrained)

    async def _resource(
        self, request: web.Request, target: routing.Target, asker: User, user: User
    ) -> web.StreamResponse:
        """
        :param asker: who sent the request.
        :param user: who it acts as (the same unless it impersonates).
        """
        agent = request.headers.get("User-Agent", "")
        outcome: int | ApiError = 500
        call = Call(request, target.resource, target.verb, target.namespace, target.name, target.subresource, user)
        begun = self._auditor.begin(target, user)
        try:
            injected = self._faults.find(
                Target(
                    target.verb,
                    target.resource.plural,
                    target.resource.kind,
                    target.subresource,
                    target.namespace,
                    target.name,
                    agent,
                )
            )
            if injected is not None:
                await self._inject(request, injected)
            self.authorizer.check(
                user,
                _attributes(target),
            )
            response = await self._handlers.handle(call)
            outcome = response.status
            return response
        except ApiError as refusal:
            outcome = refusal
            raise
        finally:
            code = outcome if isinstance(outcome, int) else outcome.code
            if begun is not None:
                await self._auditor.end(begun, request, target, (asker, user), call.written, outcome)
            self.seen[
                Seen(target.verb, target.resource.plural, target.subresource, agent, code, "dryRun" in request.query)
            ] += 1

    @staticmethod
    async def _inject(request: web.Request, injected: Injection) -> None:
        if injected.latency:
            await asyncio.sleep(injected.latency)
        if injected.cut:
            if request.transport is not None:
                request.transport.abort()
            raise ApiError(500, "InternalError", "connection cut by the sandbox")
        if injected.status is not None:
            headers = {} if injected.retry_after is None else {"Retry-After": str(injected.retry_after)}
            details: Obj = {} if injected.retry_after is None else {"retryAfterSeconds": injected.retry_after}
            raise ApiError(injected.status, injected.reason, injected.message, details=details, headers=headers)

    def _other(self, request: web.Request, user: User) -> web.Response:
        """Discovery, OpenAPI, version and health."""
        path = request.path.rstrip("/") or "/"
        self.authorizer.check(user, Attributes(verb=request.method.lower(), path=path))
        if request.method not in ("GET", "HEAD"):
            raise errors.method_not_allowed()
        parts = path.strip("/").split("/")
        found: Obj | bytes | None = None
        match parts:
            case ["version"]:
                found = discovery.version(self.settings.control_plane)
            case ["api"]:
                found = discovery.api_versions(f"127.0.0.1:{self.port}")
            case ["apis"]:
                found = discovery.groups(self.registry)
            case ["api", version]:
                found = discovery.resources(self.registry, "", version)
            case ["apis", group]:
                found = discovery.single_group(self.registry, group)
            case ["apis", group, version]:
                found = discovery.resources(self.registry, group, version)
            case ["openapi", "v3"]:
                found = self._openapi.index()
            case ["openapi", "v3", *rest]:
                found = self._openapi.document("/".join(rest))
            case [("healthz" | "livez" | "readyz"), *_]:
                return web.Response(text="ok")
            case [""]:
                groups = [f"/apis/{name}" for name in self.registry.groups() if name]
                found = {"paths": ["/api", "/api/v1", "/apis", *groups, "/healthz", "/openapi/v3", "/version"]}
        if found is None:
            return web.Response(text="404 page not found\n", status=404)
        return reply(found)


def _attributes(target: routing.Target) -> Attributes:
    return Attributes(
        verb=target.verb,
        group=target.resource.group,
        resource=target.resource.plural,
        subresource=target.subresource,
        namespace=target.namespace if target.resource.namespaced else "",
        name=target.name,
    )


def _minor(version: str) -> int:
    return int(version.split(".")[1])


class ApiServer:
    """A running server. Close it with :meth:`close`."""

    def __init__(self, application: Application, runner: web.AppRunner, door: Door, port: int) -> None:
        self._application = application
        self._runner = runner
        self.door = door
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self.admission = application.admission

    @property
    def store(self) -> Store:
        return self._application.store

    def requests(
        self,
        *,
        verb: str | None = None,
        resource: str | None = None,
        user_agent: str = "",
        writes: bool = False,
    ) -> int:
        """
        How many resource requests have come in so far.

        :param user_agent: text that the User-Agent contains.
        :param writes: only create, update, patch, delete, deletecollection, dry runs excepted.
        """
        return sum(
            count
            for seen, count in self._application.seen.items()
            if (verb is None or seen.verb == verb)
            and (resource is None or seen.resource == resource)
            and user_agent in seen.user_agent
            and (not writes or (seen.verb in WRITES and not seen.dry_run))
        )

    def request_log(self) -> dict[Seen, int]:
        """Counts per verb, resource, subresource, user agent and status code."""
        return dict(self._application.seen)

    async def close(self) -> None:
        """End watches, let running requests finish for a moment, then drop every connection."""
        self._application.writer.definitions.close()
        self._application.store.close()
        open_ones = links(self._runner)
        await self._runner.cleanup()
        # A polite TLS shutdown waits for the other side; clients that keep idle connections in a pool never answer.
        for link in open_ones:
            link.drop()
        await asyncio.sleep(0)


async def serve(
    settings: Settings,
    pki: Pki,
    authenticator: Authenticator = refuse_tokens,
    port: int = 0,
    clock: Clock | None = None,
) -> ApiServer:
    """
    Start an API server on 127.0.0.1.

    :param authenticator: resolves bearer tokens that are not service accounts'.
    :param port: 0 for any free one.
    :param clock: where its waits are recorded; one of its own without.
    :raises OSError: the port is in use.
    """
    application = Application(settings, authenticator, clock or Clock(settings.speed, settings.seed))
    app = web.Application(client_max_size=MAX_BODY, logger=log)
    app.router.add_route("*", "/{path:.*}", application.dispatch)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    context = pki.server_context()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=512).start()
    except BaseException:
        await runner.cleanup()
        raise
    bound = runner.addresses[0][1]
    application.port = bound
    return ApiServer(application, runner, Door("apiserver", runner, bound, context), bound)


@dataclass(frozen=True)
class Running:
    """A server for a test, with what is needed to reach it."""

    server: ApiServer
    settings: Settings
    pki: Pki
    kubeconfig: Path

    @property
    def url(self) -> str:
        return self.server.url

    def kubeconfig_for(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a client certificate of another user."""
        return self.pki.write_kubeconfig(self.settings.state_dir / f"{user}.kubeconfig", self.url, user, groups)


@contextlib.asynccontextmanager
async def running(
    state_dir: Path, *, authenticator: Authenticator = refuse_tokens, port: int = 0, settings: Settings | None = None
) -> AsyncIterator[Running]:
    """A server for the length of an ``async with``; its admin kubeconfig is ``state_dir/admin.kubeconfig``.

    Without ``settings`` its waits are a fiftieth of the real ones: nothing else of it depends on the speed.
    """
    chosen = settings or Settings(state_dir=state_dir, speed=50.0)
    pki = Pki(state_dir / "pki")
    server = await serve(chosen, pki, authenticator, port)
    try:
        kubeconfig = pki.write_kubeconfig(
            state_dir / "admin.kubeconfig", server.url, groups=(MASTERS,), cluster=chosen.cluster_name
        )
        yield Running(server, chosen, pki, kubeconfig)
    finally:
        await server.close()
