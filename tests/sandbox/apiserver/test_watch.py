from __future__ import annotations

import json

import pytest

from sandbox.apiserver import Running
from tests.sandbox.apiserver.builders import MAPS, config_map
from tests.sandbox.apiserver.client import Api

STREAMING = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"


async def test_initial_events_end_with_a_bookmark(api: Api) -> None:
    for name in ("a", "b"):
        await api.post(MAPS, config_map(name))
    async with api.watch(f"{MAPS}?watch=1&{STREAMING}") as watch:
        assert await watch.take(2) == [("ADDED", "a"), ("ADDED", "b")]
        kind, obj = await watch.next()
        assert (kind, obj["metadata"]["annotations"]) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})
        assert int(obj["metadata"]["resourceVersion"]) > 0
        await api.post(MAPS, config_map("c"))
        assert await watch.take(1) == [("ADDED", "c")]


async def test_an_empty_collection_still_gets_its_bookmark(api: Api) -> None:
    async with api.watch(f"{MAPS}?watch=1&{STREAMING}") as watch:
        assert (await watch.next())[0] == "BOOKMARK"


async def test_initial_events_need_the_right_match(api: Api) -> None:
    reply = await api.get(f"{MAPS}?watch=1&sendInitialEvents=true")
    assert (reply.code, reply.reason) == (422, "Invalid")


async def test_from_a_resource_version_on(api: Api) -> None:
    first = (await api.post(MAPS, config_map("a"))).body
    await api.post(MAPS, config_map("b"))
    await api.delete(f"{MAPS}/a")
    async with api.watch(f"{MAPS}?watch=1&resourceVersion={first['metadata']['resourceVersion']}") as watch:
        assert await watch.take(2) == [("ADDED", "b"), ("DELETED", "a")]


async def test_an_expired_watch(api: Api, cluster: Running) -> None:
    old = (await api.post(MAPS, config_map("a"))).body["metadata"]["resourceVersion"]
    await api.post(MAPS, config_map("b"))
    cluster.server.store.compact()
    async with api.watch(f"{MAPS}?watch=1&resourceVersion={old}") as watch:
        kind, status = await watch.next()
    newest = cluster.server.store.revision
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
    assert status["message"] == f"too old resource version: {old} ({newest})"


async def test_leaving_and_entering_a_selector(api: Api) -> None:
    async with api.watch(f"{MAPS}?watch=1&labelSelector=on=yes") as watch:
        await api.post(MAPS, config_map("a"))
        await api.patch(f"{MAPS}/a", {"metadata": {"labels": {"on": "yes"}}})
        await api.patch(f"{MAPS}/a", {"data": {"x": "1"}})
        left = (await api.patch(f"{MAPS}/a", {"metadata": {"labels": {"on": "no"}}})).body
        kinds = [await watch.next() for _ in range(3)]
    assert [kind for kind, _ in kinds] == ["ADDED", "MODIFIED", "DELETED"]
    gone = kinds[2][1]
    assert gone["metadata"]["labels"] == {"on": "yes"}
    assert gone["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]


async def test_other_namespaces_are_not_seen(api: Api) -> None:
    async with api.watch(f"{MAPS}?watch=1") as watch:
        await api.post("/api/v1/namespaces/kube-system/configmaps", config_map("elsewhere"))
        await api.post(MAPS, config_map("here"))
        assert await watch.take(1) == [("ADDED", "here")]


async def test_a_watch_ends_after_its_timeout(api: Api) -> None:
    reply = await api.get(f"{MAPS}?watch=1&timeoutSeconds=1")
    assert (reply.code, reply.text) == (200, "")


async def test_periodic_bookmarks(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.apiserver.requests.watch.BOOKMARK_INTERVAL", 0.05)
    async with api.watch(f"{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion=1") as watch:
        kind, obj = await watch.next()
    assert (kind, "annotations" in obj["metadata"]) == ("BOOKMARK", False)


async def test_metadata_only(api: Api) -> None:
    await api.post(MAPS, config_map("a", big="x"))
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    reply = await api.get(f"{MAPS}?watch=1&timeoutSeconds=1", Accept=accept)
    event = json.loads(reply.text.splitlines()[0])
    assert (event["object"]["kind"], "data" in event["object"]) == ("PartialObjectMetadata", False)
