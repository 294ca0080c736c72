"""Operators against nodes that run pods: the sandbox's API server, controllers and nodes in a thread of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from airflow.sdk import DAG

from gpu_fleet.core.kubernetes.kinds import NAMESPACE, NODE, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    DEVICE_PLUGIN_NAMESPACE,
    LABEL_NODE_POOL,
    VALIDATION_NAMESPACE,
)
from gpu_fleet.core.manifests.build import pool_labels
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.verdict import Verdict
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook, close_clients
from gpu_fleet.operators.validation import probes as validation
from gpu_fleet.operators.validation.probes import REPORT, SUMMARY, RunProbesOperator
from gpu_fleet.triggers.looking import look
from tests.e2e.validation_worker import TaskInstance
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, plugin_objects, simulated, slicing
from tests.unit.airflow_context import StateStore, spec_at
from tests.unit.sandboxed import background_loop, define_karpenter

Json = dict[str, Any]
POOL = "shared-a10g"
USERS_NAMESPACE = "default"
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
THROUGHPUT = Path(__file__).resolve().parents[3] / "include" / "probes" / "throughput.py"
PYTHON_IMAGE = "public.ecr.aws/docker/library/python:3.12-slim"


@dataclass
class NodesWorld:
    """One node of the shared pool, with the device plugin of the demo's spec.

    :ivar spec: the demo's, with short probes.
    :ivar gpus: physical ones of the node.
    """

    cluster: Cluster
    loop: asyncio.AbstractEventLoop
    access: ClusterAccess
    kube: KubeClient
    spec: Any
    node: str = ""
    gpus: int = 1
    probed: int = 0

    def wait(self, work: Coroutine[Any, Any, Any], patience: float = 90) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=patience)

    def mutate(self, **params: Any) -> None:
        """A mutating webhook for all pods, see ``sandbox.apiserver.admission.mutation``."""
        self.cluster.settings.faults.set("mutate-pods", params)

    def until(self, what: Callable[[], Any]) -> Any:
        async def look() -> Any:
            return await asyncio.to_thread(what)

        return self.wait(self.cluster.until(look))

    def probe(self, probe: Probe, **throughput: str) -> Json:
        """The report of one probe on the node, whatever came of it, and its exception as ``raised``.

        :param throughput: changes of the spec's ``validation.throughput``.
        """
        self.probed += 1
        value = self.spec.to_json()
        value["validation"]["throughput"] |= throughput
        ti = TaskInstance(f"run-{self.probed}", type(self.spec).model_validate(value))
        before = {
            "nodes": [self.node],
            "nodeClaims": [],
            "claims": {},
            "physical": self.gpus,
            "replicas": 4,
            "instances": {},
            "protected": [],
            "untested": [],
        }
        raised = ""
        with DAG("gpu_revalidate.demo"):
            task = RunProbesOperator(task_id=str(probe), node_pool=POOL, probe=str(probe))
            protect = _protect()
            protect >> task
        ti.task_id = protect.task_id
        ti.xcom_push("return_value", before)
        ti.task_id = task.task_id
        context = {"ti": ti, "params": {}, "task_state_store": StateStore(), "task": task, "dag": task.dag}
        try:
            with patch.object(validation, "await_gate", self._waited):
                task.execute(context)
        except Exception as error:  # noqa: BLE001 - the tests look at it
            raised = f"{type(error).__name__}: {error}"
        report = ti.xcom_pull(task.task_id, REPORT) or {"outcome": "none", "nodes": []}
        return {**report, "raised": raised, "summary": ti.xcom_pull(task.task_id, SUMMARY)}

    def _waited(self, _operator: Any, _context: Any, gate: str, args: Any, deadline_s: float, *_: Any) -> Verdict:
        """The operator's wait, in the worker from beginning to end; its deadline is simulated, as the pods' is."""
        began = time.time()
        while True:
            verdict = look(gate, args, self.access, started=began)
            if verdict.failed:
                raise verdict.error()
            if verdict.ready or time.time() - began > deadline_s / self.cluster.clock.speed:
                return verdict
            time.sleep(0.1)

    def users_pod(self, name: str, **changes: Any) -> None:
        """A pod of somebody's, Running."""
        env = changes.pop("env", [])
        pod = gpu_pod(name, **{"nodeName": self.node, **changes})
        pod["spec"]["containers"][0]["env"] = env
        self.kube.create(pod)
        self.until(lambda: self.pod(name)["status"].get("phase") == "Running")

    def pod(self, name: str, namespace: str = USERS_NAMESPACE) -> Json:
        found = self.kube.get(ObjectRef(POD, name, namespace))
        assert found is not None, name
        return found

    def remove(self, name: str) -> None:
        self.kube.delete(ObjectRef(POD, name, USERS_NAMESPACE), grace_seconds=0)
        self.until(lambda: self.kube.get(ObjectRef(POD, name, USERS_NAMESPACE)) is None)

    def gpu_processes(self) -> dict[str, int]:
        """GPU UUID -> processes that have a CUDA context on it now."""
        folders = self.cluster.settings.state_dir.glob("nodes/*/gpu-use/*")
        return {folder.name: sum(Path("/proc", each.name).exists() for each in folder.iterdir()) for folder in folders}


