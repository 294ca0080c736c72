"""The sharing of a pool changes, or the pool leaves the file, while its nodes live and are busy.

The lifecycle's operators, one after the other, with a real helm against the whole sandbox in this process: no Airflow,
and no time for it to cost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import DriftFound, GateRefused
from gpu_fleet.core.kinds import CONFIG_MAP, NODE, NODE_CLAIM, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.kubernetes import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.apply import ApplyManifestsOperator
from gpu_fleet.operators.capacity import AwaitCapacityOperator
from gpu_fleet.operators.drift import DRIFT, CheckDriftOperator
from gpu_fleet.operators.hold import ReleasePlaceholdersOperator
from gpu_fleet.operators.pools import ApplyNodeClassOperator, ApplyNodePoolOperator
from gpu_fleet.operators.release import InstallReleaseOperator, ProveReleaseOperator, RemediateReleaseOperator
from gpu_fleet.operators.request_capacity import RequestCapacityOperator
from gpu_fleet.operators.validation_cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation_nodes import ProtectNodesOperator
from gpu_fleet.triggers.looking import look
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_mapping
from tests.unit.sandboxed import whole_sandbox

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(240)]

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


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeClient]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    monkeypatch.setenv("GPU_FLEET_CHART_CACHE", str(tmp_path / "charts"))
    with whole_sandbox(tmp_path / "sandbox") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield KubernetesHook(ClusterAccess.from_spec(fleet(pool_of(POOL, FOUR)))).client()


def until(what: str, there: Callable[[], Any], patience: float = 60.0) -> Any:
    end = time.monotonic() + patience
    while not (found := there()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience:.0f} s in vain for: {what}")
        time.sleep(0.1)
    return found


# --- the lifecycle's tasks -------------------------------------------------------------------------------------------
def run(operator: Any, spec: ClusterSpec, ti: TaskInstance | None = None) -> Any:
    """A task to its end, with the triggerer's part of it done here."""
    ti = ti or TaskInstance(spec=spec)
    ti.task_id, ti.map_index = operator.task_id, -1  # type: ignore[attr-defined]
    where = context(ti)
    try:
        return operator.execute(where)
    except TaskDeferred as deferred:
        waits = deferred.trigger.serialize()[1]
        began, access = time.time(), ClusterAccess.from_spec(spec)
        while True:
            verdict = look(waits["gate"], waits["args"], access, started=began)
            if not verdict.ready and not verdict.failed and time.time() - began < 90:
                time.sleep(0.2)
                continue
            kind = "verdict" if verdict.ready or verdict.failed else "deadline"
            event = {"type": kind, "gate": waits["gate"], "verdict": verdict.to_json()}
            return getattr(operator, deferred.method_name)(where, event=event, **(deferred.kwargs or {}))


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


# --- the tests -------------------------------------------------------------------------------------------------------
def test_four_to_eight_and_back_with_a_busy_node(kube: KubeClient) -> None:
    four, eight = fleet(pool_of(POOL, FOUR)), fleet(pool_of(POOL, EIGHT))
    _, capacity = lifecycle(kube, four)[POOL]
    (old,) = capacity["nodes"]
    users = job(kube, "train", old)

    asked, capacity = lifecycle(kube, eight)[POOL]
    assert asked["drifted"] == {old: ["sharing time-slicing-4 -> time-slicing-8"]}
    (new,) = capacity["nodes"]
    assert nodes(kube) == {old: ("time-slicing-4", 4), new: ("time-slicing-8", 8)}
    assert entries(kube) == {"exclusive", "time-slicing-4", "time-slicing-8"}
    all_well(kube)
    after = running(kube, "train")
    assert after is not None
    assert after["metadata"]["uid"] == users["metadata"]["uid"]

    # What validation looks at, and what it leaves out with a word.
    chosen = run(ProtectNodesOperator(task_id="protect", node_pool=POOL, all_wanted=True), eight)
    assert (chosen["nodes"], list(chosen["drifted"])) == ([new], [old])
    run(CleanUpValidationOperator(task_id="clean_up", node_pool=POOL), eight)

    # Back again: the first node is of today's template again, and nothing is bought.
    asked, capacity = lifecycle(kube, four)[POOL]
    assert (asked["created"], capacity["nodes"], list(asked["drifted"])) == ([], [old], [new])
    assert entries(kube) == {"exclusive", "time-slicing-4", "time-slicing-8"}
    all_well(kube)
    assert (running(kube, "train") or {})["metadata"]["uid"] == users["metadata"]["uid"]

    # Unused, an entry is no drift, and goes with the next lifecycle; one more changes nothing.
    for claim in kube.list(NODE_CLAIM):
        if claim["status"]["nodeName"] == new:
            kube.delete(ObjectRef(NODE_CLAIM, claim["metadata"]["name"]))
    until("the end of the second node", lambda: set(nodes(kube)) == {old})
    run(CheckDriftOperator(task_id="drift"), four)
    lifecycle(kube, four)
    assert entries(kube) == {"exclusive", "time-slicing-4"}
    assert run(InstallReleaseOperator(task_id="install", component="device-plugin"), four)["actions"] == []


def test_the_plugin_knows_an_entry_before_a_node_can_carry_it(kube: KubeClient) -> None:
    """Karpenter launches with the old template until the very moment in which the NodePool is applied."""
    four, eight = fleet(pool_of(POOL, FOUR)), fleet(pool_of(POOL, EIGHT))
    provide(kube, four)
    run(InstallReleaseOperator(task_id="install", component="device-plugin"), eight)
    # No node, no claim: the NodePool alone may still launch the old entry.
    assert entries(kube) == {"exclusive", "time-slicing-4", "time-slicing-8"}


