"""Observers before servers that misbehave: no loop without a pause, nobody content who cannot see."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import ApiUnavailable, GpuFleetError, SpecError, Throttled
from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.core.queries import AwsQuery, KubeQuery
from gpu_fleet.hooks.aws import AwsSession
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess
from gpu_fleet.triggers import observers
from gpu_fleet.triggers.gate import GateTrigger
from gpu_fleet.triggers.looking import observe_aws
from gpu_fleet.triggers.observers import EXPLANATIONS_AT_ONCE, AwsPoller, KubeExplanation, KubeWatcher
from tests.unit.hooks.scripted_api import Reply, Request, ScriptedApi, serving

PODS = KubeQuery("pods", POD)
PAUSES = 8


class EnoughError(Exception):
    """The script is over."""


class Api:
    """A client whose watches all end as they are told to, at once."""

    def __init__(self, watch: GpuFleetError | None, *events: tuple[str, dict[str, Any]]) -> None:
        self.lists, self.watches = 0, 0
        self._watch, self._events = watch, events

    async def list(self, query: KubeQuery) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return [], "7"

    async def watch(self, query: KubeQuery, version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        self.watches += 1
        if self.watches > 10 * PAUSES:
            raise EnoughError
        for event in self._events:
            yield event
        if self._watch is not None:
            raise self._watch


@pytest.mark.parametrize(
    ("ends", "events"),
    [
        (None, ()),
        (None, (("BOOKMARK", {"metadata": {"resourceVersion": "8"}}),)),
        (None, (("ADDED", {"metadata": {"name": "a", "namespace": "d", "resourceVersion": "8"}}),)),
        (ApiUnavailable("too old resource version", reason="Expired"), ()),
        (ApiUnavailable("etcd", reason="InternalError"), ()),
        (Throttled("slow down", retry_after=0.0), ()),
    ],
    ids=["without a word", "after a bookmark", "after a change", "expired", "broken", "throttled without a time"],
)
async def test_a_watch_that_always_ends_at_once_is_opened_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch, ends: GpuFleetError | None, events: tuple[tuple[str, dict[str, Any]], ...]
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == PAUSES:
            raise EnoughError

    monkeypatch.setattr("gpu_fleet.triggers.observers.asyncio.sleep", sleep)
    api = Api(ends, *events)
    watcher = KubeWatcher(PODS, api, asyncio.Event())  # type: ignore[arg-type]
    with pytest.raises(EnoughError):
        await watcher.run()
    assert len(pauses) == PAUSES
    assert api.watches <= PAUSES + 1
    assert api.lists == api.watches, "what happened meanwhile was missed"
    assert pauses[-1] > 2.4, "the pauses grow, to 5 s with up to half of it random"
    assert pauses[0] < 0.5


# --- many watches at once ----------------------------------------------------------------------------------------


class Watched:
    """An API server on asyncio: lists are empty, watches stay open until :attr:`change` and then tell of one pod.

    :ivar open: watches that are open.
    :ivar answers: whether watches are answered at all.
    """

    def __init__(self) -> None:
        self.open, self.answers = 0, True
        self.opened, self.change, self.over = asyncio.Condition(), asyncio.Event(), asyncio.Event()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                if b"watch=true" not in line:
                    body = json.dumps({"items": [], "metadata": {"resourceVersion": "7"}}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    await writer.drain()
                    continue
                if not self.answers:
                    await self.over.wait()
                    return
                await self._watch(writer)
                return
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        await writer.drain()
        async with self.opened:
            self.open += 1
            self.opened.notify_all()
        await self.change.wait()
        pod = {"metadata": {"name": "p", "namespace": "d", "resourceVersion": "8"}}
        writer.write(json.dumps({"type": "ADDED", "object": pod}).encode() + b"\n")
        await writer.drain()
        await self.over.wait()

    async def until_open(self, count: int) -> None:
        async with self.opened:
            await self.opened.wait_for(lambda: self.open >= count)


@asynccontextmanager
async def watched(tmp_path: Path) -> AsyncIterator[tuple[Watched, AsyncKubeClient]]:
    api = Watched()
    server = await asyncio.start_server(api.handle, "127.0.0.1", 0, backlog=512)
    path = tmp_path / "kubeconfig"
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}}],
    }
    path.write_text(json.dumps(config))
    client = AsyncKubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(path)))
    try:
        yield api, client
    finally:
        api.over.set()
        api.change.set()
        await client.close()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def running(*runs: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(run()) for run in runs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_two_hundred_nodes_are_watched_at_once(tmp_path: Path) -> None:
    """One watch per node: with a limit of connections, those beyond it would never see their node's pods go."""
    count = 200
    async with watched(tmp_path) as (api, client):
        queries = [KubeQuery(f"pods_{i}", POD, field_selector=f"spec.nodeName=n{i}") for i in range(count)]
        all_of_them = [KubeWatcher(query, client, asyncio.Event()) for query in queries]
        async with running(*(watcher.run for watcher in all_of_them)):
            await asyncio.wait_for(api.until_open(count), 60)
            for watcher in all_of_them:
                watcher._changed.clear()
            api.change.set()
            await asyncio.wait_for(asyncio.gather(*(watcher._changed.wait() for watcher in all_of_them)), 60)
            assert {len(watcher.objects or []) for watcher in all_of_them} == {1}


async def test_a_watch_that_cannot_be_opened_is_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_fleet.hooks.kubernetes.aio.OPEN_TIMEOUT_S", 0.3)
    async with watched(tmp_path) as (api, client):
        api.answers = False
        watcher = KubeWatcher(PODS, client, asyncio.Event())
        blind: asyncio.Future[GpuFleetError] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(watcher, "_blind", lambda error: blind.done() or blind.set_result(error))
        async with running(watcher.run):
            error = await asyncio.wait_for(blind, 20)
    assert isinstance(error, ApiUnavailable)
    assert "watch pods: no answer" in error.message