def _protect() -> Any:
    from gpu_fleet.operators.validation.nodes import ProtectNodesOperator

    return ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL)


def checks(report: Json) -> dict[str, Json]:
    """Name -> check, of the report's one node."""
    (node,) = report["nodes"]
    return {check["name"]: check for check in node["checks"]}


@contextmanager
def nodes_world(
    folder: Path, instance_type: str = "g5.xlarge", gpus: int = 1, speed: float = 40.0
) -> Iterator[NodesWorld]:
    with background_loop() as loop:
        manager = simulated(folder, "controllers", "nodes", speed=speed)
        cluster = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(60)
        try:
            path = str(folder / "admin.kubeconfig")
            access = ClusterAccess("kubeconfig", None, None, None, path=path)
            spec = _short(spec_at(path))
            world = NodesWorld(cluster, loop, access, KubernetesHook(access).client(), spec, gpus=gpus)
            _furnish(world, instance_type)
            yield world
        finally:
            close_clients()
            asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(60)


def _short(spec: Any) -> Any:
    """Simulated seconds, for one busy core to start four sharers in."""
    value = spec.to_json()
    value["validation"] |= {"overlap": "60s", "minimumDriver": None}
    value["validation"]["throughput"] = {**value["validation"]["throughput"], "duration": "40s"}
    return type(spec).model_validate(value)


def _furnish(world: NodesWorld, instance_type: str) -> None:
    kube, cluster = world.kube, world.cluster
    for name in (DEVICE_PLUGIN_NAMESPACE, VALIDATION_NAMESPACE):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        assert kube.get(ObjectRef(NAMESPACE, name))
    define_karpenter(kube)
    world.wait(cluster.runtime_class())
    entry = world.spec.pool(POOL).config_entry
    for item in plugin_objects({entry: slicing(4, failRequestsGreaterThanOne=True)}, entry):
        item["metadata"]["namespace"] = DEVICE_PLUGIN_NAMESPACE
        kube.apply(item)

    async def join() -> str:
        return await cluster.ready_node(
            await cluster.launch(instance_type),
            **{LABEL_NODE_POOL: POOL, **pool_labels(world.spec.pool(POOL))},
        )

    world.node = world.wait(join())
    kube.patch(ObjectRef(NODE, world.node), {"spec": {"taints": [GPU_TAINT]}})
    world.wait(cluster.allocatable(world.node, str(4 * world.gpus)))


def users_work(seconds: int) -> Json:
    """A pod's fields for work that computes on a GPU for so long, and reports how much it did in each window."""
    return {"image": PYTHON_IMAGE, "command": ["python3", "-c", THROUGHPUT.read_text(), str(seconds)]}
