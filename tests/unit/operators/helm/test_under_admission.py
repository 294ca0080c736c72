"""A mutating webhook changes every pod (Kyverno, a mesh, Datadog): proof and probes on nodes that run pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_fleet.core.kubernetes.injected import INJECTED
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_NAMESPACE
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.triggers.looking import look
from tests.unit.operators.nodes_world import POOL, NodesWorld, checks, nodes_world

pytestmark = pytest.mark.slow

REGISTRY = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
PLUGIN = "nvidia-device-plugin"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodesWorld]:
    with nodes_world(tmp_path_factory.mktemp("admission")) as world:
        yield world


@pytest.fixture
def world(shared: NodesWorld) -> Iterator[NodesWorld]:
    shared.mutate(
        registry=REGISTRY,
        env={"DD_AGENT_HOST": "10.0.0.1", "AWS_REGION": "us-west-2"},
        labels={"security.istio.io/tlsMode": "istio"},
        annotations={"kyverno.io/patched": "yes"},
        sidecar="registry.k8s.io/pause:3.9",
    )
    yield shared
    shared.cluster.settings.faults.clear()


def proof(world: NodesWorld) -> Verdict:
    args = {
        "release": PLUGIN,
        "namespace": DEVICE_PLUGIN_NAMESPACE,
        "workloads": [f"DaemonSet/{DEVICE_PLUGIN_NAMESPACE}/{PLUGIN}"],
        "pools": {POOL: {"physical": 1, "replicas": 4}},
    }
    return look("device_plugin_proven", args, world.access)


def plugin_pods(world: NodesWorld) -> list[dict[str, object]]:
    return world.kube.list(POD, DEVICE_PLUGIN_NAMESPACE)


def restart_plugin(world: NodesWorld, **annotations: str) -> None:
    """A new revision of the DaemonSet, rolled out."""
    body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    world.kube.patch(ObjectRef(DAEMON_SET, PLUGIN, DEVICE_PLUGIN_NAMESPACE), body)

    def replaced() -> bool:
        (pod,) = plugin_pods(world) or [{}]
        found = (pod.get("metadata") or {}).get("annotations") or {}  # type: ignore[attr-defined]
        return all(found.get(key) == value for key, value in annotations.items())

    world.until(replaced)
    world.wait(world.cluster.allocatable(world.node, "0"))
    world.wait(world.cluster.allocatable(world.node, "4"))


def test_a_healthy_plugin_is_proven_although_its_pods_were_rewritten(world: NodesWorld) -> None:
    restart_plugin(world, revision="one")
    (pod,) = plugin_pods(world)
    images = {container["image"] for container in pod["spec"]["containers"]}  # type: ignore[index]
    assert all(image.startswith(REGISTRY) or "pause" in image for image in images), images
    verdict = world.until(lambda: (found := proof(world)).ready and found)
    assert (verdict.reason, world.node in verdict.message) == ("PluginProven", True)


def test_sharing_is_proven_with_a_sidecar_that_never_ends(world: NodesWorld) -> None:
    """The probe's own container tells, by its name; the kubelet lists ``agent`` before ``probe``."""
    report = world.probe(Probe.SHARING)
    assert (report["outcome"], report["raised"]) == ("Passed", ""), report
    found = checks(report)
    assert found["concurrency"]["figures"]["containers"] == 4
    assert (found["bound"]["outcome"], found["refusal"]["outcome"]) == ("Passed", "Passed")


def test_throughput_is_measured_with_a_sidecar_that_never_ends(world: NodesWorld) -> None:
    report = world.probe(Probe.THROUGHPUT)
    assert (report["outcome"], report["raised"]) == ("Passed", ""), report


def test_a_sidecar_that_never_starts_is_named_and_neither_the_plugin_nor_the_node_is_blamed(world: NodesWorld) -> None:
    world.mutate(sidecar="registry.example.invalid/agent:1", namespaces=[DEVICE_PLUGIN_NAMESPACE])
    restart_plugin(world, revision="two")
    verdict = world.until(lambda: (found := proof(world)).failed and found)
    assert verdict.reason == INJECTED
    (pod,) = plugin_pods(world)
    name = pod["metadata"]["name"]  # type: ignore[index]
    assert f"container agent of pod {DEVICE_PLUGIN_NAMESPACE}/{name}" in verdict.message
    assert "ImagePullBackOff" in verdict.message
    report = world.probe(Probe.SHARING)
    assert [check["reason"] for check in report["nodes"][0]["checks"] if check["outcome"] == "Failed"] == [INJECTED]
    assert INJECTED not in NODE_CAUSES