def test_a_broken_upgrade_with_the_change_on_the_way_is_repaired_without_breaking_the_new_nodes(
    kube: KubeClient,
) -> None:
    four = fleet(pool_of(POOL, FOUR))
    _, capacity = lifecycle(kube, four)[POOL]
    (old,) = capacity["nodes"]
    users = job(kube, "train", old)

    broken = fleet(pool_of(POOL, EIGHT), devicePlugin__values={"image": {"tag": "v0.0.0-does-not-exist"}})
    provide(kube, broken)
    run(RequestCapacityOperator(task_id="request", node_pool=POOL), broken)
    new = until("a node of the new template", lambda: next(iter(set(nodes(kube)) - {old}), None))
    until(
        "the cause",
        lambda: (
            look(
                "device_plugin_proven",
                {"release": PLUGIN, "namespace": PLUGIN, "workloads": [f"DaemonSet/{PLUGIN}/{PLUGIN}"], "pools": {}},
                ClusterAccess.from_spec(broken),
                started=time.time() - 600,
            ).failed
        ),
    )
    ti = TaskInstance(spec=broken)
    found = run(RemediateReleaseOperator(task_id="remediate", component="device-plugin"), broken, ti)
    assert (found["remediation"], found["proven"]) == ("restored", True)
    assert entries(kube) == {"exclusive", "time-slicing-4", "time-slicing-8"}
    until("both nodes", lambda: nodes(kube) == {old: ("time-slicing-4", 4), new: ("time-slicing-8", 8)})
    for pod in kube.list(POD, PLUGIN):
        assert "does-not-exist" not in str(pod["spec"])
    assert (running(kube, "train") or {})["metadata"]["uid"] == users["metadata"]["uid"]


def test_a_pool_that_is_removed_from_the_file_keeps_its_entry_and_its_tolerations(kube: KubeClient) -> None:
    taint = {"key": "team-a.example.com/gpu", "value": "x", "effect": "NoSchedule"}
    removed = pool_of("team-a", EIGHT, taints=[taint])
    _, capacity = lifecycle(kube, fleet(pool_of(POOL, FOUR), removed))["team-a"]
    (old,) = capacity["nodes"]

    alone = fleet(pool_of(POOL, FOUR))
    lifecycle(kube, alone)
    assert entries(kube) == {"exclusive", "time-slicing-4", "time-slicing-8"}
    assert nodes(kube)[old] == ("time-slicing-8", 8)
    all_well(kube)
    ti = TaskInstance(spec=alone)
    with pytest.raises(DriftFound):
        run(CheckDriftOperator(task_id="drift"), alone, ti)
    # The NodePool may go on buying, and is named; the release is as it has to be.
    assert {item["object"] for item in ti.xcoms[DRIFT]} == {
        *("NodePool team-a", "EC2NodeClass team-a", "NodeOverlay gpu-fleet-team-a")
    }

    # Its NodePool is deleted by hand while a pod holds the node: the entry stays as long as the node does.
    pod = job_that_stays(kube, "held", old, taint)
    kube.delete(ObjectRef(NODE_POOL, "team-a"))
    lifecycle(kube, alone)
    assert "time-slicing-8" in entries(kube)
    assert trouble(kube) == []
    assert (running(kube, "held") or {})["metadata"]["uid"] == pod["metadata"]["uid"]


def job_that_stays(kube: KubeClient, name: str, node: str, taint: dict[str, str]) -> dict[str, Any]:
    """A pod that no drain may evict."""
    container = {
        "name": "main",
        "image": "nvidia/cuda:12.8.0-base-ubuntu22.04",
        "command": ["sleep", "100000"],
        "resources": {"limits": {GPU: "1"}},
    }
    spec = {
        "nodeName": node,
        "containers": [container],
        "tolerations": [{"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}],
    }
    metadata = {"name": name, "namespace": "default", "annotations": {"karpenter.sh/do-not-disrupt": "true"}}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return until(f"pod {name}", lambda: running(kube, name))  # type: ignore[no-any-return]


def test_a_pool_that_is_renamed_gets_new_nodes_and_the_old_ones_go_on(kube: KubeClient) -> None:
    _, capacity = lifecycle(kube, fleet(pool_of("before", EIGHT)))["before"]
    (old,) = capacity["nodes"]
    users = job(kube, "train", old)
    _, capacity = lifecycle(kube, fleet(pool_of("after", FOUR)))["after"]
    (new,) = capacity["nodes"]
    assert nodes(kube) == {old: ("time-slicing-8", 8), new: ("time-slicing-4", 4)}
    all_well(kube)
    assert (running(kube, "train") or {})["metadata"]["uid"] == users["metadata"]["uid"]


def test_busy_drifted_nodes_that_hold_the_cap_stop_the_run_before_anything_is_bought(kube: KubeClient) -> None:
    _, capacity = lifecycle(kube, fleet(pool_of(POOL, FOUR, limits={"nodes": 1})))[POOL]
    (old,) = capacity["nodes"]
    job(kube, "train", old)
    eight = fleet(pool_of(POOL, EIGHT, limits={"nodes": 1}))
    provide(kube, eight)
    ti = TaskInstance(spec=eight)
    with pytest.raises(GateRefused) as refused:
        run(RequestCapacityOperator(task_id="request", node_pool=POOL), eight, ti)
    assert refused.value.reason == ti.xcoms["failure"]["reason"] == "DriftedNodesHoldTheCap"
    for named in (old, "default/train", "limits.nodes of pool shared-a10g to 2"):
        assert named in refused.value.message
    assert kube.list(POD, "gpu-fleet-system") == []
    assert set(nodes(kube)) == {old}
