"""A teardown's tasks up to its drains, on the sandbox's AWS and API server.

Nothing plays controllers, kubelet or Karpenter: what they would do is a test's own line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, PERSISTENT_VOLUME, POD, POD_DISRUPTION_BUDGET, ObjectRef
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.teardown.drain_pools import DrainPoolOperator
from gpu_fleet.operators.teardown.freeze import FreezePoolsOperator, UndoFreezeOperator
from gpu_fleet.operators.teardown.plan import PlanTeardownOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import define_karpenter, sandbox_cloud

POOL, OTHER = "shared-a10g", "whole-a100"
RUN = "gpu_lifecycle.demo/manual__1"
AIRFLOW = {"dag_id": "train_on_request", "task_id": "train", "run_id": "manual__7", "kubernetes_pod_operator": "True"}


@contextmanager
def teardown_world(folder: Path) -> Iterator[KubeClient]:
    """A cluster with Karpenter's CRDs, and its AWS account."""
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(folder) as cloud:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", cloud.connection)
        client = KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()
        define_karpenter(client)
        yield client


@contextmanager
def furnished(world: KubeClient) -> Iterator[KubeClient]:
    """The cluster with both pools, a node in each, and Karpenter; afterwards empty."""
    for name in (POOL, OTHER):
        world.apply(build("node_pool", demo_spec(), pool=name)[0])
        node(world, f"node-{name}", {"karpenter.sh/nodepool": name})
    running(world, "karpenter-0", namespace="kube-system", labels={"app.kubernetes.io/name": "karpenter"})
    yield world
    for kind in (NODE_POOL, NODE, PERSISTENT_VOLUME):
        for item in world.list(kind):
            world.delete(ObjectRef(kind, item["metadata"]["name"]))
    for kind in (POD, POD_DISRUPTION_BUDGET):
        for item in world.list(kind):
            world.delete(ObjectRef(kind, item["metadata"]["name"], item["metadata"]["namespace"]), grace_seconds=0)


def node(kube: KubeClient, name: str, labels: dict[str, str]) -> None:
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})


def running(kube: KubeClient, name: str, *, on: str = "", owner: str = "", namespace: str = "default",
            ready: bool = True, **metadata: Any) -> None:  # fmt: skip
    """A pod that runs."""
    if owner:
        reference = {"apiVersion": "apps/v1", "kind": owner, "name": "web", "uid": "u-web", "controller": True}
        metadata["ownerReferences"] = [reference]
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "x"}]}
    if on:
        spec["nodeName"] = on
    head = {"name": name, "namespace": namespace, **metadata}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec})
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    kube.patch(ObjectRef(POD, name, namespace), {"status": status}, subresource="status")


def budget(kube: KubeClient, allowed: int = 0, name: str = "web", selector: str = "web") -> None:
    """A budget that its controller has looked at."""
    body = {"minAvailable": 1, "selector": {"matchLabels": {"app": selector}}}
    metadata = {"name": name, "namespace": "default"}
    kube.create({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": body})
    status = {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
              "expectedPods": 1}  # fmt: skip
    kube.patch(ObjectRef(POD_DISRUPTION_BUDGET, name, "default"), {"status": status}, subresource="status")


class Teardown:
    """The tasks of one run, in the order in which the DAG starts them."""

    def __init__(self, spec: ClusterSpec | None = None, **params: Any) -> None:
        self.ti = TaskInstance(spec=spec or demo_spec())
        self.contexts: dict[str, dict[str, Any]] = {}
        self.params = params
        self.states = self.ti.task_states

    def run(self, name: str, operator: Any) -> Any:
        """Run a task, and note its state; deferred tasks give None."""
        here = self._context(name)
        try:
            result = operator.execute(here)
        except TaskDeferred:
            return None
        except Exception:
            self.states[name] = "failed"
            raise
        self.states[name] = "success"
        return result

    def _context(self, name: str) -> dict[str, Any]:
        return self.contexts.setdefault(name, context(self.ti, **self.params))

    def state_of(self, name: str) -> Any:
        """What a task keeps over its tries."""
        return self._context(name)["task_state_store"]

    def plan(self, **more: Any) -> dict[str, Any]:
        return self.run("plan", PlanTeardownOperator(task_id="plan", **more))  # type: ignore[no-any-return]

    def freeze(self) -> Any:
        return self.run("freeze", FreezePoolsOperator(task_id="freeze"))

    def drain(self, pool: str) -> Any:
        return self.run(f"drain_{pool}", DrainPoolOperator(task_id=f"drain_{pool}", node_pool=pool))

    def time_is_up(self, pool: str) -> Any:
        """The drain's next look, after its time."""
        self.contexts[f"drain_{pool}"]["task_state_store"]["wait"]["started"] -= 3600
        return self.drain(pool)

    def undo(self) -> dict[str, Any]:
        drains = [f"drain_{POOL}", f"drain_{OTHER}"]
        operator = UndoFreezeOperator(task_id="undo", turn="turn", freeze="freeze", drains=drains)
        return self.run("undo", operator)  # type: ignore[no-any-return]


def frozen_pools(kube: KubeClient) -> list[str]:
    return [pool["metadata"]["name"] for pool in kube.list(NODE_POOL) if pool["spec"]["limits"]["nodes"] == "0"]


def cordoned(kube: KubeClient) -> list[str]:
    return [each["metadata"]["name"] for each in kube.list(NODE) if (each.get("spec") or {}).get("unschedulable")]
