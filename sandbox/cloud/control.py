"""The control API: how tests, the demo and ``python -m sandbox …`` inspect a running sandbox and inject faults.

Loopback only, JSON, ``Authorization: Bearer <token of state.json>`` on every request.

==========================  ==========================================================================================
``GET /status``             parts and their state, speed, addresses
``GET /faults``             the faults that are set
``PUT /faults/<name>``      body ``{"params": {…}, "count": n|null}``
``DELETE /faults[/<name>]`` one fault, or all
``GET /weather``            what EC2 has no capacity of, by script: :mod:`sandbox.aws.weather`
``POST /interrupt``         body ``{"instance": "i-…"}`` or ``{"instances": […]}``, ``"kind"``, and what else
                            :mod:`sandbox.cloud.interrupting` reads; one or many in one call
``GET /reservations``       capacity reservations and Capacity Blocks, with their instances
``POST /reservations``      reserve capacity, see :mod:`sandbox.cloud.reserving`; ``POST /reservations/<id>`` extends,
                            resizes or cancels it
``GET /interruptions``      what was announced so far: kind, instances, event, time, ends
``GET /lost``               pods that were running when their machine went; ``DELETE /lost`` forgets them
``POST /nodes``             body ``{"instanceType", "group", "labels": {…}, "taints": ["k=v:Effect"], "spot": false}``:
                            a node of another team's managed node group
``GET /requests``           counters of the API server's requests
``GET /audit?since=N``      every write from number N on (0: the first), ``{"next", "lost", "entries"}``
``GET /waits``              injected waits so far: label, started, ended (epoch seconds)
``POST /parts/<p>/stop``    and ``…/start``
==========================  ==========================================================================================
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from aiohttp import web

from sandbox.audit import AuditLog
from sandbox.aws import weather
from sandbox.aws.interruptions import UnknownInstance, Wanted
from sandbox.aws.nodegroups import NodeGroupError
from sandbox.cloud import interrupting, reserving
from sandbox.cloud.interrupting import BadRequest
from sandbox.faults import FaultBoard
from sandbox.losses import LossBook
from sandbox.parts import Stoppable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Controlled(Protocol):
    """What the control API needs of the cloud."""

    @property
    def faults(self) -> FaultBoard: ...

    @property
    def stoppable(self) -> Mapping[str, Stoppable]: ...

    def status(self) -> dict[str, Any]: ...

    @property
    def audit(self) -> AuditLog: ...

    @property
    def losses(self) -> LossBook: ...

    def requests(self) -> Any: ...

    async def waits(self) -> list[dict[str, Any]]: ...

    async def interrupt(self, wanted: Wanted) -> dict[str, Any]: ...

    def interruptions(self) -> list[dict[str, Any]]: ...

    async def reservations(self) -> list[dict[str, Any]]: ...

    async def reserve(self, body: dict[str, Any], identifier: str = "") -> dict[str, Any]: ...

    async def add_node(
        self, instance_type: str, group: str, labels: dict[str, str], taints: list[str], *, spot: bool = False
    ) -> str: ...


def _json_error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


async def _body(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    try:
        value = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    return value


class ControlApi:
    """:meth:`start` binds it to loopback."""

    def __init__(self, cloud: Controlled, token: str) -> None:
        self._cloud = cloud
        self._token = token
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/status", self._status),
                web.get("/faults", self._list_faults),
                web.put("/faults/{name}", self._set_fault),
                web.delete("/faults/{name}", self._clear_fault),
                web.delete("/faults", self._clear_fault),
                web.get("/weather", self._weather),
                web.post("/interrupt", self._interrupt),
                web.get("/interruptions", self._interruptions),
                web.get("/reservations", self._reservations),
                web.post("/reservations", self._reserve),
                web.post("/reservations/{id}", self._reserve),
                web.get("/lost", self._lost),
                web.delete("/lost", self._forget_lost),
                web.post("/nodes", self._add_node),
                web.get("/requests", self._requests),
                web.get("/audit", self._audit),
                web.get("/waits", self._waits),
                web.post("/parts/{part}/{verb:start|stop}", self._part),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return _json_error(401, "the bearer token of state.json is needed")
        try:
            return await handler(request)
        except BadRequest as error:
            return _json_error(400, str(error))
        except web.HTTPException as error:
            return _json_error(error.status, error.reason)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._cloud.status())

    async def _list_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._cloud.faults.snapshot())

    async def _set_fault(self, request: web.Request) -> web.Response:
        body = await _body(request)
        params, count = body.get("params") or {}, body.get("count")
        if not isinstance(params, dict):
            raise BadRequest("params is not an object")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise BadRequest("count is not a positive integer")
        self._cloud.faults.set(request.match_info["name"], params, count)
        return web.json_response(self._cloud.faults.snapshot())

    async def _clear_fault(self, request: web.Request) -> web.Response:
        self._cloud.faults.clear(request.match_info.get("name"))
        return web.json_response(self._cloud.faults.snapshot())

    async def _weather(self, _: web.Request) -> web.Response:
        return web.json_response(list(weather.spells(self._cloud.faults, float(self._cloud.status()["speed"]))))

    async def _interrupt(self, request: web.Request) -> web.Response:
        wanted = interrupting.wanted(await _body(request))
        try:
            return web.json_response(await self._cloud.interrupt(wanted))
        except UnknownInstance as error:
            return _json_error(404, str(error))

    async def _interruptions(self, _: web.Request) -> web.Response:
        return web.json_response(self._cloud.interruptions())

    async def _reservations(self, _: web.Request) -> web.Response:
        return web.json_response(await self._cloud.reservations())

    async def _reserve(self, request: web.Request) -> web.Response:
        identifier = request.match_info.get("id", "")
        body = reserving.wanted(await _body(request), change=bool(identifier))
        try:
            return web.json_response(await self._cloud.reserve(body, identifier))
        except LookupError as error:
            return _json_error(404, str(error))

    async def _lost(self, _: web.Request) -> web.Response:
        return web.json_response(self._cloud.losses.shown())

    async def _forget_lost(self, _: web.Request) -> web.Response:
        self._cloud.losses.clear()
        return web.json_response([])

    async def _add_node(self, request: web.Request) -> web.Response:
        body = await _body(request)
        instance_type, group = body.get("instanceType"), body.get("group")
        labels, taints = body.get("labels") or {}, body.get("taints") or []
        if not isinstance(instance_type, str) or not isinstance(group, str) or not instance_type or not group:
            raise BadRequest("instanceType and group are texts")
        if not isinstance(labels, dict) or not all(isinstance(item, str) for item in labels.values()):
            raise BadRequest("labels is not an object of texts")
        if not isinstance(taints, list) or not all(isinstance(item, str) for item in taints):
            raise BadRequest("taints is not a list of KEY=VALUE:EFFECT")
        spot = body.get("spot", False)
        if not isinstance(spot, bool):
            raise BadRequest("spot is neither true nor false")
        try:
            added = await self._cloud.add_node(instance_type, group, labels, taints, spot=spot)
            return web.json_response({"instance": added})
        except NodeGroupError as error:
            raise BadRequest(str(error)) from error

    async def _requests(self, _: web.Request) -> web.Response:
        return web.json_response(self._cloud.requests())

    async def _audit(self, request: web.Request) -> web.Response:
        text = request.query.get("since", "0")
        if not text.isdecimal():
            raise BadRequest("since is not a number")
        page = self._cloud.audit.since(int(text))
        return web.Response(body=page.encode(), content_type="application/json")

    async def _waits(self, _: web.Request) -> web.Response:
        return web.json_response(await self._cloud.waits())

    async def _part(self, request: web.Request) -> web.Response:
        name = request.match_info["part"]
        part = self._cloud.stoppable.get(name)
        if part is None:
            stoppable = ", ".join(sorted(self._cloud.stoppable)) or "none"
            return _json_error(404, f"no part {name} that can be stopped; the parts are: {stoppable}")
        if request.match_info["verb"] == "stop":
            await part.stop()
        else:
            await part.resume()
        return web.json_response({"part": name, "state": part.state})
