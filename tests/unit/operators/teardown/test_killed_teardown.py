"""A teardown whose worker is killed at each of its writes: the next try ends where an undisturbed run does.

Compared are the end, and every write that reached the API server: what was done before the death is not done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import DeadlinePassed
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.manifests.build import build
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.teardown.delete import DeleteNodeClassesOperator
from gpu_fleet.operators.teardown.node_pools import DeleteNodePoolsOperator
from tests.unit.core.specs import demo_spec
from tests.unit.operators.deaths import Killed, Killer
from tests.unit.operators.teardown_world import (
    AIRFLOW,
    OTHER,
    POOL,
    Teardown,
    budget,
    cordoned,
    frozen_pools,
    furnished,
    running,
    teardown_world,
)

pytestmark = pytest.mark.slow

WHEN = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    with teardown_world(tmp_path_factory.mktemp("cloud")) as client:
        yield client


@pytest.fixture
def kube(world: KubeClient) -> Iterator[KubeClient]:
    with furnished(world) as client:
        yield client
        karpenter(client)
        for kind in (NODE_POOL, NODE_CLAIM, EC2_NODE_CLASS):
            for item in client.list(kind):
                client.delete(ObjectRef(kind, item["metadata"]["name"]))


# --- a drain that evicted nobody is taken back ------------------------------------------------------------------------
def specs(kube: KubeClient) -> dict[str, Any]:
    return {pool["metadata"]["name"]: pool["spec"] for pool in kube.list(NODE_POOL)}


def marks(kube: KubeClient) -> list[str]:
    """Annotations of ours that are left on NodePools and nodes."""
    found = [(item["metadata"]["name"], item["metadata"].get("annotations") or {})
             for kind in (NODE_POOL, NODE) for item in kube.list(kind)]  # fmt: skip
    return [f"{name} {key}" for name, notes in found for key in notes if key.startswith("gpu-fleet.io/")]


def stuck(kube: KubeClient) -> Teardown:
    """Both pools are frozen and their nodes cordoned; the drain of one was killed in its last try, blocked by a budget
    that allows nothing, and the other is over: nobody was evicted."""
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    budget(kube)
    teardown = Teardown()
    teardown.freeze()
    teardown.drain(OTHER)
    teardown.drain(POOL)
    teardown.states[f"drain_{POOL}"] = "failed"
    assert (frozen_pools(kube), cordoned(kube)) == ([POOL, OTHER], [f"node-{POOL}", f"node-{OTHER}"])
    return teardown


def taken_back(kube: KubeClient, before: dict[str, Any]) -> None:
    """Everything is as if there had been no teardown."""
    assert specs(kube) == before
    assert (marks(kube), cordoned(kube)) == ([], [])
    assert "deletionTimestamp" not in (kube.get(ObjectRef(POD, "web-1", "default")) or {})["metadata"]


UNDOING = 4


def test_undoing_a_freeze_writes_each_pool_and_each_node_once(kube: KubeClient) -> None:
    before, killer = specs(kube), Killer()
    teardown = stuck(kube)
    assert killer.run(teardown.undo)["undone"] is True
    assert (len(killer.made), len(set(killer.made))) == (UNDOING, UNDOING)
    taken_back(kube, before)


@WHEN
@pytest.mark.parametrize("at", range(1, UNDOING + 1))
def test_undoing_a_freeze_is_killed_and_tried_again(kube: KubeClient, at: int, after: bool) -> None:
    before, killer = specs(kube), Killer(at, after)
    teardown = stuck(kube)
    assert killer.run(teardown.undo)["undone"] is True
    assert killer.killed
    assert (len(killer.made), len(set(killer.made))) == (UNDOING, UNDOING), "a write was done twice, or not at all"
    taken_back(kube, before)


@WHEN
@pytest.mark.parametrize("at", range(1, UNDOING + 1))
def test_what_the_last_try_left_of_a_freeze_the_next_teardown_takes_back_with_its_own(
    kube: KubeClient, at: int, after: bool
) -> None:
    before, killer = specs(kube), Killer(at, after)
    with pytest.raises(Killed):
        killer.once(stuck(kube).undo)
    later = Teardown()
    later.ti.run_id = "manual__2"
    later.freeze()
    assert frozen_pools(kube) == [POOL, OTHER]
    later.drain(OTHER)
    later.drain(POOL)
    with pytest.raises(DeadlinePassed, match="nothing was evicted"):
        later.time_is_up(POOL)
    assert later.undo()["undone"] is True
    taken_back(kube, before)


@WHEN
@pytest.mark.parametrize("at", [1, 2], ids=["cordon", "uncordon"])
def test_a_drain_that_gives_up_is_killed_and_tried_again(kube: KubeClient, at: int, after: bool) -> None:
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    budget(kube)
    before, killer, teardown = specs(kube), Killer(at, after), Teardown()
    teardown.freeze()
    teardown.drain(OTHER)
    # Nothing of it is done yet when its time is up.
    wait = {"started": 0.0, "attempt": teardown.ti.max_tries}
    teardown.state_of(f"drain_{POOL}").set("wait", wait)
    with pytest.raises(DeadlinePassed, match="nothing was evicted"):
        killer.run(lambda: teardown.drain(POOL))
    assert killer.killed
    assert cordoned(kube) == [f"node-{OTHER}"]
    assert teardown.undo()["undone"] is True
    taken_back(kube, before)


# --- a teardown that evicts bare pods ---------------------------------------------------------------------------------
def claim(kube: KubeClient, name: str, pool: str) -> None:
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": pool}
    metadata = {"name": name, "labels": {"karpenter.sh/nodepool": pool}}
    spec = {"nodeClassRef": reference, "requirements": []}
    kube.create({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": metadata, "spec": spec})


def kubelet(kube: KubeClient) -> None:
    """Every pod that is being removed ends."""
    for pod in kube.list(POD):
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp"):
            kube.delete(ObjectRef(POD, metadata["name"], metadata["namespace"]), grace_seconds=0)


def with_bare_pods(kube: KubeClient, killer: Killer) -> dict[str, dict[str, str]]:
    """A whole teardown with ``evictBarePods``, each task of which may be killed; pool -> pod -> what became of it."""
    for name in (POOL, OTHER):
        kube.apply(build("node_class", demo_spec(), pool=name)[0])
        claim(kube, f"claim-{name}", name)
    running(kube, "train-1", on=f"node-{POOL}", labels=AIRFLOW)
    running(kube, "train-2", on=f"node-{POOL}", labels={**AIRFLOW, "run_id": "manual__8"})
    running(kube, "web-1", on=f"node-{OTHER}", owner="ReplicaSet", labels={"app": "web"})
    teardown, reports = Teardown(evictBarePods=True), {}

    def step(task: Any) -> Any:
        return killer.run(task, meanwhile=lambda: kubelet(kube))

    teardown.ti.xcoms["return_value"] = step(teardown.plan)
    teardown.ti.xcoms["return_value"] = step(lambda: teardown.plan(approved_task_id="plan"))
    step(teardown.freeze)
    for name in (POOL, OTHER):
        while (report := step(lambda name=name: teardown.drain(name))) is None:
            kubelet(kube)
        reports[name] = {row["pod"]: row["outcome"] for row in report["pods"]}
    assert step(teardown.undo)["undone"] is False
    step(lambda: teardown.run("pools", DeleteNodePoolsOperator(task_id="pools")))
    step(lambda: teardown.run("classes", DeleteNodeClassesOperator(task_id="classes")))
    return reports


EVICTED = {
    POOL: {"default/train-1": "Evicted", "default/train-2": "Evicted"},
    OTHER: {"default/web-1": "Evicted"},
}
TEARDOWN = [
    *("PATCH nodepools " + name for name in (POOL, OTHER)),  # freeze
    f"PATCH nodes node-{POOL}",
    f"PATCH nodepools {POOL}",  # the mark before the first eviction
    *("POST pods eviction train-1", "POST pods eviction train-2"),
    f"PATCH nodes node-{OTHER}",
    f"PATCH nodepools {OTHER}",
    "POST pods eviction web-1",
    *("DELETE nodepools " + name for name in (POOL, OTHER)),
    *("DELETE nodeclaims claim-" + name for name in (POOL, OTHER)),
    *("DELETE ec2nodeclasses " + name for name in (POOL, OTHER)),
]


def short(write: str) -> str:
    """``PATCH nodepools shared-a10g`` of a method and path."""
    method, _, path = write.partition(" ")
    parts = path.split("/")
    if parts[-1] == "eviction":
        return f"{method} pods eviction {parts[-2]}"
    return f"{method} {parts[-2]} {parts[-1]}"


def done(killer: Killer) -> list[str]:
    """Every write; to ask again for a removal that is under way changes nothing, so that counts once."""
    writes = [short(write) for write in killer.made]
    removals = {write for write in writes if write.startswith("DELETE ")}
    return sorted([write for write in writes if write not in removals] + [*removals])


def karpenter(kube: KubeClient) -> None:
    """Everything that is being deleted goes, its finalizers are served."""
    for kind in (NODE_POOL, NODE_CLAIM, EC2_NODE_CLASS):
        for item in kube.list(kind):
            if item["metadata"].get("deletionTimestamp"):
                kube.patch(ObjectRef(kind, item["metadata"]["name"]), {"metadata": {"finalizers": None}})


def nothing_left(kube: KubeClient) -> None:
    karpenter(kube)
    for kind in (NODE_POOL, NODE_CLAIM, EC2_NODE_CLASS):
        assert kube.list(kind) == []
    assert [pod["metadata"]["name"] for pod in kube.list(POD)] == ["karpenter-0"]


def test_teardown_with_bare_pods_writes_what_its_plan_says(kube: KubeClient) -> None:
    killer = Killer()
    assert with_bare_pods(kube, killer) == EVICTED
    assert (done(killer), len(killer.made)) == (sorted(TEARDOWN), len(TEARDOWN))
    nothing_left(kube)


@WHEN
@pytest.mark.parametrize("at", range(1, len(TEARDOWN) + 1))
def test_teardown_with_bare_pods_is_killed_and_tried_again(kube: KubeClient, at: int, after: bool) -> None:
    killer = Killer(at, after)
    reports = with_bare_pods(kube, killer)
    assert killer.killed
    assert done(killer) == sorted(TEARDOWN), "a write was done twice, or not at all"
    assert reports == EVICTED
    nothing_left(kube)
