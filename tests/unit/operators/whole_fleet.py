"""The lifecycle's operators, one after the other, with a real helm against the whole sandbox in this process.

No Airflow, and no time for it to cost: what a triggerer would wait for is waited for here.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, NODE, POD, ObjectRef
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.helm.releases import InstallReleaseOperator, ProveReleaseOperator
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodeClassOperator, ApplyNodePoolOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import ReleasePlaceholdersOperator
from gpu_fleet.triggers.looking import look
from sandbox.audit import FILE, AuditLog
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import StateStore, TaskInstance, context
from tests.unit.core.specs import demo_mapping
from tests.unit.sandboxed import whole_sandbox

GPU, ENTRY, POOL_LABEL = "nvidia.com/gpu", "nvidia.com/device-plugin.config", "karpenter.sh/nodepool"
POOL, PLUGIN = "shared-a10g", "nvidia-device-plugin"
FOUR, EIGHT = ({"mode": "timeSlicing", "replicas": n} for n in (4, 8))
#: Drift itself kills nothing here: that is another story, and what the tests are about must not depend on it.
QUIET = {
    "consolidateAfter": "24h",
    "budgets": [{"nodes": "0", "reasons": ["Drifted"]}, {"nodes": "10%"}],
}


def pool_of(name: str, sharing: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "instanceTypes": ["g5.xlarge"],
        "capacityTypes": ["on-demand"],
        "wantedNodes": 1,
        "limits": {"nodes": 4},
        "sharing": sharing,
        "disruption": QUIET,
        "terminationGracePeriod": None,
        **more,
    }


def fleet(*pools: dict[str, Any], **changes: Any) -> ClusterSpec:
    value = demo_mapping(**changes)
    value["nodePools"] = copy.deepcopy(list(pools))
    value["deadlines"] = {"capacity": "2m", "prove": "30s"}
    return parse_cluster(value)


@contextmanager
def whole_fleet(folder: Path) -> Iterator[KubeClient]:
    """The sandbox, and a client of its cluster; what is written to it is in the audit log, see :func:`audited`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELM_BIN", helm_binary())
        patch.setenv("GPU_FLEET_CHART_CACHE", str(folder / "charts"))
        with whole_sandbox(folder / "sandbox", audit=AuditLog(folder)) as environment:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield KubernetesHook(ClusterAccess.from_spec(fleet(pool_of(POOL, FOUR)))).client()


def audited(folder: Path) -> list[dict[str, Any]]:
    """The audit log of the fleet in that folder, from its beginning."""
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def until(what: str, there: Callable[[], Any], patience: float = 60.0) -> Any:
    end = time.monotonic() + patience
    while not (found := there()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience:.0f} s in vain for: {what}")
        time.sleep(0.1)
    return found


# --- the lifecycle's tasks -------------------------------------------------------------------------------------------
def run(
    operator: Any, spec: ClusterSpec, ti: TaskInstance | None = None, store: StateStore | None = None, **params: Any
) -> Any:
    """A task to its end, with the triggerer's part of it done here.

    :param store: what the task keeps over its tries.
    :param params: of the run.
    """
    ti = ti or TaskInstance(spec=spec)
    ti.task_id, ti.map_index = operator.task_id, -1  # type: ignore[attr-defined]
    where = context(ti, **params) | ({} if store is None else {"task_state_store": store})
    work = lambda: operator.execute(where)  # noqa: E731 - the next step of the task
    while True:
        try:
            return work()
        except TaskDeferred as deferred:
            event = seen(spec, deferred.trigger.serialize()[1])
            method, kwargs = getattr(operator, deferred.method_name), deferred.kwargs or {}
            work = lambda method=method, event=event, kwargs=kwargs: method(where, event=event, **kwargs)  # noqa: E731


def seen(spec: ClusterSpec, waits: dict[str, Any]) -> dict[str, Any]:
    """The event of a gate's trigger; its deadline is two minutes."""
    began = time.time()
    while True:
        verdict = look(waits["gate"], waits["args"], ClusterAccess.from_spec(spec), started=began)
        if verdict.ready or verdict.failed or time.time() - began > 120:
            kind = "verdict" if verdict.ready or verdict.failed else "deadline"
            return {"type": kind, "gate": waits["gate"], "verdict": verdict.to_json()}
        time.sleep(0.2)


