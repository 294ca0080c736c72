"""The Python clients: their models accept what the server returns."""

from __future__ import annotations

import asyncio
from typing import Any

import kubernetes
import kubernetes_asyncio
import pytest
from kubernetes.dynamic import DynamicClient

from sandbox.apiserver import Running
from tests.sandbox.apiserver.builders import PODS, definition, deployment, pod
from tests.sandbox.apiserver.client import Api, define
from tests.sandbox.apiserver.schema.test_custom_resources import SCHEMA, widget


def _typed_and_dynamic(path: str) -> dict[str, Any]:
    client = kubernetes.config.new_client_from_config(path)
    try:
        core, apps = kubernetes.client.CoreV1Api(client), kubernetes.client.AppsV1Api(client)
        pods = core.list_namespaced_pod("default", label_selector="app=a").items
        daemon_sets = apps.list_namespaced_daemon_set("default").items
        dynamic = DynamicClient(client)
        widgets = dynamic.resources.get(api_version="example.com/v1", kind="Widget")
        widgets.create(body=widget("w", size=1), namespace="default")
        change = {"spec": {"size": 2}}
        with pytest.raises(kubernetes.client.exceptions.ApiException) as refused:
            widgets.patch(body=change, name="w", namespace="default")
        merged = widgets.patch(body=change, name="w", namespace="default", content_type="application/merge-patch+json")
        core.delete_namespaced_pod("p", "default")
        with pytest.raises(kubernetes.client.exceptions.ApiException) as gone:
            core.read_namespaced_pod("p", "default")
        return {
            "pods": [item.metadata.name for item in pods],
            "desired": daemon_sets[0].status.desired_number_scheduled,
            "version": kubernetes.client.VersionApi(client).get_code().minor,
            "refused": refused.value.status,
            "size": merged.spec.size,
            "gone": (gone.value.status, gone.value.reason),
        }
    finally:
        client.close()


async def test_the_synchronous_client(cluster: Running, api: Api) -> None:
    await api.post(PODS, pod("p", labels={"app": "a"}))
    daemon_set = {**deployment("d"), "kind": "DaemonSet"}
    await api.post("/apis/apps/v1/namespaces/default/daemonsets", daemon_set)
    await define(api, definition(SCHEMA))
    assert await asyncio.to_thread(_typed_and_dynamic, str(cluster.kubeconfig)) == {
        "pods": ["p"],
        "desired": 0,
        "version": "35",
        "refused": 415,
        "size": 2,
        "gone": (404, "Not Found"),
    }


async def _drain_old_watch(core: Any) -> None:
    arguments = {"resource_version": "1", "timeout_seconds": 5}
    async with kubernetes_asyncio.watch.Watch().stream(core.list_namespaced_pod, "default", **arguments) as events:
        async for _ in events:
            pass


async def test_the_asynchronous_client_watches(cluster: Running, api: Api) -> None:
    client = await kubernetes_asyncio.config.new_client_from_config(str(cluster.kubeconfig))
    async with client:
        core = kubernetes_asyncio.client.CoreV1Api(client)
        await core.create_namespaced_pod("default", pod("p"))
        version = (await core.list_namespaced_pod("default")).metadata.resource_version
        watch = kubernetes_asyncio.watch.Watch()
        seen = []
        await api.patch(f"{PODS}/p/status", {"status": {"phase": "Running"}})
        async with watch.stream(core.list_namespaced_pod, "default", resource_version=version) as events:
            async for event in events:
                seen.append((event["type"], event["object"].status.phase))
                break
        cluster.server.store.compact()
        with pytest.raises(kubernetes_asyncio.client.ApiException) as expired:
            await _drain_old_watch(core)
    assert seen == [("MODIFIED", "Running")]
    assert expired.value.status == 410
