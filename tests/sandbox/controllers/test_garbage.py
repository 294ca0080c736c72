from __future__ import annotations

from typing import Any

from sandbox.controllers.objects import meta
from sandbox.kube.resources import Resource
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World

WIDGET = Resource("example.com", "v1", "widgets", "Widget", False)


def _owned_by(owner: dict[str, Any], name: str, *, block: bool = False) -> dict[str, Any]:
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    reference |= {"name": meta(owner)["name"], "uid": meta(owner)["uid"]} | (
        {"blockOwnerDeletion": True} if block else {}
    )
    return builders.plain("ConfigMap", name, metadata={"ownerReferences": [reference]})


async def _pair(cluster: World, *, block: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    owner = await cluster.create(builders.plain("ConfigMap", "owner"))
    child = await cluster.create(_owned_by(owner, "child", block=block))
    return owner, child


async def test_background_takes_the_dependents_after_the_owner(cluster: World) -> None:
    await _pair(cluster)
    await cluster.kube.delete("ConfigMap", "owner", "default", propagation="Background")
    await cluster.gone("ConfigMap", "child", "default")


async def test_foreground_waits_for_blocking_dependents(cluster: World) -> None:
    _, child = await _pair(cluster, block=True)
    await cluster.kube.patch("ConfigMap", "child", {"metadata": {"finalizers": ["example.com/hold"]}}, "default")
    await cluster.kube.delete("ConfigMap", "owner", "default", propagation="Foreground")
    await cluster.object("ConfigMap", "child", "default", lambda obj: "deletionTimestamp" in meta(obj))
    owner = await cluster.kube.get("ConfigMap", "owner", "default")
    assert meta(owner)["finalizers"] == ["foregroundDeletion"]
    await cluster.kube.patch("ConfigMap", "child", {"metadata": {"finalizers": None}}, "default")
    await cluster.gone("ConfigMap", "owner", "default")
    assert await cluster.kube.find("ConfigMap", "child", "default") is None
    assert meta(child)["name"] == "child"


async def test_foreground_does_not_wait_for_others(cluster: World) -> None:
    await _pair(cluster)
    await cluster.kube.patch("ConfigMap", "child", {"metadata": {"finalizers": ["example.com/hold"]}}, "default")
    await cluster.kube.delete("ConfigMap", "owner", "default", propagation="Foreground")
    await cluster.gone("ConfigMap", "owner", "default")
    assert await cluster.kube.find("ConfigMap", "child", "default") is not None


async def test_orphan_leaves_the_dependents_free(cluster: World) -> None:
    await _pair(cluster)
    await cluster.kube.delete("ConfigMap", "owner", "default", propagation="Orphan")
    await cluster.gone("ConfigMap", "owner", "default")
    child = await cluster.object("ConfigMap", "child", "default", lambda obj: not meta(obj).get("ownerReferences"))
    assert "deletionTimestamp" not in meta(child)


async def test_an_owner_that_never_was(cluster: World) -> None:
    ghost = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ghost", "uid": "no-such-uid"}}
    await cluster.create(_owned_by(ghost, "child"))
    await cluster.gone("ConfigMap", "child", "default")


async def test_one_living_owner_is_enough(cluster: World) -> None:
    first = await cluster.create(builders.plain("ConfigMap", "first"))
    second = await cluster.create(builders.plain("ConfigMap", "second"))
    child = _owned_by(first, "child")
    child["metadata"]["ownerReferences"] += _owned_by(second, "child")["metadata"]["ownerReferences"]
    await cluster.create(child)
    await cluster.kube.delete("ConfigMap", "first", "default")
    left = await cluster.object("ConfigMap", "child", "default", lambda obj: len(meta(obj)["ownerReferences"]) == 1)
    assert meta(left)["ownerReferences"][0]["name"] == "second"


async def test_custom_objects_own_too(cluster: World) -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    await cluster.create(
        builders.plain(
            "CustomResourceDefinition",
            "widgets.example.com",
            None,
            "apiextensions.k8s.io/v1",
            spec={"group": "example.com", "scope": "Cluster", "names": names, "versions": [version]},
        )
    )
    cluster.kube.resources.by_kind["Widget"] = WIDGET
    widgets = cluster.informers(WIDGET)
    await cluster.until("CustomResourceDefinition", lambda informer: informer.items())
    widget = await _create_soon(cluster, builders.plain("Widget", "w", None, "example.com/v1"))
    await widgets.wait_until(lambda informer: informer.get("w"), 5)
    await cluster.create(_owned_by(widget, "child"))
    await cluster.kube.delete(WIDGET, "w", propagation="Background")
    await cluster.gone("ConfigMap", "child", "default")


async def _create_soon(cluster: World, obj: dict[str, Any]) -> dict[str, Any]:
    """Create an object of a kind that was defined a moment ago."""
    informer = cluster.informers("CustomResourceDefinition")
    await informer.wait_until(
        lambda each: any(
            condition["type"] == "Established" and condition["status"] == "True"
            for crd in each.items()
            for condition in (crd.get("status") or {}).get("conditions") or []
        ),
        5,
    )
    return await cluster.create(obj)
