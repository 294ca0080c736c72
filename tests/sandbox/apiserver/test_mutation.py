"""A mutating admission webhook (fault ``mutate-pods``), as image rewriters, meshes and agents install one.

Sources: kubernetes pkg/kubeapiserver/options/plugins.go; apiserver pkg/admission/plugin/webhook/mutating/dispatcher.go
and pkg/endpoints/handlers/create.go (managedFields are worked out before admission).
"""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.apiserver import Running
from sandbox.apiserver.admission.mutation import mirrored
from tests.sandbox.apiserver.builders import DEPLOYMENTS, PODS, deployment, pod
from tests.sandbox.apiserver.client import Api

REGISTRY = "123456789012.dkr.ecr.us-west-2.amazonaws.com"


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("nvidia/cuda:12", "docker.io/nvidia/cuda:12"),
        ("nvcr.io/nvidia/k8s-device-plugin:v0.20.0", "nvcr.io/nvidia/k8s-device-plugin:v0.20.0"),
        ("localhost:5000/x", "localhost:5000/x"),
        (f"{REGISTRY}/quay.io/x", "quay.io/x"),
    ],
)
def test_the_name_of_an_image_in_the_mirror(image: str, path: str) -> None:
    assert mirrored(image, REGISTRY) == f"{REGISTRY}/{path}"


@pytest.fixture
def mutate(cluster: Running) -> Any:
    def set_up(**params: Any) -> None:
        cluster.settings.faults.set("mutate-pods", params)

    return set_up


async def test_pods_are_rewritten_when_they_are_created(api: Api, mutate: Any) -> None:
    labels = {"injected": "yes"}
    mutate(
        registry=REGISTRY, env={"AGENT": "1"}, labels=labels, annotations=labels, sidecar="registry.k8s.io/pause:3.9"
    )
    found = (await api.post(PODS, pod("a", labels={"app": "x"}))).body
    main, agent = found["spec"]["containers"]
    assert main["image"] == f"{REGISTRY}/docker.io/library/busybox:1.36"
    assert main["env"] == [{"name": "AGENT", "value": "1"}]
    assert found["metadata"]["labels"] == {"app": "x", **labels}
    assert found["metadata"]["annotations"] == labels
    assert (agent["name"], agent["image"]) == ("agent", "registry.k8s.io/pause:3.9")
    assert agent["terminationMessagePolicy"] == "File", "what a webhook adds is defaulted, too"


async def test_nobody_owns_what_a_webhook_adds(api: Api, mutate: Any) -> None:
    mutate(labels={"injected": "yes"}, sidecar="registry.k8s.io/pause:3.9")
    found = (await api.post(f"{PODS}?fieldManager=me", pod("a", labels={"app": "x"}))).body
    (entry,) = found["metadata"]["managedFields"]
    assert entry["manager"] == "me"
    assert "f:injected" not in entry["fieldsV1"]["f:metadata"]["f:labels"]
    assert set(entry["fieldsV1"]["f:spec"]["f:containers"]) == {".", 'k:{"name":"main"}'}


async def test_dry_runs_pass_the_webhook(api: Api, mutate: Any) -> None:
    mutate(registry=REGISTRY, kinds=["Pod", "Deployment"])
    created = (await api.apply(f"{DEPLOYMENTS}/web", deployment("web"))).body
    image = f"{REGISTRY}/docker.io/library/nginx:1.27"
    assert created["spec"]["template"]["spec"]["containers"][0]["image"] == image
    dry = await api.apply(f"{DEPLOYMENTS}/web", deployment("web"), query="&dryRun=All&force=true")
    assert dry.body["spec"] == created["spec"]
    assert dry.body["metadata"]["generation"] == created["metadata"]["generation"]


async def test_a_webhook_for_pods_leaves_workloads_and_other_namespaces_alone(api: Api, mutate: Any) -> None:
    mutate(registry=REGISTRY, namespaces=["team-a"])
    assert (await api.post(PODS, pod("a"))).body["spec"]["containers"][0]["image"] == "busybox:1.36"
    mutate(registry=REGISTRY)
    created = (await api.post(DEPLOYMENTS, deployment("web"))).body
    assert created["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:1.27"