@pytest.mark.parametrize("failed_before", [False, True])
async def test_a_watch_that_has_ended_lists_again_where_the_cluster_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed_before: bool
) -> None:
    """The version of the old server's list means nothing to the new one, and its objects are not there."""
    monkeypatch.setattr(observers, "SHORT_WATCH_S", 0.0)

    def pods(name: str) -> Reply:
        return Reply(body={"items": [{"metadata": {"name": name}}], "metadata": {"resourceVersion": "7"}})

    with (
        serving(ScriptedApi(answer=lambda request: there(request))) as new,
        serving(ScriptedApi(answer=lambda request: here(request))) as old,
    ):
        access = ClusterAccess("kubeconfig", None, None, None, path=str(old.kubeconfig(tmp_path)))

        def here(request: Request) -> Reply:
            if "watch=true" not in request.path:
                return pods("old")
            new.kubeconfig(tmp_path)
            kubernetes_access.forget(access)
            return Reply(lines=[])

        def there(request: Request) -> Reply:
            return Reply(cut=True) if "watch=true" in request.path else pods("new")

        client = AsyncKubeClient(access)
        watcher = KubeWatcher(PODS, client, asyncio.Event())
        watcher._failures = int(failed_before)
        try:
            async with running(watcher.run), asyncio.timeout(20):
                while not new.requests or watcher.error is None:
                    await watcher._changed.wait()
                    watcher._changed.clear()
        finally:
            await client.close()
    assert "watch=true" not in new.requests[0].path
    assert [item["metadata"]["name"] for item in watcher.objects or []] == ["new"]


# --- explanations ------------------------------------------------------------------------------------------------


class Explaining:
    """An API each of whose lists waits until ``at_once`` of them are under way.

    :ivar most: how many were under way at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once, self.now, self.most = at_once, 0, 0
        self.enough = asyncio.Event()

    async def list(self, query: KubeQuery) -> tuple[list[dict[str, Any]], str]:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now >= self.at_once:
            self.enough.set()
        await self.enough.wait()
        await asyncio.sleep(0)
        self.now -= 1
        return [{"metadata": {"name": query.key}}], "7"


@pytest.mark.parametrize(("queries", "at_once"), [(3, 3), (20, EXPLANATIONS_AT_ONCE)], ids=["few", "many"])
async def test_explanations_are_asked_for_at_the_same_time_but_not_all_of_many(queries: int, at_once: int) -> None:
    api = Explaining(at_once)
    asked = [KubeQuery(f"pods/{index}", POD, watch=False) for index in range(queries)]
    explanations = [KubeExplanation(query, api, asyncio.Event()) for query in asked]  # type: ignore[arg-type]
    trigger = GateTrigger("object_exists", {}, {}, 0.0, 0.0)
    trigger._client = api
    async with asyncio.timeout(10):
        await trigger._judge(list(explanations))
    assert [each.objects for each in explanations] == [[{"metadata": {"name": query.key}}] for query in asked]
    assert api.most == at_once


# --- AWS ---------------------------------------------------------------------------------------------------------

INSTANCES = AwsQuery("instances", "ec2", "describe_instances")


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def poller(region: str) -> AwsPoller:
    return AwsPoller(INSTANCES, ClusterAccess("eks", "aws_demo", region, "c"), asyncio.Event(), 60.0)


async def test_polls_of_a_region_that_hangs_are_blind_and_hold_up_no_other_region(
    monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    asked: list[str | None] = []

    def observe(access: ClusterAccess, query: AwsQuery) -> list[dict[str, Any]]:
        asked.append(access.region)
        if access.region == "sa-east-1":
            hang.wait()
        return [{"InstanceId": "i-1"}]

    monkeypatch.setattr("gpu_fleet.triggers.observers.observe_aws", observe)
    monkeypatch.setattr(observers, "AWS_PATIENCE_S", 0.3)
    sick, healthy = [poller("sa-east-1") for _ in range(40)], poller("eu-north-1")
    async with running(*(each.run for each in sick)):
        await asyncio.sleep(0.1)
        async with running(healthy.run), asyncio.timeout(20):
            await healthy._changed.wait()
            assert healthy.objects == [{"InstanceId": "i-1"}]
            await asyncio.gather(*(each._changed.wait() for each in sick))
        assert {each.objects is None for each in sick} == {True}
        assert "ec2 describe_instances: no answer" in str(sick[0].error)


async def test_a_connection_that_cannot_be_read_at_a_triggers_first_look_is_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its worker had it: Airflow calls a connection absent also while its secrets backend does not answer."""
    monkeypatch.delenv("AIRFLOW_CONN_AWAY", raising=False)
    access = ClusterAccess("eks", "away", "eu-north-1", "c")
    with pytest.raises(SpecError, match=r"aws\.connection: there is no Airflow connection 'away'"):
        observe_aws(access, INSTANCES)
    waiting = AwsPoller(INSTANCES, access, asyncio.Event(), 60.0)
    async with running(waiting.run), asyncio.timeout(30):
        await waiting._changed.wait()
        assert waiting.error is not None
        assert (waiting.error.reason, isinstance(waiting.error, ApiUnavailable)) == ("ConnectionUnreadable", True)
        waiting._changed.clear()
        monkeypatch.setattr(AwsSession, "paginate", lambda *_, **__: [{"InstanceId": "i-1"}])
        while waiting.error is not None:
            await waiting._changed.wait()
            waiting._changed.clear()
    assert waiting.objects == [{"InstanceId": "i-1"}]
