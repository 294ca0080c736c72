"""The life of a CustomResourceDefinition: what is there, when, and what requests meet meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.apiserver import Running, running
from sandbox.settings import Settings
from tests.sandbox.apiserver.builders import definition
from tests.sandbox.apiserver.client import JSON_PATCH, Api, Reply, connect, define, until

pytestmark = pytest.mark.real_api

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
NAME = f"{DEFINITIONS}/widgets.example.com"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"spec": {"type": "object"}}}


def widget(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name, **metadata}, "spec": {}}


def conditions(reply: Reply) -> dict[str, tuple[str, str]]:
    found = reply.body["status"].get("conditions") or []
    return {item["type"]: (item["status"], item["reason"]) for item in found}


@pytest.fixture
async def unhurried(server: Running | None, api: Api, tmp_path: Path) -> AsyncIterator[Api]:
    """A server whose waits are as long as real ones: on a busy machine the next request may come after shorter ones."""
    if server is None:
        yield api
        return
    settings = Settings(state_dir=tmp_path / "unhurried", speed=1.0)
    async with running(settings.state_dir, settings=settings) as own, connect(own.kubeconfig) as client:
        yield client


async def test_a_new_definition_serves_nothing_yet(unhurried: Api) -> None:
    created = await unhurried.post(DEFINITIONS, definition(SCHEMA))
    listed = await unhurried.get(WIDGETS)
    assert created.code == 201
    assert created.body["status"] == {
        "acceptedNames": {"kind": "", "plural": ""},
        "conditions": None,
        "storedVersions": ["v1"],
    }
    assert "finalizers" not in created.body["metadata"]
    assert (listed.code, listed.text.strip()) == (404, "404 page not found")


async def test_a_definition_is_established_a_moment_later(api: Api) -> None:
    await api.post(DEFINITIONS, definition(SCHEMA))
    found = await until(api, NAME, lambda reply: conditions(reply).get("Established", ("",))[0] == "True")
    assert conditions(found) == {
        "NamesAccepted": ("True", "NoConflicts"),
        "Established": ("True", "InitialNamesAccepted"),
    }
    assert found.body["status"]["acceptedNames"] == {
        "plural": "widgets",
        "singular": "widget",
        "shortNames": ["wd"],
        "kind": "Widget",
        "listKind": "WidgetList",
    }


async def test_the_first_list_finds_an_empty_cache(api: Api) -> None:
    await api.post(DEFINITIONS, definition(SCHEMA))
    await until(api, NAME, lambda reply: conditions(reply).get("Established", ("",))[0] == "True")
    first = await until(api, WIDGETS, lambda reply: reply.code != 404)
    assert (first.code, first.reason, first.message) == (429, "TooManyRequests", "storage is (re)initializing")
    assert first.headers["Retry-After"] == "1"
    assert (await until(api, WIDGETS, lambda reply: reply.code == 200)).body["items"] == []


async def test_a_first_list_with_a_limit_goes_past_the_cache(api: Api) -> None:
    await api.post(DEFINITIONS, definition(SCHEMA))
    await until(api, NAME, lambda reply: conditions(reply).get("Established", ("",))[0] == "True")
    assert (await until(api, f"{WIDGETS}?limit=500", lambda reply: reply.code != 404)).code == 200


async def test_a_changed_definition_begins_with_an_empty_cache(api: Api) -> None:
    await define(api, definition(SCHEMA))
    await api.post(WIDGETS, widget("w"))
    change = [
        {"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/more", "value": {"type": "string"}}
    ]
    assert (await api.patch(NAME, change, JSON_PATCH)).code == 200
    empty = await until(api, WIDGETS, lambda reply: reply.code != 200)
    assert (empty.code, empty.message) == (429, "storage is (re)initializing")
    again = await until(api, WIDGETS, lambda reply: reply.code == 200)
    assert [item["metadata"]["name"] for item in again.body["items"]] == ["w"]


async def test_a_changed_definition_ends_its_watches(api: Api, cluster: Running) -> None:
    await define(api, definition(SCHEMA))
    await api.post(WIDGETS, widget("w"))
    more = "/spec/versions/0/schema/openAPIV3Schema/properties/more"
    async with api.watch(f"{WIDGETS}?watch=1") as watch:
        assert await watch.take(1) == [("ADDED", "w")]
        change = [{"op": "add", "path": more, "value": {"type": "string"}}]
        assert (await api.patch(NAME, change, JSON_PATCH)).code == 200
        assert await watch.rest() == b""


async def test_an_object_of_a_definition_just_established_is_created_after_a_wait(
    unhurried: Api, cluster: Running
) -> None:
    """Another server of the cluster may not know the definition yet."""
    await unhurried.post(DEFINITIONS, definition(SCHEMA))
    await until(unhurried, NAME, lambda reply: conditions(reply).get("Established", ("",))[0] == "True")
    begun = asyncio.get_running_loop().time()
    assert (await unhurried.post(WIDGETS, widget("w"))).code == 201
    assert asyncio.get_running_loop().time() - begun >= 2


async def test_names_that_another_definition_has(api: Api) -> None:
    await define(api, definition(SCHEMA))
    body = definition(SCHEMA)
    body["metadata"]["name"] = "gadgets.example.com"
    body["spec"]["names"] = {"plural": "gadgets", "kind": "Gadget", "shortNames": ["wd"]}
    await api.post(DEFINITIONS, body)
    where = f"{DEFINITIONS}/gadgets.example.com"
    found = await until(api, where, lambda reply: "NamesAccepted" in conditions(reply))
    assert conditions(found) == {
        "NamesAccepted": ("False", "ShortNamesConflict"),
        "Established": ("False", "NotAccepted"),
    }
    assert (await api.get("/apis/example.com/v1/namespaces/default/gadgets")).code == 404


async def test_a_deleted_definition_goes_later(api: Api) -> None:
    await define(api, definition(SCHEMA))
    deleted = await api.delete(NAME)
    assert deleted.code == 200
    assert deleted.body["metadata"]["deletionTimestamp"]
    assert deleted.body["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    assert conditions(deleted)["Terminating"] == ("True", "InstanceDeletionPending")
    assert (await until(api, NAME, lambda reply: reply.code == 404)).code == 404
    assert (await until(api, WIDGETS, lambda reply: reply.code == 404)).code == 404


async def test_a_deleted_definition_waits_for_its_objects(api: Api) -> None:
    await define(api, definition(SCHEMA))
    await api.post(WIDGETS, widget("free"))
    await api.post(WIDGETS, widget("held", finalizers=["example.com/hold"]))
    await api.delete(NAME)
    going = await until(api, NAME, lambda reply: conditions(reply)["Terminating"][1] == "InstanceDeletionInProgress")
    assert going.body["metadata"]["deletionTimestamp"]
    listed = await until(
        api, WIDGETS, lambda reply: [item["metadata"]["name"] for item in reply.body["items"]] == ["held"]
    )
    assert listed.body["items"][0]["metadata"]["deletionTimestamp"]
    refused = await api.post(WIDGETS, widget("late"))
    assert (refused.code, refused.reason) == (403, "Forbidden")
    assert refused.message == (
        'widgets.example.com "late" is forbidden: create not allowed while custom resource definition is terminating'
    )
    await api.patch(f"{WIDGETS}/held", [{"op": "remove", "path": "/metadata/finalizers"}], JSON_PATCH)
    assert (await until(api, NAME, lambda reply: reply.code == 404)).code == 404


async def test_a_list_of_a_revision_of_the_future(api: Api) -> None:
    maps = "/api/v1/namespaces/default/configmaps"
    current = int((await api.get(maps)).body["metadata"]["resourceVersion"])
    reply = await api.get(f"{maps}?resourceVersion={current + 1_000_000}")
    assert (reply.code, reply.reason, reply.headers["Retry-After"]) == (504, "Timeout", "1")
    assert reply.message.startswith(f"Timeout: Too large resource version: {current + 1_000_000}, current: ")
    assert reply.causes == [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]


async def test_a_list_of_a_revision_that_comes_in_time(unhurried: Api) -> None:
    maps = "/api/v1/namespaces/default/configmaps"
    current = int((await unhurried.get(maps)).body["metadata"]["resourceVersion"])
    waiting = asyncio.create_task(unhurried.get(f"{maps}?resourceVersion={current + 1}"))
    await asyncio.sleep(0.2)  # until it has come, or the revision would be there before it is asked for
    await unhurried.post(maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    assert (await waiting).code == 200
