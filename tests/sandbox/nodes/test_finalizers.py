"""A finalizer keeps the object of a deleted pod; its containers end, and its kubelet says so."""

from __future__ import annotations

import pytest

from tests.sandbox.nodes.cluster import Cluster
from tests.sandbox.nodes.test_claims import pod, pod_spec

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_finalizer_keeps_a_deleted_pod_whose_containers_have_ended(nodes: Cluster) -> None:
    node = await nodes.ready_node(await nodes.launch())
    held = pod("held", node, {**pod_spec("x"), "volumes": [], "terminationGracePeriodSeconds": 5})
    held["metadata"]["finalizers"] = ["example.com/never"]
    held["spec"]["containers"] = [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]
    await nodes.apply(held)
    await nodes.pod_phase("held", "Running")
    await nodes.kube.delete("Pod", "held", "default")

    async def ended() -> bool:
        found = await nodes.pod("held")
        assert found is not None, "the finalizer was ignored"
        return all("terminated" in each["state"] for each in found["status"]["containerStatuses"])

    await nodes.until(ended, lambda: nodes.kube.list("Pod", "default"))
