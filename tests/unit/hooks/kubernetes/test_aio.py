from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_fleet.core import errors
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.errors import is_expired
from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess
from tests.unit.hooks.scripted_api import Reply, ScriptedApi, serving, status

NODES = KubeQuery("nodes", NODE, label_selector="a=b")


@asynccontextmanager
async def client_of(tmp_path: Path, *replies: Reply) -> AsyncIterator[tuple[AsyncKubeClient, ScriptedApi]]:
    with serving(ScriptedApi(*replies)) as api:
        path = api.kubeconfig(tmp_path, token="t0")
        client = AsyncKubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(path)))
        try:
            yield client, api
        finally:
            await client.close()


async def test_list_gives_items_and_version(tmp_path: Path) -> None:
    pages = [
        Reply(body={"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "x"}}),
        Reply(body={"items": [{"metadata": {"name": "b"}}], "metadata": {"resourceVersion": "9"}}),
    ]
    async with client_of(tmp_path, *pages) as (client, _):
        items, version = await client.list(NODES)
        assert [item["metadata"]["name"] for item in items] == ["a", "b"]
        assert version == "9"
        assert items[0]["kind"] == "Node"


async def test_a_kind_that_the_server_lacks_has_no_objects_and_no_version(tmp_path: Path) -> None:
    async with client_of(tmp_path, Reply(404, b"404 page not found")) as (client, _):
        assert await client.list(NODES) == ([], "")
        assert await client.get(ObjectRef(NODE, "x")) is None


async def test_watch_yields_changes_and_ends_with_the_server(tmp_path: Path) -> None:
    big = "x" * 300_000  # larger than any line limit of the HTTP client
    lines = [
        {"type": "ADDED", "object": {"metadata": {"name": "a", "annotations": {"big": big}}}},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}},
        {"type": "DELETED", "object": {"metadata": {"name": "a"}}},
    ]
    async with client_of(tmp_path, Reply(lines=lines)) as (client, api):
        seen = [(kind, content["metadata"].get("name")) async for kind, content in client.watch(NODES, "7")]
        assert seen == [("ADDED", "a"), ("BOOKMARK", None), ("DELETED", "a")]
        assert "resourceVersion=7" in api.requests[0].path
        assert "watch=true" in api.requests[0].path


async def test_pages_and_watches_do_not_continue_at_another_server(tmp_path: Path) -> None:
    def moved(to: ScriptedApi) -> Reply:
        to.kubeconfig(tmp_path, token="t0")
        kubernetes_access.forget(client.access)
        return Reply(body={"items": [], "metadata": {"continue": "x"}})

    last = Reply(body={"items": [], "metadata": {"resourceVersion": "9"}})
    async with client_of(tmp_path, last) as (client, old):
        with serving(ScriptedApi(answer=lambda _: moved(old))) as new:
            _, version = await client.list(NODES)
            moved(new)
            with pytest.raises(errors.ApiUnavailable, match=r"watch nodes: .* is at another address now") as caught:
                await anext(client.watch(NODES, version))
            assert is_expired(caught.value)
            assert not new.requests
            with pytest.raises(errors.ApiUnavailable, match=r"list nodes: .* is at another address now") as caught:
                await client.list(NODES)
            assert is_expired(caught.value)
            assert (len(new.requests), len(old.requests)) == (1, 1)


async def test_an_expired_watch_says_so(tmp_path: Path) -> None:
    line = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old resource version"}}
    async with client_of(tmp_path, Reply(lines=[line])) as (client, _):
        with pytest.raises(errors.ApiUnavailable) as caught:
            async for _ in client.watch(NODES, "1"):
                pass
        assert is_expired(caught.value)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status(401, "Unauthorized"), errors.Unauthorized),
        (status(403, 'nodes is forbidden: User "low" cannot list resource "nodes"'), errors.Forbidden),
        (status(503, "busy"), errors.ApiUnavailable),
        (Reply(cut=True), errors.ApiUnavailable),
        (Reply(body=b"not json"), errors.ApiUnavailable),
    ],
    ids=["401", "403", "503", "cut", "garbage"],
)
async def test_failures_are_typed(tmp_path: Path, reply: Reply, kind: type[errors.GpuFleetError]) -> None:
    async with client_of(tmp_path, reply) as (client, _):
        with pytest.raises(kind):
            await client.list(NODES)


async def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    async with client_of(tmp_path, Reply(body={"items": [], "metadata": {}})) as (client, _):
        await client.list(NODES)
        await client.close()
        await client.close()
