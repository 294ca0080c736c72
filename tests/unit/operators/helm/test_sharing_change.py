"""The sharing of a pool changes, or the pool leaves the file, while its nodes live and are busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import DriftFound, GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.helm.releases import InstallReleaseOperator, RemediateReleaseOperator
from gpu_fleet.operators.preflight.changes import MARKDOWN, PLAN, PlanChangesOperator
from gpu_fleet.operators.preflight.drift import DRIFT, CheckDriftOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.triggers.looking import look
from tests.e2e.announced import SHARING, TEMPLATE, Announcement, effects, unannounced
from tests.e2e.ours import Entry
from tests.unit.airflow_context import TaskInstance
from tests.unit.operators.whole_fleet import (
    EIGHT,
    FOUR,
    GPU,
    PLUGIN,
    POOL,
    all_well,
    audited,
    entries,
    fleet,
    job,
    lifecycle,
    nodes,
    pool_of,
    provide,
    run,
    running,
    trouble,
    until,
    whole_fleet,
)

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(240)]


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeClient]:
    with whole_fleet(tmp_path) as client:
        yield client


def announce(spec: ClusterSpec) -> Announcement:
    """What a run says before it applies anything."""
    ti = TaskInstance(spec=spec)
    run(PlanChangesOperator(task_id="plan_changes"), spec, ti)
    return Announcement.of(time.time(), ti.xcoms[PLAN], ti.xcoms[MARKDOWN])


def test_four_to_eight_and_back_with_a_busy_node(kube: KubeClient, tmp_path: Path) -> None:
    four, eight = fleet(pool_of(POOL, FOUR)), fleet(pool_of(POOL, EIGHT))
    _, capacity = lifecycle(kube, four)[POOL]
    (old,) = capacity["nodes"]
    users = job(kube, "train", old)

    began, told = time.time(), announce(eight)
    asked, capacity = lifecycle(kube, eight)[POOL]
    assert asked["drifted"] == {old: ["sharing time-slicing-4 -> time-slicing-8"]}
    (new,) = capacity["nodes"]
    # Everything that it has written about nodes and their sharing had been announced.
    found = effects([Entry(raw) for raw in audited(tmp_path)], began, time.time())
    assert {(each.entry.resource, each.pool, each.what) for each in found} == {
        ("nodepools", POOL, TEMPLATE),
        ("nodeoverlays", POOL, SHARING),
        ("secrets", POOL, SHARING),
        ("configmaps", POOL, SHARING),
    }
    assert unannounced(found, told, {POOL: {old: {"default/train"}}}) == []
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