def provide(kube: KubeClient, spec: ClusterSpec) -> dict[str, Any]:
    """Everything of a lifecycle before capacity, in its order."""
    for component in ("karpenter-crd", "karpenter"):
        run(InstallReleaseOperator(task_id="install", component=component), spec)
        run(ProveReleaseOperator(task_id="prove", component=component), spec)
    run(ApplyManifestsOperator(task_id="apply", builder="runtime_class"), spec)
    installed: dict[str, Any] = run(InstallReleaseOperator(task_id="install", component="device-plugin"), spec)
    for pool in spec.node_pools:
        run(ApplyNodeClassOperator(task_id="apply_class", node_pool=pool.name), spec)
        run(ApplyNodePoolOperator(task_id="apply_pool", node_pool=pool.name), spec)
    return installed


def ask(spec: ClusterSpec, pool: str = POOL) -> tuple[dict[str, Any], dict[str, Any]]:
    """Capacity, asked for and waited for."""
    asked = run(RequestCapacityOperator(task_id="request", node_pool=pool), spec)
    try:
        return asked, run(AwaitCapacityOperator(task_id="await", node_pool=pool), spec)
    finally:
        run(ReleasePlaceholdersOperator(task_id="release", node_pool=pool), spec)


def lifecycle(kube: KubeClient, spec: ClusterSpec) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    provide(kube, spec)
    found = {pool.name: ask(spec, pool.name) for pool in spec.node_pools}
    proof = run(ProveReleaseOperator(task_id="prove", component="device-plugin"), spec)
    assert proof["proven"]
    for pool in spec.node_pools:
        run(CleanUpValidationOperator(task_id="clean_up", node_pool=pool.name), spec)
    return found


# --- what is seen of it ----------------------------------------------------------------------------------------------
def job(kube: KubeClient, name: str, node: str) -> dict[str, Any]:
    """A user's pod with one GPU share, running on a node."""
    container = {
        "name": "main",
        "image": "nvidia/cuda:12.8.0-base-ubuntu22.04",
        "command": ["sleep", "100000"],
        "resources": {"limits": {GPU: "1"}},
    }
    spec = {
        "nodeName": node,
        "restartPolicy": "Never",
        "containers": [container],
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
    }
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    return until(f"pod {name}", lambda: running(kube, name))  # type: ignore[no-any-return]


def running(kube: KubeClient, name: str) -> dict[str, Any] | None:
    pod = kube.get(ObjectRef(POD, name, "default"))
    return pod if pod and (pod.get("status") or {}).get("phase") == "Running" else None


def nodes(kube: KubeClient) -> dict[str, tuple[str, int]]:
    """Node -> its config entry and what it offers."""
    found = kube.list(NODE, label_selector=POOL_LABEL)
    return {
        node["metadata"]["name"]: (
            node["metadata"]["labels"].get(ENTRY, ""),
            int((node["status"].get("allocatable") or {}).get(GPU, "0")),
        )
        for node in found
    }


def entries(kube: KubeClient) -> set[str]:
    maps = kube.list(CONFIG_MAP, PLUGIN)
    (configs,) = [each for each in maps if each["metadata"]["name"].endswith("-configs")]
    return set(configs["data"])


def trouble(kube: KubeClient) -> list[str]:
    """Containers of the plugin's pods that have ever exited in error, or wait for a cause."""
    found = []
    for pod in kube.list(POD, PLUGIN):
        status = pod.get("status") or {}
        for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            reason = (each["state"].get("waiting") or {}).get("reason")
            if each.get("restartCount") or reason in ("CrashLoopBackOff", "ImagePullBackOff"):
                found.append(f"{pod['metadata']['name']} {each['name']}: {each.get('restartCount')} {reason}")
    return found


def all_well(kube: KubeClient) -> None:
    """Every node offers what its entry says, and no container of the plugin has failed."""
    promised = {"time-slicing-4": 4, "time-slicing-8": 8, "exclusive": 1}
    until("what the entries say", lambda: all(promised[entry] == count for entry, count in nodes(kube).values()))
    assert trouble(kube) == []
