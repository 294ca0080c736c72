"""``devicePlugin.manage: false`` on simulated nodes: NVIDIA's static DaemonSet, or somebody's chart release, is the
plugin; and what our own plugin meets when another one comes to its node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import GateRefused, NeighbourConflict
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, DAEMON_SET, NODE, RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.preflight.neighbours import CheckNeighboursOperator
from gpu_fleet.operators.validation.fitness import unfit_nodes
from tests.sandbox.nodes.cluster import plugin_objects, slicing
from tests.sandbox.nodes.static_plugin import static_plugin
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.sandboxed import SandboxCloud, only_connections, sandbox_cloud

pytestmark = pytest.mark.slow

ACCESS = ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")
POOL, GPU = "shared-a10g", "nvidia.com/gpu"
CHART = "nvidia-device-plugin"
THEIRS = {"manage": False}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("sandbox"), "controllers", "nodes") as cloud:
        yield cloud


@pytest.fixture
def kube(shared: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeClient]:
    only_connections(monkeypatch, aws_demo=shared.connection)
    client = KubernetesHook(ACCESS).client()
    client.apply(
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    )
    yield client
    for plugin in client.list(DAEMON_SET, "kube-system"):
        client.delete(ObjectRef(DAEMON_SET, plugin["metadata"]["name"], "kube-system"))
    client.delete(ObjectRef(CONFIG_MAP, "plugin-configs", "kube-system"))
    client.delete(ObjectRef(RUNTIME_CLASS, "nvidia"))
    kubernetes_access.forget(ACCESS)


@pytest.fixture
def node(shared: SandboxCloud, kube: KubeClient) -> Iterator[Callable[[str], str]]:
    """A node as Karpenter would have made it for the pool, with that config label; its name."""
    made: list[str] = []

    def make(config: str) -> str:
        labels = {
            "karpenter.sh/nodepool": POOL,
            "karpenter.sh/initialized": "true",
            "gpu-fleet.io/device-plugin": "true",
            "nvidia.com/device-plugin.config": config,
        }
        instance = shared.add_node("g5.xlarge", f"stands-in-{len(made)}", labels, ["nvidia.com/gpu=true:NoSchedule"])
        found = until(lambda: [n for n in kube.list(NODE) if n["spec"].get("providerID", "").endswith(instance)])
        made.append(found[0]["metadata"]["name"])
        return made[-1]

    yield make
    for name in made:
        kube.patch(ObjectRef(NODE, name), {"metadata": {"labels": {"karpenter.sh/nodepool": None}}})


def until(look: Callable[[], Any], patience: float = 30.0) -> Any:
    deadline = time.monotonic() + patience
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError("not reached")
        time.sleep(0.1)
    return found


def offers(kube: KubeClient, name: str, count: int) -> Callable[[], bool]:
    def look() -> bool:
        found = kube.get(ObjectRef(NODE, name)) or {}
        conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
        return conditions["Ready"] == "True" and found["status"]["allocatable"].get(GPU) == str(count)

    return look


def spec_with(plugin: dict[str, Any], sharing: dict[str, Any]) -> ClusterSpec:
    value = load_cluster("demo").to_json()
    pool = {**value["nodePools"][0], "wantedNodes": 1, "sharing": sharing}
    return parse_cluster({**value, "nodePools": [pool], "devicePlugin": {**value["devicePlugin"], **plugin}})


def neighbours(spec: ClusterSpec) -> None:
    CheckNeighboursOperator(task_id="check_neighbours").execute(context(TaskInstance(spec=spec)))


def capacity(spec: ClusterSpec) -> dict[str, Any]:
    operator = AwaitCapacityOperator(task_id="await_capacity", node_pool=POOL)
    found: dict[str, Any] = operator.execute(context(TaskInstance(spec=spec)))
    return found


def unfit(spec: ClusterSpec, probe: Probe, name: str, replicas: int) -> list[str]:
    operator = AwaitCapacityOperator(task_id="await_capacity", node_pool=POOL)
    operator.prepare(context(TaskInstance(spec=spec)))
    reports = unfit_nodes(operator, probe, [name], physical=1, replicas=replicas)
    return [report.cause.reason for report in reports.values() if report.cause is not None]


def test_nvidias_static_daemon_set_serves_an_exclusive_pool(kube: KubeClient, node: Callable[[str], str]) -> None:
    spec = spec_with(THEIRS, {"mode": "exclusive"})
    kube.apply(static_plugin())
    neighbours(spec)
    name = node("exclusive")
    until(offers(kube, name, 1))
    assert capacity(spec)["allocatable"] == {name: 1}
    assert unfit(spec, Probe.EXCLUSIVE, name, 1) == []


def test_somebodys_chart_release_shares_a_pool_and_its_config_is_checked_not_written(
    kube: KubeClient, node: Callable[[str], str]
) -> None:
    spec = spec_with(THEIRS, {"mode": "timeSlicing", "replicas": 4})
    config_map, daemon_set = plugin_objects({"exclusive": "version: v1\n", "time-slicing-4": slicing(4)}, "exclusive")
    for item in (config_map, daemon_set):
        kube.apply(item)
    with pytest.raises(NeighbourConflict, match="says time-slicing, 4 per GPU, requests for several allowed"):
        neighbours(spec)
    config_map["data"]["time-slicing-4"] = slicing(4, failRequestsGreaterThanOne=True)
    version = kube.apply(config_map)["metadata"]["resourceVersion"]
    neighbours(spec)
    name = node("time-slicing-4")
    until(offers(kube, name, 4))
    assert capacity(spec)["allocatable"] == {name: 4}
    assert unfit(spec, Probe.SHARING, name, 4) == []
    found = kube.get(ObjectRef(CONFIG_MAP, "plugin-configs", "kube-system"))
    assert found is not None
    assert found["metadata"]["resourceVersion"] == version
    # The pool's promise is what counts, not what their plugin happens to do.
    assert unfit(spec, Probe.SHARING, name, 8) == ["AllocatableMismatch"]


def test_a_plugin_that_comes_to_our_node_later_is_named_and_our_config_map_is_not(
    kube: KubeClient, node: Callable[[str], str]
) -> None:
    """Our release's DaemonSet, as the chart makes it; then NVIDIA's static one."""
    spec = spec_with({"namespace": "kube-system"}, {"mode": "timeSlicing", "replicas": 4})
    configs = {"exclusive": "version: v1\n", "time-slicing-4": slicing(4, failRequestsGreaterThanOne=True)}
    config_map, daemon_set = plugin_objects(configs, "exclusive")
    release = {"meta.helm.sh/release-name": CHART, "meta.helm.sh/release-namespace": "kube-system"}
    daemon_set["metadata"]["annotations"] = release
    for item in (config_map, daemon_set):
        kube.apply(item)
    name = node("time-slicing-4")
    until(offers(kube, name, 4))
    assert capacity(spec)["allocatable"] == {name: 4}
    assert unfit(spec, Probe.SHARING, name, 4) == []

    kube.apply(static_plugin())
    until(offers(kube, name, 1))
    assert unfit(spec, Probe.SHARING, name, 4) == ["SecondDevicePlugin"]
    with pytest.raises(GateRefused) as caught:
        capacity(spec)
    assert caught.value.reason == "SecondDevicePlugin"
    assert "pod kube-system/nvidia-device-plugin-daemonset-" in caught.value.message
    assert "ConfigMap" not in caught.value.message
