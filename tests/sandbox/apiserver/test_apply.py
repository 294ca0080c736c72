"""Server-side apply: ownership, conflicts, pruning, drift by dry run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.apiserver.builders import DEPLOYMENTS, MAPS, PODS, config_map, deployment
from tests.sandbox.apiserver.client import STRATEGIC, Api

pytestmark = pytest.mark.real_api

MAP = f"{MAPS}/a"


def managers(obj: dict[str, Any]) -> dict[str, Any]:
    return {entry["manager"]: entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


async def test_creates_then_changes(api: Api) -> None:
    created = await api.apply(MAP, config_map("a", x="1"))
    changed = await api.apply(MAP, config_map("a", x="2"))
    assert (created.code, changed.code, changed.body["data"]) == (201, 200, {"x": "2"})


async def test_applying_the_same_again_changes_nothing(api: Api) -> None:
    first = await api.apply(f"{DEPLOYMENTS}/d", deployment("d"))
    again = await api.apply(f"{DEPLOYMENTS}/d", deployment("d"))
    assert again.body == first.body


async def test_managed_fields_are_compact_and_sorted(api: Api) -> None:
    body = deployment("d")
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"containerPort": 80}]
    reply = await api.apply(f"{DEPLOYMENTS}/d", body)
    entry = reply.body["metadata"]["managedFields"][0]
    assert {key: entry[key] for key in ("manager", "operation", "apiVersion", "fieldsType")} == {
        "manager": "m",
        "operation": "Apply",
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
    }
    template = entry["fieldsV1"]["f:spec"]["f:template"]
    assert template == {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:containers": {
                'k:{"name":"main"}': {
                    ".": {},
                    "f:image": {},
                    "f:name": {},
                    "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                }
            }
        },
    }


async def test_one_conflict(api: Api) -> None:
    await api.apply(f"{DEPLOYMENTS}/d", deployment("d", replicas=1), "helm")
    scaled = await api.patch(f"{DEPLOYMENTS}/d/scale?fieldManager=kubectl", {"spec": {"replicas": 3}})
    assert scaled.body["spec"]["replicas"] == 3
    reply = await api.apply(f"{DEPLOYMENTS}/d", deployment("d", replicas=1), "helm")
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert reply.message == (
        'Apply failed with 1 conflict: conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas'
    )
    assert reply.causes == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "kubectl" with subresource "scale" using apps/v1',
            "field": ".spec.replicas",
        }
    ]


async def test_several_conflicts(api: Api) -> None:
    await api.apply(MAP, config_map("a", a="1", b="1"), "m1")
    reply = await api.apply(MAP, config_map("a", a="2", b="2"), "m2")
    assert reply.message == 'Apply failed with 2 conflicts: conflicts with "m1":\n- .data.a\n- .data.b'


async def test_force_takes_ownership(api: Api) -> None:
    await api.apply(MAP, config_map("a", a="1"), "m1")
    reply = await api.apply(MAP, config_map("a", a="2"), "m2", "&force=true")
    assert reply.body["data"] == {"a": "2"}
    assert managers(reply.body).keys() == {"m2"}


async def test_the_same_value_is_shared_without_conflict(api: Api) -> None:
    await api.apply(MAP, config_map("a", a="1"), "m1")
    reply = await api.apply(MAP, config_map("a", a="1"), "m2")
    assert reply.code == 200
    assert managers(reply.body).keys() == {"m1", "m2"}


async def test_a_field_no_longer_applied_goes_unless_shared(api: Api) -> None:
    await api.apply(MAP, config_map("a", mine="1", shared="1"), "m1")
    await api.apply(MAP, config_map("a", shared="1"), "m2")
    reply = await api.apply(MAP, config_map("a"), "m1")
    assert reply.body["data"] == {"shared": "1"}


async def test_a_container_no_longer_applied_goes(api: Api) -> None:
    two = deployment("d")
    two["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "busybox"})
    await api.apply(f"{DEPLOYMENTS}/d", two)
    reply = await api.apply(f"{DEPLOYMENTS}/d", deployment("d"))
    assert [item["name"] for item in reply.body["spec"]["template"]["spec"]["containers"]] == ["main"]


async def test_associative_lists_of_two_managers_merge(api: Api) -> None:
    await api.apply(f"{DEPLOYMENTS}/d", deployment("d"), "m1")
    side = deployment("d")
    side["spec"]["template"]["spec"]["containers"] = [{"name": "side", "image": "busybox"}]
    reply = await api.apply(f"{DEPLOYMENTS}/d", side, "m2")
    assert [item["name"] for item in reply.body["spec"]["template"]["spec"]["containers"]] == ["main", "side"]


async def test_plain_writes_own_what_they_change(api: Api) -> None:
    await api.apply(MAP, config_map("a", a="1"), "m1")
    await api.patch(f"{MAP}?fieldManager=editor", {"data": {"a": "2"}})
    reply = await api.apply(MAP, config_map("a", a="1"), "m1")
    assert reply.message == 'Apply failed with 1 conflict: conflict with "editor" using v1: .data.a'


async def test_drift_is_seen_by_a_forced_dry_run(api: Api) -> None:
    query = "&force=true&dryRun=All"
    await api.apply(MAP, config_map("a", a="1"), "helm")
    clean = (await api.get(MAP)).body
    assert (await api.apply(MAP, config_map("a", a="1"), "helm", query)).body == clean
    await api.patch(f"{MAP}?fieldManager=hand", {"data": {"a": "2"}})
    edited = (await api.get(MAP)).body
    wanted = (await api.apply(MAP, config_map("a", a="1"), "helm", query)).body
    assert (edited["data"], wanted["data"]) == ({"a": "2"}, {"a": "1"})
    assert (await api.get(MAP)).body == edited


async def test_dry_run_of_a_deleted_object_would_create_it(api: Api) -> None:
    reply = await api.apply(MAP, config_map("a", a="1"), "helm", "&dryRun=All")
    assert reply.code == 201
    assert (await api.get(MAP)).code == 404


async def test_a_patch_of_managed_fields_alone_persists(api: Api) -> None:
    await api.apply(MAP, config_map("a", a="1"), "m1")
    live = (await api.get(MAP)).body
    entries = live["metadata"]["managedFields"]
    entries[0]["manager"] = "renamed"
    change = [{"op": "replace", "path": "/metadata/managedFields", "value": entries}]
    await api.patch(MAP, change, "application/json-patch+json")
    assert managers((await api.get(MAP)).body).keys() == {"renamed"}


async def test_status_by_apply_leaves_the_spec_alone(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    body = {**deployment("d", replicas=9), "status": {"replicas": 4}}
    reply = await api.apply(f"{DEPLOYMENTS}/d/status", body, "controller")
    assert (reply.body["spec"]["replicas"], reply.body["status"]["replicas"]) == (1, 4)


async def test_strategic_patch_merges_containers_by_name(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    change = {
        "spec": {
            "template": {"spec": {"containers": [{"name": "main", "image": "nginx:2"}, {"name": "b", "image": "b"}]}}
        }
    }
    reply = await api.patch(f"{DEPLOYMENTS}/d", change, STRATEGIC)
    containers = reply.body["spec"]["template"]["spec"]["containers"]
    assert [(item["name"], item["image"]) for item in containers] == [("main", "nginx:2"), ("b", "b")]
    gone = {"spec": {"template": {"spec": {"containers": [{"$patch": "delete", "name": "b"}]}}}}
    reply = await api.patch(f"{DEPLOYMENTS}/d", gone, STRATEGIC)
    assert len(reply.body["spec"]["template"]["spec"]["containers"]) == 1


async def test_key_of_an_associative_list_missing(api: Api) -> None:
    body = deployment("d")
    body["spec"]["template"]["spec"]["containers"] = [{"image": "nginx"}]
    reply = await api.apply(f"{DEPLOYMENTS}/d", body)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == 'Deployment.apps "d" is invalid: spec.template.spec.containers[0].name: Required value'


async def test_key_of_an_associative_list_twice(api: Api) -> None:
    body = deployment("d")
    body["spec"]["template"]["spec"]["containers"] = [{"name": "a", "image": "nginx"}, {"name": "a", "image": "redis"}]
    reply = await api.apply(f"{DEPLOYMENTS}/d", body)
    assert (reply.code, reply.reason) == (500, "")
    assert reply.message == (
        "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): "
        '.spec.template.spec.containers: duplicate entries for key [name="a"]'
    )


async def test_pods_are_applied_too(api: Api) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]},
    }
    first = await api.apply(f"{PODS}/p", body)
    assert (first.code, first.body["status"]["phase"]) == (201, "Pending")
    assert (await api.apply(f"{PODS}/p", body)).body == first.body
