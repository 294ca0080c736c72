"""Opening headroom against the sandbox's API server: repeated, killed, over, in the way of probes and of a teardown."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.capacity.headroom import UNTIL, headroom_name, stamp
from gpu_fleet.core.errors import TransientError
from gpu_fleet.core.kubernetes.kinds import JOB, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import COMPONENT_HEADROOM, LABEL_COMPONENT, LABEL_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.nodes.freeze import frozen
from gpu_fleet.operators.capacity import headroom
from gpu_fleet.operators.capacity.headroom import OpenHeadroomOperator
from gpu_fleet.operators.teardown.freeze import FreezePoolsOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import ReleasePlaceholdersOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.specs import demo_mapping
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL = "shared-a10g"
ALWAYS = {"schedule": "* * * * *", "duration": "2h", "nodes": 2}
NEVER = {"schedule": "0 0 29 2 *", "duration": "15m", "nodes": 2}
NAMES = [headroom_name(POOL, 0), headroom_name(POOL, 1)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml", "karpenter.sh_nodepools.yaml")
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        cluster.kube.apply(account | {"metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setattr(headroom, "hardware", lambda *_: SimpleNamespace(count=1))
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}
    spec = {
        "template": {"spec": {"nodeClassRef": reference, "requirements": []}},
        "disruption": {"consolidateAfter": "5m"},
        "limits": {"nodes": 4},
    }
    labels = {"gpu-fleet.io/cluster": "demo"}
    pool = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": POOL, "labels": labels}}
    shared.kube.apply({**pool, "spec": spec})
    yield shared
    for kind in (JOB, POD):
        for item in shared.kube.list(kind, SYSTEM_NAMESPACE):
            shared.kube.delete(ObjectRef(kind, item["metadata"]["name"], SYSTEM_NAMESPACE), grace_seconds=0)
    shared.kube.delete(ObjectRef(NODE_POOL, POOL))


def spec_of(cluster: SandboxCluster, *windows: dict[str, Any], **changes: Any) -> Any:
    pools = demo_mapping(nodePools__0__capacity={"headroom": list(windows)})["nodePools"]
    return spec_at(str(cluster.access.path), nodePools=pools, **changes)


def opened(cluster: SandboxCluster, *windows: dict[str, Any], **changes: Any) -> Any:
    run = context(TaskInstance(dag_id="gpu_headroom.demo", spec=spec_of(cluster, *windows, **changes)))
    return OpenHeadroomOperator(task_id="open_headroom").execute(run)


def jobs(cluster: SandboxCluster) -> dict[str, Any]:
    return {job["metadata"]["name"]: job for job in cluster.kube.list(JOB, SYSTEM_NAMESPACE)}


def test_a_run_that_is_repeated_creates_nothing_twice(cluster: SandboxCluster) -> None:
    first = opened(cluster, ALWAYS)
    assert (first[POOL]["open"], first[POOL]["created"]) == (2, NAMES)
    before = {name: job["metadata"]["uid"] for name, job in jobs(cluster).items()}
    again = opened(cluster, ALWAYS)
    assert (again[POOL]["open"], again[POOL]["created"], again[POOL]["removed"]) == (2, [], [])
    assert {name: job["metadata"]["uid"] for name, job in jobs(cluster).items()} == before


def test_a_run_that_was_killed_half_way_is_completed(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    cluster.kube.delete(ObjectRef(JOB, NAMES[1], SYSTEM_NAMESPACE))
    assert opened(cluster, ALWAYS)[POOL]["created"] == [NAMES[1]]


def test_fewer_nodes_and_windows_that_are_over_are_removed(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    assert opened(cluster, ALWAYS | {"nodes": 1})[POOL]["removed"] == [NAMES[1]]
    assert opened(cluster, NEVER)[POOL] == {
        "open": 0,
        "created": [],
        "extended": [],
        "removed": [NAMES[0]],
        "displaced": [],
        "until": None,
    }
    assert jobs(cluster) == {}


def test_a_pool_without_windows_loses_what_it_had(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    assert opened(cluster) == {}
    assert jobs(cluster) == {}


def test_a_window_that_became_longer_extends_its_jobs(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    before = jobs(cluster)
    assert opened(cluster, ALWAYS | {"duration": "4h"})[POOL]["extended"] == NAMES
    after = jobs(cluster)
    for name in NAMES:
        assert after[name]["metadata"]["uid"] == before[name]["metadata"]["uid"]
        longer = after[name]["spec"]["activeDeadlineSeconds"] - before[name]["spec"]["activeDeadlineSeconds"]
        assert 7100 <= longer <= 7300
        assert after[name]["metadata"]["annotations"][UNTIL] > before[name]["metadata"]["annotations"][UNTIL]


def test_a_placeholder_that_was_displaced_is_not_replaced_within_its_window(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    over = [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded"} for kind in ("FailureTarget", "Failed")]
    status = {"status": {"conditions": over, "startTime": stamp(cluster.kube.now()), "failed": 1}}
    cluster.kube.patch(ObjectRef(JOB, NAMES[0], SYSTEM_NAMESPACE), status, subresource="status")
    again = opened(cluster, ALWAYS)[POOL]
    assert (again["open"], again["created"], again["displaced"]) == (1, [], [NAMES[0]])


def test_a_cluster_that_is_to_go_gets_nothing_and_loses_what_it_has(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    assert opened(cluster, ALWAYS, state="absent")[POOL]["open"] == 0
    assert jobs(cluster) == {}


@pytest.mark.parametrize("state", ["frozen", "absent"])
def test_a_pool_that_a_teardown_has_frozen_or_removed_gets_nothing(cluster: SandboxCluster, state: str) -> None:
    if state == "absent":
        cluster.kube.delete(ObjectRef(NODE_POOL, POOL))
    else:
        cluster.kube.apply(frozen(cluster.kube.get(ObjectRef(NODE_POOL, POOL)) or {}, "run"), force=True)
    assert opened(cluster, ALWAYS)[POOL]["open"] == 0
    assert jobs(cluster) == {}


def test_a_job_of_that_name_that_does_not_go_is_retried(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    stays = {"metadata": {"finalizers": ["example.com/stays"]}}
    cluster.kube.patch(ObjectRef(JOB, NAMES[0], SYSTEM_NAMESPACE), stays)
    cluster.kube.delete(ObjectRef(JOB, NAMES[0], SYSTEM_NAMESPACE))
    with pytest.raises(TransientError) as stayed:
        opened(cluster, ALWAYS)
    assert stayed.value.reason == "JobStays"
    cluster.kube.patch(ObjectRef(JOB, NAMES[0], SYSTEM_NAMESPACE), {"metadata": {"finalizers": None}})
    assert opened(cluster, ALWAYS)[POOL]["created"] == [NAMES[0]]


# --- in the way ------------------------------------------------------------------------------------------------------
def bound(cluster: SandboxCluster, job: str, node: str) -> None:
    """The pod of a Job, as the controller makes it, on a node."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": jobs(cluster)[job]["metadata"]["uid"]}
    metadata = {
        "name": f"{job}-abcde",
        "namespace": SYSTEM_NAMESPACE,
        "labels": {LABEL_COMPONENT: COMPONENT_HEADROOM, LABEL_POOL: POOL},
        "ownerReferences": [{**owner, "controller": True}],
    }
    container = {"name": "pause", "image": "pause"}
    spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0}
    cluster.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_headroom_makes_room_for_probes_on_the_nodes_that_are_probed_and_comes_back(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(cluster, ALWAYS)
    bound(cluster, NAMES[0], "n1")
    bound(cluster, NAMES[1], "n2")
    with DAG("gpu_revalidate.demo", schedule=None):
        protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
        free = ReleasePlaceholdersOperator(task_id="free", node_pool=POOL)
        clean = CleanUpValidationOperator(task_id="clean", node_pool=POOL)
        protect >> free >> clean
    for task in (free, clean):
        task.preconditions = ()
    ti = TaskInstance(dag_id="gpu_revalidate.demo", spec=spec_of(cluster, ALWAYS))
    chosen = {"nodes": ["n1"], "physical": 1, "replicas": 4}
    pull = ti.xcom_pull
    ti.xcom_pull = lambda task_ids=None, key="return_value": (  # type: ignore[method-assign]
        chosen if (task_ids, key) == ("protect", "return_value") else pull(task_ids, key)
    )
    ti.task_states = {"protect": "success", "free": "success"}
    assert free.execute(context(ti)) == [f"{NAMES[0]}-abcde"]
    assert list(jobs(cluster)) == [NAMES[1]]
    clean.execute(context(ti))
    assert sorted(jobs(cluster)) == NAMES


def test_a_teardown_deletes_headroom_before_it_drains(cluster: SandboxCluster) -> None:
    opened(cluster, ALWAYS)
    other = {"name": "others", "namespace": SYSTEM_NAMESPACE, "labels": {LABEL_COMPONENT: COMPONENT_HEADROOM}}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    cluster.kube.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": other, "spec": {"template": template}})
    freeze = FreezePoolsOperator(task_id="freeze")
    freeze.preconditions = ()
    freeze.execute(context(TaskInstance(spec=spec_of(cluster, ALWAYS))))
    assert list(jobs(cluster)) == ["others"]
