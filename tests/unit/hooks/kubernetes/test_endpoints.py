"""Triggers of many clusters in one event loop: what hangs for one of them is waited for by that one alone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core import errors
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes import endpoints as kubernetes_endpoints
from gpu_fleet.hooks.kubernetes.credentials import Endpoint, FixedCredentials
from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess
from tests.unit.hooks.scripted_api import Reply, ScriptedApi, serving, status

NODES = KubeQuery("nodes", NODE)
EMPTY = Reply(body={"items": [], "metadata": {"resourceVersion": "1"}})
#: More than the event loop's default pool has threads: min(32, CPUs + 4).
MANY = 40


def eks(name: str, region: str = "eu-north-1") -> ClusterAccess:
    return ClusterAccess("eks", "aws_demo", region, name)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@asynccontextmanager
async def clients(*accesses: ClusterAccess) -> AsyncIterator[list[AsyncKubeClient]]:
    made = [AsyncKubeClient(access) for access in accesses]
    try:
        yield made
    finally:
        for client in made:
            await client.close()


class Credentials:
    """Credentials that count, and hang where they are told to.

    :ivar hang: renewing waits for it.
    """

    def __init__(self, hang: threading.Event | None = None, *, ready: bool = False) -> None:
        self.hang, self.signed, self.renewals = hang, 1 if ready else 0, 0

    def headers(self) -> dict[str, str]:
        if self.hang is not None:
            self.hang.wait()
        self.signed = self.signed or self.renewals + 1
        return {"Authorization": f"Bearer t{self.signed}"}

    def ready(self) -> dict[str, str] | None:
        return {"Authorization": f"Bearer t{self.signed}"} if self.signed else None

    def renew(self) -> bool:
        self.renewals += 1
        self.signed = 0
        return True


def known(monkeypatch: pytest.MonkeyPatch, endpoints: dict[ClusterAccess, Any]) -> list[ClusterAccess]:
    """Where clusters are: an endpoint, an error to raise, or an event that the look-up waits for."""
    asked: list[ClusterAccess] = []

    def resolve(access: ClusterAccess) -> Endpoint:
        asked.append(access)
        found = endpoints[access]
        if isinstance(found, threading.Event):
            found.wait()
            raise errors.ApiUnavailable("too late")
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(kubernetes_access, "resolve", resolve)
    return asked


async def test_a_region_that_does_not_answer_holds_up_no_healthy_cluster(
    monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    with serving(ScriptedApi(EMPTY)) as api:
        sick = [eks(f"sick-{index}", "sa-east-1") for index in range(MANY)]
        known(
            monkeypatch,
            dict.fromkeys(sick, hang) | {eks("healthy"): Endpoint(api.url, None, FixedCredentials("t"))},
        )
        async with clients(*sick, eks("healthy")) as (*waiting, healthy):
            stuck = [asyncio.create_task(client.list(NODES)) for client in waiting]
            await asyncio.sleep(0.2)
            assert await asyncio.wait_for(healthy.list(NODES), 10) == ([], "1")
            assert not any(task.done() for task in stuck)
            hang.set()
            await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_look_up_that_hangs_makes_the_watch_blind_and_is_asked_once_for_all(
    monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    monkeypatch.setattr(kubernetes_endpoints, "PATIENCE_S", 0.1)
    asked = known(monkeypatch, {eks("mute"): hang})
    async with clients(*[eks("mute")] * MANY) as waiting:
        for _ in range(2):
            found = await asyncio.gather(*(client.list(NODES) for client in waiting), return_exceptions=True)
            assert {type(error) for error in found} == {errors.ApiUnavailable}
            assert "no address of EKS cluster 'mute'" in str(found[0])
    assert asked == [eks("mute")]


async def test_a_refused_look_up_is_not_repeated_by_each_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = errors.ApiUnavailable("EKS cluster 'new' is CREATING and has no API endpoint yet")
    asked = known(monkeypatch, {eks("new"): refused})
    async with clients(*[eks("new")] * 5) as waiting:
        for client in waiting:
            with pytest.raises(errors.ApiUnavailable, match="is CREATING"):
                await client.list(NODES)
        assert len(asked) == 1
        monkeypatch.setattr(kubernetes_endpoints, "REFUSED_S", 0.0)
        with pytest.raises(errors.ApiUnavailable, match="is CREATING"):
            await waiting[0].list(NODES)
    assert len(asked) == 2


async def test_a_token_at_hand_needs_no_thread_while_renewals_hang(
    monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    monkeypatch.setattr(kubernetes_endpoints, "PATIENCE_S", 0.1)
    with serving(ScriptedApi(EMPTY)) as api:
        good, bad = Credentials(hang, ready=True), Credentials(hang)
        known(
            monkeypatch,
            {eks("good"): Endpoint(api.url, None, good), eks("bad"): Endpoint(api.url, None, bad)},
        )
        async with clients(*[eks("bad")] * MANY, eks("good")) as (*waiting, healthy):
            stuck = [asyncio.create_task(client.list(NODES)) for client in waiting]
            assert await asyncio.wait_for(healthy.list(NODES), 10) == ([], "1")
            found = await asyncio.gather(*stuck, return_exceptions=True)
    assert {type(error) for error in found} == {errors.ApiUnavailable}
    assert "no fresh credentials for EKS cluster 'bad'" in str(found[0])
    assert {request.headers["Authorization"] for request in api.requests} == {"Bearer t1"}


async def test_of_many_watches_that_are_refused_only_one_renews_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Any) -> Reply:
        return status(401, "Unauthorized") if request.headers["Authorization"] == "Bearer t1" else EMPTY

    with serving(ScriptedApi(answer=answer)) as api:
        credentials = Credentials(ready=True)
        known(monkeypatch, {eks("c"): Endpoint(api.url, None, credentials)})
        async with clients(*[eks("c")] * 20) as watching:
            assert await asyncio.gather(*(client.list(NODES) for client in watching)) == [([], "1")] * 20
    assert credentials.renewals == 1


async def test_a_name_that_is_not_resolved_holds_up_no_other_name(
    monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).startswith("mute"):
            hang.wait()
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return real("127.0.0.1" if host == "healthy.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(ScriptedApi(EMPTY)) as api:
        port = api.url.rpartition(":")[2]
        sick = [eks(f"mute-{index}", "sa-east-1") for index in range(MANY)]
        where = {
            access: Endpoint(f"http://{access.cluster_name}.example:{port}", None, FixedCredentials("t"))
            for access in [*sick, eks("healthy")]
        }
        known(monkeypatch, where)
        async with clients(*sick, eks("healthy")) as (*waiting, healthy):
            stuck = [asyncio.create_task(client.list(NODES)) for client in waiting]
            await asyncio.sleep(0.2)
            try:
                assert await asyncio.wait_for(healthy.list(NODES), 10) == ([], "1")
            finally:
                # Threads of the event loop's own pool would be waited for when it is closed, before the fixture ends.
                hang.set()
            found = await asyncio.gather(*stuck, return_exceptions=True)
    assert {type(error) for error in found} == {errors.ApiUnavailable}


def test_one_lost_endpoint_is_forgotten_once(monkeypatch: pytest.MonkeyPatch) -> None:
    access = eks("moved")
    old, new = (Endpoint(f"http://127.0.0.1:{port}", None, FixedCredentials("t")) for port in (1, 2))
    monkeypatch.setitem(kubernetes_access._cache, access, kubernetes_access.Known(new, ""))
    kubernetes_access.forget(access, old)
    assert kubernetes_access.known(access) is new
    kubernetes_access.forget(access, new)
    assert kubernetes_access.known(access) is None


def kubeconfig(path: Path, server: str, token: str) -> ClusterAccess:
    named = {"name": "c"}
    config = {
        "current-context": "c",
        "contexts": [{**named, "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{**named, "cluster": {"server": server}}],
        "users": [{**named, "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return ClusterAccess("kubeconfig", None, None, None, path=str(path))


async def test_a_trigger_follows_a_changed_connection_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(ScriptedApi(EMPTY)) as api:
        async with clients(kubeconfig(tmp_path / "k", api.url, "t1")) as [client]:
            await client.list(NODES)
            kubeconfig(tmp_path / "k", api.url, "t2")
            await client.list(NODES)
            known = kubernetes_access._cache[client.access]
            monkeypatch.setattr(known, "checked_at", known.checked_at - 60.0)
            monkeypatch.setattr(known, "resolved_at", known.resolved_at - 60.0)
            await client.list(NODES)
    assert [request.headers["Authorization"] for request in api.requests] == ["Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_check_of_the_connection_that_hangs_is_waited_for_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    checks: list[ClusterAccess] = []

    def check(access: ClusterAccess) -> None:
        checks.append(access)
        hang.wait()

    access = kubeconfig(tmp_path / "k", "http://127.0.0.1:1", "t1")
    endpoint = kubernetes_access.resolve(access)
    known = kubernetes_access._cache[access]
    known.checked_at -= 60.0
    monkeypatch.setattr(kubernetes_access, "check", check)
    monkeypatch.setattr(kubernetes_endpoints, "CHECK_PATIENCE_S", 0.1)
    found = await asyncio.gather(*(kubernetes_endpoints.endpoint_of(access) for _ in range(MANY)))
    assert set(map(id, found)) == {id(endpoint)}
    monkeypatch.setattr(kubernetes_endpoints, "CHECK_PATIENCE_S", 60.0)
    assert await asyncio.wait_for(kubernetes_endpoints.endpoint_of(access), 10) is endpoint
    assert checks == [access]


async def test_a_connection_that_a_trigger_cannot_read_is_an_outage_of_the_way_to_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its worker had it: Airflow calls a connection absent also while its secrets backend does not answer."""
    monkeypatch.delenv("AIRFLOW_CONN_AWAY", raising=False)
    access = ClusterAccess("eks", "away", "eu-north-1", "c")
    with pytest.raises(errors.SpecError, match=r"aws\.connection: there is no Airflow connection 'away'"):
        kubernetes_access.resolve(access)
    async with clients(access) as [client]:
        for _ in range(2):
            with pytest.raises(errors.ApiUnavailable, match="there is no Airflow connection 'away'") as caught:
                await client.list(NODES)
            assert caught.value.reason == "ConnectionUnreadable"


@pytest.mark.parametrize(
    ("field", "kind"), [("aws.connection", errors.ApiUnavailable), ("aws.region", errors.SpecError)]
)
async def test_credentials_whose_connection_cannot_be_read_any_more_are_an_outage(
    field: str, kind: type[errors.GpuFleetError]
) -> None:
    class Dropped(Credentials):
        def headers(self) -> dict[str, str]:
            raise errors.SpecError("there is none", field=field)

    endpoint = Endpoint("https://127.0.0.1:1", None, Dropped())
    with pytest.raises(errors.GpuFleetError, match="there is none") as caught:
        await kubernetes_endpoints.headers_of(eks("dropped"), endpoint)
    assert type(caught.value) is kind
    with pytest.raises(errors.GpuFleetError, match="there is none") as caught:
        await kubernetes_endpoints.renewed(eks("dropped"), endpoint, {})
    assert type(caught.value) is kind
