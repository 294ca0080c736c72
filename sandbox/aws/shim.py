"""The AWS endpoint that users of the sandbox talk to: one URL for every service.

Each request's signature is verified as AWS would; then EKS is answered or completed here; everything else is forwarded
to moto byte by byte (with the original ``Host`` and ``Authorization``, from which moto derives service and region).
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from sandbox.aws import permissions, pricing, queues, quotas, refusals, signature, statuschecks, trail
from sandbox.aws.eks import routes as eks_routes
from sandbox.aws.eks.clusters import ClusterState, Eks, EksError
from sandbox.aws.eks.nodegroups import NodeGroups
from sandbox.aws.refusals import Refusal
from sandbox.latency import Latencies
from sandbox.settings import Clock, Settings

_MAX_BODY = 64 * 1024 * 1024
_CREDENTIALS_TTL = 5.0  # seconds; a deleted key stops working after that
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}
_UNSIGNED_ACTIONS = (b"Action=AssumeRoleWithWebIdentity", b"Action=AssumeRoleWithSAML")


@cache
def _regions() -> frozenset[str]:
    import botocore.session

    return frozenset(botocore.session.Session().get_available_regions("ec2"))


class Shim:
    """
    The front. :meth:`start` binds it to loopback.

    :param moto_url: where moto listens.
    """

    def __init__(self, settings: Settings, clock: Clock, moto_url: str) -> None:
        self._settings = settings
        self._clock = clock
        self._moto_url = moto_url
        self._latencies = Latencies(settings.seed)
        self._credentials: dict[str, tuple[float, dict[str, Any]]] = {}
        self._deletions: set[asyncio.Task[None]] = set()
        self._http: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._trail = trail.Trail(settings.audit, settings.region)
        self.eks = Eks(settings.faults)
        self.node_groups = NodeGroups(settings.faults)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        """
        :param port: 0 picks a free one.
        :raises OSError: the port is taken.
        """
        self._http = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=120))
        application = web.Application(client_max_size=_MAX_BODY)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        for task in self._deletions:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    async def credentials(self, access_key: str) -> dict[str, Any] | None:
        """Secret, token and principal of an access key, from moto's IAM and STS."""
        cached = self._credentials.get(access_key)
        if cached is not None and time.monotonic() - cached[0] < _CREDENTIALS_TTL:
            return cached[1]
        if not access_key.isalnum():
            return None
        assert self._http is not None  # noqa: S101 - started
        async with self._http.get(f"{self._moto_url}/_sandbox/credentials/{access_key}") as reply:
            found: dict[str, Any] | None = await reply.json() if reply.status == 200 else None
        if found is None:
            self._credentials.pop(access_key, None)
            return None
        self._credentials[access_key] = (time.monotonic(), found)
        return found

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw_path, _, query = request.raw_path.partition("?")
        seen = signature.Request(
            request.method,
            raw_path,
            query,
            {name.lower(): value for name, value in request.headers.items()},
            await request.read(),
        )
        target = "x-amz-target" in seen.headers
        try:
            signed = signature.find(seen)
        except signature.MalformedSignature:
            return refusals.respond(Refusal.BAD_SIGNATURE, "unknown", target=target)
        if signed is None:
            if any(action in seen.body for action in _UNSIGNED_ACTIONS):
                return await self._forward(seen)
            return refusals.respond(Refusal.UNSIGNED, "sts", target=target)
        refusal = await self._refusal(seen, signed)
        if refusal is not None:
            return refusals.respond(refusal, signed.service, target=target)
        operation = trail.operation_of(seen.method, seen.path, seen.headers, seen.body)
        try:
            response = await self._answer(request, seen, signed)
        except queues.ConnectionLost:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503)
        if trail.is_write(operation[0]):
            caller = {"arn": (await self.credentials(signed.access_key) or {}).get("arn", "")}
            answer = response.status, response.body if isinstance(response.body, bytes) else b""
            self._trail.record(
                signed.service, operation, seen.headers, {**caller, "accessKeyId": signed.access_key}, answer
            )
        return response

    async def _answer(self, request: web.Request, seen: signature.Request, signed: signature.Signature) -> web.Response:
        faulty = permissions.answer(self._settings.faults, seen, signed.service)
        if faulty is not None:
            return faulty
        if signed.service == "eks":
            return await self._answer_eks(seen, signed.region)
        action = permissions.action_of(seen, signed.service)
        if signed.service == "sqs":
            return await self._answer_queue(request, seen, action)
        if signed.service == "servicequotas":
            return quotas.answer(self._settings.faults, seen, action)
        if signed.service == "pricing":
            return await pricing.answer(self._settings.faults, seen, action, signed.region)
        if signed.expires is not None and signed.service != "s3":
            # Moto looks for service and caller in the Authorization header only.
            seen = replace(seen, headers={**seen.headers, "authorization": signature.as_header(signed)})
        if action == statuschecks.ACTION:
            return await self._answer_statuses(seen)
        response = await self._forward(seen)
        if action == "ec2:DescribeSubnets" and response.status == 200 and isinstance(response.body, bytes):
            response.body = quotas.without_addresses(self._settings.faults, response.body)
        if action == "ec2:DescribeSpotPriceHistory" and response.status == 200 and isinstance(response.body, bytes):
            response.body = pricing.priced(self._settings.faults, response.body)
        return response

    async def _answer_statuses(self, seen: signature.Request) -> web.Response:
        text = seen.body.decode() if seen.body else seen.query
        try:
            response = await self._forward(replace(seen, method="POST", query="", body=statuschecks.question(text)))
            if response.status == 200 and isinstance(response.body, bytes):
                response.body = statuschecks.answer(text, response.body, self._settings.statuses)
        except statuschecks.BadRequest as error:
            return web.Response(status=400, body=statuschecks.refusal(error), content_type="text/xml")
        return response

    async def _answer_queue(self, request: web.Request, seen: signature.Request, action: str) -> web.Response:
        """SQS; a long poll piece by piece, so that faults and the caller's end reach it."""
        wait = queues.wait_of(seen) if action == queues.RECEIVE else 0
        deadline = time.monotonic() + wait
        while True:
            faulty = queues.answer(self._settings.faults, seen, action)
            if faulty is not None:
                return faulty
            left = deadline - time.monotonic()
            piece = seen
            if wait > queues.PIECE:
                piece = replace(seen, body=queues.waiting(seen, max(0, min(queues.PIECE, round(left)))))
            response = await self._forward(piece)
            gone = request.transport is None or request.transport.is_closing()
            if wait <= queues.PIECE or left <= queues.PIECE or gone or not queues.is_empty(response):
                return response

    async def _refusal(self, seen: signature.Request, signed: signature.Signature) -> Refusal | None:
        credentials = await self.credentials(signed.access_key)
        if credentials is None or credentials["token"] != signed.token:
            return Refusal.UNKNOWN_KEY
        if signed.region not in _regions():
            return Refusal.BAD_REGION
        if not signature.in_time(signed, datetime.now(UTC)):
            return Refusal.EXPIRED
        return None if signature.verify(seen, signed, credentials["secret"]) else Refusal.BAD_SIGNATURE

    async def _ask_moto(self, seen: signature.Request) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in seen.headers.items() if name not in _HOP_BY_HOP}
        url = f"{self._moto_url}{seen.path}" + (f"?{seen.query}" if seen.query else "")
        from yarl import URL

        assert self._http is not None  # noqa: S101 - started
        async with self._http.request(
            seen.method,
            URL(url, encoded=True),
            headers=headers,
            data=seen.body or None,
            allow_redirects=False,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
        ) as reply:
            body = await reply.read()
            return reply.status, {k: v for k, v in reply.headers.items() if k.lower() not in _HOP_BY_HOP}, body

    async def _forward(self, seen: signature.Request) -> web.Response:
        try:
            status, headers, body = await self._ask_moto(seen)
        except aiohttp.ClientError as error:
            return web.json_response(
                {"__type": "ServiceUnavailable", "message": f"the sandbox's moto does not answer: {error}"}, status=503
            )
        return web.Response(status=status, headers=headers, body=body)

    # EKS

    async def _answer_eks(self, seen: signature.Request, region: str) -> web.Response:
        try:
            route = eks_routes.match(seen.method, seen.path)
            if route is not None:
                name, arguments, handler = route
                body = json.loads(seen.body) if seen.body else dict(parse_qsl(seen.query))
                return web.json_response(handler(self.eks, self.eks.cluster(region, name), arguments, body))
            return await self._cluster_call(seen, region)
        except json.JSONDecodeError:
            return _eks_error(EksError(400, "InvalidRequestException", "request body is not JSON"))
        except EksError as error:
            return _eks_error(error)

    async def _cluster_call(self, seen: signature.Request, region: str) -> web.Response:
        """A call about clusters themselves: moto's reply, completed."""
        segments = seen.path.strip("/").split("/")
        deletes = seen.method == "DELETE" and len(segments) == 2 and segments[0] == "clusters"
        if deletes:
            return await self._delete_cluster(seen, region, segments[1])
        status, headers, body = await self._ask_moto(seen)
        if status != 200:
            return web.Response(status=status, headers=headers, body=body)
        if segments[2:3] == ["node-groups"] and (
            group := self._node_group(seen.method, segments, json.loads(body or b"{}"))
        ):
            return web.json_response(group)
        creates = seen.method == "POST" and segments == ["clusters"]
        describes = seen.method == "GET" and len(segments) == 2 and segments[0] == "clusters"
        if not (creates or describes):
            return web.Response(status=status, headers=headers, body=body)
        cluster = json.loads(body)["cluster"]
        if creates:
            seconds = self._clock.real(self._latencies.sample("cluster_create"))
            self.eks.add(ClusterState(cluster["name"], region, self._settings.account, active_at=time.time() + seconds))
        return web.json_response({"cluster": self.eks.dress(cluster, region)})

    def _node_group(self, method: str, segments: list[str], answer: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to a call that makes or describes one node group."""
        if "nodegroup" not in answer or method not in ("GET", "POST"):
            return None
        group = answer["nodegroup"]
        if method == "POST" and len(segments) == 3:
            sample = self._latencies.sample
            seconds = self._clock.real(sample("instance_running") + sample("node_register_cpu") + sample("node_ready"))
            self.node_groups.created(group["clusterName"], group["nodegroupName"], time.time() + seconds)
        return {"nodegroup": self.node_groups.dress(group, time.time())}

    async def _delete_cluster(self, seen: signature.Request, region: str, name: str) -> web.Response:
        """``DELETING`` for a while, then deleted; moto's own refusals (remaining node groups) have precedence."""
        groups = await self._ask_as(seen, "GET", f"/clusters/{name}/node-groups")
        if groups[0] != 200:
            return web.Response(status=groups[0], headers=groups[1], body=groups[2])
        if json.loads(groups[2]).get("nodegroups"):
            raise EksError(409, "ResourceInUseException", "Cluster has nodegroups attached")
        described = await self._ask_as(seen, "GET", f"/clusters/{name}")
        state = self.eks.known(region, name)
        if state is None or described[0] != 200:
            return await self._forward(seen)
        if not state.deleting:
            state.deleting = True
            task = asyncio.create_task(self._finish_deletion(seen, region, name))
            self._deletions.add(task)
            task.add_done_callback(self._deletions.discard)
        return web.json_response({"cluster": self.eks.dress(json.loads(described[2])["cluster"], region)})

    async def _finish_deletion(self, seen: signature.Request, region: str, name: str) -> None:
        await self._clock.sleep(self._latencies.sample("cluster_delete"))
        with suppress(aiohttp.ClientError):
            await self._ask_moto(seen)
            self.eks.remove(region, name)

    async def _ask_as(self, seen: signature.Request, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Asks moto something else with the headers of this request (moto verifies no signature)."""
        return await self._ask_moto(signature.Request(method, path, "", seen.headers, b""))


def _eks_error(error: EksError) -> web.Response:
    return web.json_response({"message": error.message}, status=error.status, headers={"x-amzn-ErrorType": error.code})
