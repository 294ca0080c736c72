"""The client and its informers against a scripted server that does what real ones do at bad moments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sandbox.kube.client import Kube
from sandbox.kube.informers import Change, SharedInformers
from sandbox.kube.resources import RESOURCES, ApiError
from sandbox.kube.workqueue import WorkQueue
from tests.sandbox.controllers import builders

Object = dict[str, Any]


class Script:
    """Serves ConfigMaps: lists from :attr:`objects`, watches from a queue of lines."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.version = 1
        self.lists = 0
        self.refuse = 0
        self.watches: asyncio.Queue[str] = asyncio.Queue()
        self.lines: asyncio.Queue[Object | None] = asyncio.Queue()

    def put(self, name: str, uid: str = "u", **data: str) -> Object:
        self.version += 1
        metadata = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(self.version)}
        self.objects[name] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        return self.objects[name]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            self.refuse -= 1
            raise web.HTTPInternalServerError(text="no luck")
        if "watch" not in request.query:
            self.lists += 1
            items = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in self.objects.values()]
            page = {"kind": "ConfigMapList", "metadata": {"resourceVersion": str(self.version)}, "items": items}
            return web.json_response(page)
        self.watches.put_nowait(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while (line := await self.lines.get()) is not None:
            await response.write(json.dumps(line).encode() + b"\n")
        return response


@pytest.fixture
async def script() -> AsyncIterator[tuple[Script, SharedInformers]]:
    scripted = Script()
    app = web.Application()
    app.router.add_get("/api/v1/configmaps", scripted.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kube = Kube(f"http://127.0.0.1:{runner.addresses[0][1]}", user_agent="test")
    informers = SharedInformers(kube)
    yield scripted, informers
    await informers.close()
    await kube.close()
    scripted.lines.put_nowait(None)
    await runner.cleanup()


def _event(change: str, obj: Object) -> Object:
    return {"type": change, "object": json.loads(json.dumps(obj))}


GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (3522)"}


async def test_list_then_watch(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    scripted.put("a")
    seen: list[tuple[Change, str]] = []
    informer = informers("ConfigMap")
    informer.add_handler(lambda change, obj, _old: seen.append((change, obj["metadata"]["name"])))
    await informers.synced()
    found = informer.get("a", "default")
    assert found is not None
    assert found["kind"] == "ConfigMap"
    scripted.lines.put_nowait(_event("ADDED", scripted.put("b")))
    scripted.lines.put_nowait(_event("MODIFIED", scripted.put("a", key="1")))
    scripted.lines.put_nowait(_event("DELETED", scripted.put("b")))
    await informer.wait_until(lambda each: each.get("b", "default") is None and len(seen) == 4, 3)
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    late: list[str] = []
    remove = informer.add_handler(lambda change, obj, _old: late.append(change))
    assert late == ["ADDED"]
    remove()
    assert await scripted.watches.get() == "2"


async def test_expired_version_is_listed_again_and_no_change_is_lost(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    scripted.put("stays")
    scripted.put("goes")
    scripted.put("reborn", uid="old")
    informer = informers("ConfigMap")
    await informers.synced()
    seen: list[tuple[Change, str]] = []
    informer.add_handler(lambda change, obj, _old: seen.append((change, obj["metadata"]["name"])))
    seen.clear()
    del scripted.objects["goes"]
    scripted.put("reborn", uid="new")
    scripted.put("new")
    scripted.lines.put_nowait({"type": "ERROR", "object": GONE})
    await informer.wait_until(lambda each: each.get("new", "default"), 3)
    assert seen == [("DELETED", "goes"), ("DELETED", "reborn"), ("ADDED", "reborn"), ("ADDED", "new")]
    assert scripted.lists == 2


async def test_bookmark_moves_the_version_of_the_next_watch(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    informers("ConfigMap")
    await informers.synced()
    bookmark = {"kind": "ConfigMap", "metadata": {"resourceVersion": "77"}}
    scripted.lines.put_nowait({"type": "BOOKMARK", "object": bookmark})
    scripted.lines.put_nowait(None)
    async with asyncio.timeout(3):
        assert [await scripted.watches.get() for _ in range(2)] == ["1", "77"]
    assert scripted.lists == 1


async def test_a_server_that_fails_at_first(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    scripted.refuse = 2
    scripted.put("a")
    informer = informers("ConfigMap")
    await informer.wait_until(lambda each: each.get("a", "default"), 5)


async def test_unknown_kind_is_an_empty_list_until_it_is_served(script: tuple[Script, SharedInformers]) -> None:
    _, informers = script
    informer = informers("NodeClaim")
    async with asyncio.timeout(3):
        await informers.synced()
    assert informer.items() == []


async def test_index_follows_changes(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    scripted.put("a", team="red")
    informer = informers("ConfigMap")
    await informers.synced()
    informer.add_index("team", lambda obj: (obj["data"]["team"],))
    assert len(informer.by_index("team", "red")) == 1
    scripted.lines.put_nowait(_event("MODIFIED", scripted.put("a", team="blue")))
    await informer.wait_until(lambda each: each.by_index("team", "blue"), 3)
    assert informer.by_index("team", "red") == []


async def test_caught_up_waits_for_our_own_write(script: tuple[Script, SharedInformers]) -> None:
    scripted, informers = script
    informer = informers("ConfigMap")
    await informers.synced()
    written = scripted.put("mine")
    waiting = asyncio.create_task(informer.caught_up(written))
    await asyncio.sleep(0)
    assert not waiting.done()
    scripted.lines.put_nowait(_event("ADDED", written))
    await waiting
    assert informer.get("mine", "default") is not None


async def test_a_failing_handler_stops_nobody(
    script: tuple[Script, SharedInformers], caplog: pytest.LogCaptureFixture
) -> None:
    scripted, informers = script
    scripted.put("a")

    def fail(*_: object) -> None:
        raise RuntimeError("broken handler")

    informer = informers("ConfigMap")
    informer.add_handler(fail)
    await informers.synced()
    assert informer.get("a", "default") is not None
    assert "a handler failed" in caplog.text


# --- errors and paths ----------------------------------------------------------------------------------------------


async def test_plain_text_answers_are_errors_too(script: tuple[Script, SharedInformers]) -> None:
    _, informers = script
    kube = informers._kube
    with pytest.raises(ApiError) as missing:
        await kube.get("NodePool", "p")
    assert missing.value.not_found
    assert await kube.find("NodePool", "p") is None
    assert await kube.delete("NodePool", "p") is False


async def test_an_unreachable_server_is_a_connection_error() -> None:
    kube = Kube("http://127.0.0.1:1", user_agent="test")
    with pytest.raises(aiohttp.ClientConnectionError):
        await kube.get("Node", "n")
    await kube.close()


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "path"),
    [
        ("Pod", None, None, "/api/v1/pods"),
        ("Pod", "a", "p", "/api/v1/namespaces/a/pods/p"),
        ("Node", None, "n", "/api/v1/nodes/n"),
        ("EC2NodeClass", None, "c", "/apis/karpenter.k8s.aws/v1/ec2nodeclasses/c"),
        ("NodeOverlay", None, None, "/apis/karpenter.sh/v1alpha1/nodeoverlays"),
        ("Lease", "kube-node-lease", "n", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n"),
    ],
)
def test_paths(kind: str, namespace: str | None, name: str | None, path: str) -> None:
    assert RESOURCES[kind].path(namespace, name) == path


def test_a_namespaced_object_needs_its_namespace() -> None:
    with pytest.raises(ValueError, match="give its namespace"):
        RESOURCES["Pod"].path(None, "p")


def test_exec_plugins_are_refused(tmp_path: Any) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://localhost"}}],
        "users": [{"name": "u", "user": {"exec": {"command": "aws"}}}],
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="user 'u' needs a credential plugin"):
        Kube.from_kubeconfig(path)
    with pytest.raises(ValueError, match="no entry 'other' under contexts"):
        Kube.from_kubeconfig(path, context="other")


# --- work queue ----------------------------------------------------------------------------------------------------


async def test_a_key_is_never_worked_on_twice_at_a_time_and_never_forgotten() -> None:
    queue = WorkQueue()
    running: list[str] = []
    done = asyncio.Event()
    count = 0

    async def reconcile(key: str) -> None:
        nonlocal count
        assert not running
        running.append(key)
        count += 1
        if count == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0.01)
        running.remove(key)
        if count == 2:
            done.set()

    queue.add("k")
    queue.add("k")
    task = asyncio.create_task(queue.run(reconcile, workers=3))
    async with asyncio.timeout(3):
        await done.wait()
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert count == 2


async def test_a_failing_key_is_tried_again_and_the_others_go_on() -> None:
    queue = WorkQueue()
    attempts: list[str] = []
    done = asyncio.Event()

    async def reconcile(key: str) -> None:
        attempts.append(key)
        if key == "bad" and attempts.count("bad") < 3:
            raise ApiError(409, "Conflict", "again")
        if attempts.count("bad") == 3:
            done.set()

    queue.add("bad")
    queue.add("good")
    task = asyncio.create_task(queue.run(reconcile))
    async with asyncio.timeout(3):
        await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert attempts[:2] == ["bad", "good"]
    assert attempts.count("bad") == 3


def test_builders_make_what_the_table_knows() -> None:
    for obj in (builders.node(), builders.pod(), builders.workload("DaemonSet"), builders.job(), builders.budget()):
        assert RESOURCES[obj["kind"]].api_version == obj["apiVersion"]
