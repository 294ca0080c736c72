"""An EC2 instance as a node, and pods on it: API server, controllers and nodes together."""

from __future__ import annotations

import json

import pytest

from sandbox.kube.times import now
from sandbox.nodes.pods.pod import PodWorker
from sandbox.nodes.pods.podstatus import ContainerState, PodFacts, status_of
from tests.sandbox.nodes.cluster import PROBE_IMAGE, VECTORADD_IMAGE, Cluster, gpu_pod, plugin_objects, slicing

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE_INFO = {
    "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
    "kubeProxyVersion", "operatingSystem", "architecture",
}  # fmt: skip


def _pod(name: str, node: str, image: str = PROBE_IMAGE, command: list[str] | None = None, **spec):
    return gpu_pod(name, 0, image, command, nodeName=node, **spec)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Nodes that an earlier test has made, by purpose: a node takes a second and is good for many tests."""
    return {}


async def _cpu_node(nodes: Cluster, made: dict[str, str]) -> str:
    if "cpu" not in made:
        made["cpu"] = await nodes.ready_node(await nodes.launch("m5.large"))
    return made["cpu"]


async def _gpu_node(nodes: Cluster, made: dict[str, str]) -> str:
    """A node with one A10G; its plugin has configurations for whole and for shared GPUs."""
    if "gpu" not in made:
        configs = {"exclusive": "version: v1\n", "four": slicing(4, failRequestsGreaterThanOne=True), "one": slicing(1)}
        await nodes.apply(*plugin_objects(configs, "exclusive"))
        made["instance"] = await nodes.launch("g5.xlarge")
        made["gpu"] = await nodes.ready_node(made["instance"], **{"nvidia.com__gpu.present": "true"})
    return made["gpu"]


async def test_the_system_node_group_is_there_from_the_start(nodes: Cluster):
    async def both():
        return len(await nodes.kube.list("Node", label_selector="eks.amazonaws.com/nodegroup=system")) == 2

    await nodes.until(both)


async def test_a_node_tells_everything_that_clients_require(nodes: Cluster, made):
    node = await nodes.kube.get("Node", await _cpu_node(nodes, made))
    assert set(node["status"]["nodeInfo"]) >= NODE_INFO
    assert node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.35.")
    kinds = {each["type"] for each in node["status"]["addresses"]}
    assert kinds == {"InternalIP", "InternalDNS", "Hostname"}
    labels = node["metadata"]["labels"]
    assert labels["kubernetes.io/hostname"] == node["metadata"]["name"]
    assert labels["node.kubernetes.io/instance-type"] == "m5.large"
    assert labels["topology.kubernetes.io/zone"].startswith("us-west-2")
    assert node["status"]["capacity"]["pods"] == "29"
    assert node["status"]["allocatable"]["cpu"] == "1930m"
    assert "nvidia.com/gpu" not in node["status"]["allocatable"]


async def test_a_node_renews_its_lease(nodes: Cluster, made):
    name = await _cpu_node(nodes, made)
    since = now(micro=True)

    async def renewed():
        lease = await nodes.kube.find("Lease", name, "kube-node-lease")
        return lease and lease["spec"]["renewTime"] > since

    await nodes.until(renewed)


async def test_a_probe_container_is_executed_and_its_message_and_log_are_kept(nodes: Cluster, made):
    name = await _cpu_node(nodes, made)
    script = "echo hello; printf '{\"ok\": true}' > /dev/termination-log; exit 3"
    await nodes.apply(_pod("script", name, command=["sh", "-c", script]))
    pod = await nodes.pod_phase("script", "Failed")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert json.loads(ended["message"]) == {"ok": True}
    log = await nodes.kube.raw("GET", "/api/v1/namespaces/default/pods/script/log")
    assert log == "hello\n"


async def test_the_end_of_the_log_is_the_message_where_the_pod_wants_so(nodes: Cluster, made):
    pod = _pod("fallback", await _cpu_node(nodes, made), command=["sh", "-c", "echo broken; exit 1"])
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError"
    await nodes.apply(pod)
    found = await nodes.pod_phase("fallback", "Failed")
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "broken\n"


async def test_environment_and_files_come_from_the_cluster(nodes: Cluster, made):
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "text", "namespace": "default"}}
    pod = _pod("reads", await _cpu_node(nodes, made), command=["sh", "-c", "echo $WHO $KEY; cat /etc/text/key"])
    container = pod["spec"]["containers"][0]
    container["env"] = [
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "text", "key": "key"}}},
    ]
    container["volumeMounts"] = [{"name": "text", "mountPath": "/etc/text"}]
    pod["spec"]["volumes"] = [{"name": "text", "configMap": {"name": "text"}}]
    await nodes.apply(pod)
    text = 'MountVolume.SetUp failed for volume "text" : configmap "text" not found'
    assert await nodes.event("reads", "FailedMount") == text
    await nodes.apply(config | {"data": {"key": "value"}})
    await nodes.pod_phase("reads", "Succeeded")
    assert await nodes.kube.raw("GET", "/api/v1/namespaces/default/pods/reads/log") == "reads value\nvalue"


async def test_a_deleted_pod_is_stopped_and_removed(nodes: Cluster, made):
    await nodes.apply(_pod("deleted", await _cpu_node(nodes, made), "registry.k8s.io/pause:3.10"))
    await nodes.pod_phase("deleted", "Running")
    await nodes.kube.delete("Pod", "deleted", "default")
    await nodes.gone("Pod", "deleted", "default")
    assert "Stopping container main" in await nodes.events("deleted", "Killing")


async def test_an_image_that_cannot_be_pulled(nodes: Cluster, made):
    image = "nvcr.io/nvidia/k8s-device-plugin:v0.99.0"
    await nodes.apply(_pod("unpullable", await _cpu_node(nodes, made), image))

    async def waiting():
        pod = await nodes.pod("unpullable")
        state = ((pod["status"].get("containerStatuses") or [{}])[0].get("state") or {}).get("waiting") or {}
        return state if state.get("reason") == "ImagePullBackOff" else None

    state = await nodes.until(waiting, lambda: nodes.pod("unpullable"))
    assert state["message"].startswith(f'Back-off pulling image "{image}": ErrImagePull: rpc error')
    assert any(each.startswith(f'Failed to pull image "{image}"') for each in await nodes.events("unpullable"))
    await nodes.kube.delete("Pod", "unpullable", "default", grace_seconds=0)


async def test_a_container_that_fails_again_and_again(nodes: Cluster, made):
    name = await _cpu_node(nodes, made)
    await nodes.apply(_pod("crash", name, "busybox:1.36", ["false"], restartPolicy="Always"))

    async def backing_off():
        pod = await nodes.pod("crash")
        status = (pod["status"].get("containerStatuses") or [{}])[0]
        waits = (status.get("state") or {}).get("waiting") or {}
        return status if waits.get("reason") == "CrashLoopBackOff" and status["restartCount"] >= 2 else None

    status = await nodes.until(backing_off, lambda: nodes.pod("crash"))
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert "restarting failed container=main pod=crash_default" in status["state"]["waiting"]["message"]
    await nodes.kube.delete("Pod", "crash", "default")
    await nodes.gone("Pod", "crash", "default")


async def test_a_failed_init_container_fails_a_pod_that_is_not_restarted(nodes: Cluster, made):
    init = {"name": "first", "image": "busybox:1.36", "command": ["false"]}
    await nodes.apply(_pod("init", await _cpu_node(nodes, made), initContainers=[init]))
    pod = await nodes.pod_phase("init", "Failed")
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert "waiting" in pod["status"]["containerStatuses"][0]["state"]


async def test_a_pod_past_its_deadline_fails(nodes: Cluster, made):
    await nodes.apply(_pod("late", await _cpu_node(nodes, made), activeDeadlineSeconds=20))
    pod = await nodes.pod_phase("late", "Failed")
    assert pod["status"]["reason"] == "DeadlineExceeded"


@pytest.mark.parametrize("over", [False, True])
async def test_a_pod_past_its_deadline_has_its_reason_before_it_is_failed(over):
    """Else a client that looks in between sees a failed pod without a cause."""
    ended = ContainerState("main", "busybox", state={"terminated": {"exitCode": 137}}, done=True, ever_started=True)
    verdict = ("Failed", "DeadlineExceeded", "too long")
    facts = PodFacts([], [], [ended], "10.0.0.1", "10.0.0.2", "now", True, verdict, stopping=not over)
    status = status_of({"metadata": {}, "spec": {}}, facts, "now")
    assert (status["phase"], status["reason"]) == ("Failed" if over else "Running", "DeadlineExceeded")


async def test_the_verdict_of_a_deadline_is_known_before_the_containers_end(nodes: Cluster, made, monkeypatch):
    """Writing the status as the container ends must already show the reason."""
    seen = []
    stop_all = PodWorker._stop_all

    async def stop(self, grace, **options):
        await stop_all(self, grace, **options)
        if self.name == "late-too" and not options:
            seen.append(status_of(self.pod, self._facts(), now()))

    monkeypatch.setattr(PodWorker, "_stop_all", stop)
    await nodes.apply(_pod("late-too", await _cpu_node(nodes, made), activeDeadlineSeconds=20))
    await nodes.pod_phase("late-too", "Failed")
    assert [(status["phase"], status["reason"]) for status in seen] == [("Running", "DeadlineExceeded")]


async def test_a_node_without_gpus_has_no_runtime_handler_for_them(nodes: Cluster, made):
    await nodes.apply(_pod("handler", await _cpu_node(nodes, made), runtimeClassName="nvidia"))
    text = await nodes.event("handler", "FailedCreatePodSandBox")
    assert text.endswith('failed to get sandbox runtime: no runtime for "nvidia" is configured')
    assert (await nodes.pod("handler"))["status"]["phase"] == "Pending"
    await nodes.kube.delete("Pod", "handler", "default", grace_seconds=0)


# --- GPUs ---


async def test_whole_gpus_by_default(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "1")
    await nodes.apply(
        gpu_pod("smi", command=["sh", "-c", "nvidia-smi -L; echo $NVIDIA_VISIBLE_DEVICES"], nodeName=name)
    )
    await nodes.pod_phase("smi", "Succeeded")
    line, visible = (await nodes.kube.raw("GET", "/api/v1/namespaces/default/pods/smi/log")).splitlines()
    assert line == f"GPU 0: NVIDIA A10G (UUID: {visible})"


async def test_a_new_label_reregisters_the_plugin_through_zero(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "1")
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/device-plugin.config": "four"}}})
    await nodes.allocatable(name, "0")
    await nodes.apply(gpu_pod("between", nodeName=name))
    between = await nodes.pod_phase("between", "Failed")
    assert between["status"]["reason"] == "UnexpectedAdmissionError"
    assert "no healthy devices present" in between["status"]["message"]
    await nodes.allocatable(name, "4")


async def test_sharers_run_at_once_on_one_gpu(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "4")
    script = "nvidia-smi --query-gpu=uuid --format=csv,noheader > /dev/termination-log; sleep 200"
    sharers = [f"sharer-{number}" for number in range(4)]
    await nodes.apply(*(gpu_pod(each, command=["sh", "-c", script], nodeName=name) for each in sharers))
    for each in sharers:
        await nodes.pod_phase(each, "Running")
    await nodes.apply(gpu_pod("fifth", nodeName=name))
    fifth = await nodes.pod_phase("fifth", "Failed")
    assert "Requested: 1, Available: 0" in fifth["status"]["message"]
    messages = set()
    for each in sharers:
        pod = await nodes.pod_phase(each, "Succeeded")
        messages.add(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    assert len(messages) == 1


async def test_a_request_for_two_shared_gpus_is_refused(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "4")
    await nodes.apply(gpu_pod("two", 2, nodeName=name))
    pod = await nodes.pod_phase("two", "Failed")
    assert pod["status"]["reason"] == "UnexpectedAdmissionError"
    assert "maximum request size for shared resources is 1; found 2" in pod["status"]["message"]


async def test_vector_add_passes(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "4")
    await nodes.apply(gpu_pod("vectoradd", image=VECTORADD_IMAGE, command=["/cuda-samples/vectorAdd"], nodeName=name))
    await nodes.pod_phase("vectoradd", "Succeeded")
    assert "Test PASSED" in await nodes.kube.raw("GET", "/api/v1/namespaces/default/pods/vectoradd/log")


async def test_one_replica_is_refused_by_the_plugin_on_the_node(nodes: Cluster, made):
    """The plugin gets its bad entry at a SIGHUP, dies of it, and its log says why."""
    name = await _gpu_node(nodes, made)
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/device-plugin.config": "one"}}})
    await nodes.allocatable(name, "0")
    pods = await nodes.kube.list("Pod", "kube-system", field_selector=f"spec.nodeName={name}")
    plugin = next(each["metadata"]["name"] for each in pods if each["metadata"]["name"].startswith("nvidia"))

    async def crashing():
        pod = await nodes.pod(plugin, "kube-system")
        found = next(
            (each for each in pod["status"]["containerStatuses"] if each["name"] == "nvidia-device-plugin-ctr"), {}
        )
        return found.get("restartCount", 0) >= 1

    await nodes.until(crashing, lambda: nodes.pod(plugin, "kube-system"))
    path = f"/api/v1/namespaces/kube-system/pods/{plugin}/log"
    log = await nodes.kube.raw("GET", path, query={"container": "nvidia-device-plugin-ctr"})
    assert "number of replicas must be >= 2" in log
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/device-plugin.config": "four"}}})
    await nodes.allocatable(name, "4")


async def test_without_its_plugin_a_node_has_nothing_to_allocate(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.allocatable(name, "4")
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/gpu.present": None}}})
    node = await nodes.allocatable(name, "0")
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"
    await nodes.kube.patch("Node", name, {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}})
    await nodes.allocatable(name, "4")


async def test_a_terminated_instance_takes_its_node_along(nodes: Cluster, made):
    name = await _gpu_node(nodes, made)
    await nodes.terminate(made["instance"])
    await nodes.gone("Node", name)
