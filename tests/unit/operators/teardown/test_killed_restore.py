"""A roll-back whose target lacks what living nodes carry is killed half-way, and tried again.

Real helm, whole sandbox; the upgrade is broken, and its sharing is one that the proven revision does not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, POD, SECRET, ObjectRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient
from gpu_fleet.operators.helm.releases import InstallReleaseOperator, RemediateReleaseOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodePoolOperator
from gpu_fleet.triggers.looking import look
from tests.unit.airflow_context import StateStore, TaskInstance
from tests.unit.operators.deaths import Killer
from tests.unit.operators.whole_fleet import (
    FOUR,
    PLUGIN,
    POOL,
    entries,
    fleet,
    job,
    lifecycle,
    nodes,
    pool_of,
    run,
    running,
    until,
    whole_fleet,
)

pytestmark = [pytest.mark.real_helm, pytest.mark.full, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    """A pool with four shares per GPU and a busy node, proven."""
    with whole_fleet(tmp_path_factory.mktemp("fleet")) as client:
        _, capacity = lifecycle(client, fleet(pool_of(POOL, FOUR)))[POOL]
        job(client, "train", capacity["nodes"][0])
        yield client


def break_it(kube: KubeClient, replicas: int) -> ClusterSpec:
    """An upgrade whose image does not exist, with an entry that only the broken revision and the NodePool have."""
    sharing = {"mode": "timeSlicing", "replicas": replicas}
    broken = fleet(pool_of(POOL, sharing), devicePlugin__values={"image": {"tag": "v0.0.0-does-not-exist"}})
    run(InstallReleaseOperator(task_id="install", component="device-plugin"), broken)
    run(ApplyNodePoolOperator(task_id="apply_pool", node_pool=POOL), broken)
    daemon_set = {"release": PLUGIN, "namespace": PLUGIN, "workloads": [f"DaemonSet/{PLUGIN}/{PLUGIN}"], "pools": {}}
    access, long_ago = ClusterAccess.from_spec(broken), time.time() - 600
    until("the cause", lambda: look("device_plugin_proven", daemon_set, access, started=long_ago).failed)
    return broken


def remedy(kube: KubeClient, replicas: int, killer: Killer) -> dict[str, Any]:
    broken = break_it(kube, replicas)
    ti, store = TaskInstance(spec=broken), StateStore()
    operator = RemediateReleaseOperator(task_id="remediate", component="device-plugin")
    found: dict[str, Any] = killer.run(lambda: run(operator, broken, ti, store))
    return found


def assert_sound(kube: KubeClient) -> None:
    """One revision is deployed and proven, no operation is under way, the plugin and the job run."""
    labels = [secret["metadata"].get("labels") or {} for secret in kube.list_metadata(SECRET, PLUGIN)]
    statuses = [each["status"] for each in labels if "status" in each]
    assert statuses.count("deployed") == 1
    assert set(statuses) <= {"deployed", "superseded", "failed"}
    ledger = (kube.get(ObjectRef(CONFIG_MAP, f"gpu-fleet-release-{PLUGIN}", PLUGIN)) or {})["data"]
    assert "intent" not in ledger
    assert json.loads(ledger["proven"])["revision"] == json.loads(ledger["candidate"])["revision"]
    for pod in kube.list(POD, PLUGIN):
        assert "does-not-exist" not in str(pod["spec"])
    until("the old node's GPUs", lambda: set(nodes(kube).values()) == {("time-slicing-4", 4)})
    assert running(kube, "train") is not None


#: Writes of the worker, beside helm's own, before the revision is proven: the Lease taken and the intent noted; then
#: helm upgrades; the candidate noted and the Lease given back.
INSTALLED = 4


def test_restored_content_that_was_installed_and_not_yet_proven_is_proven_by_the_next_try(kube: KubeClient) -> None:
    killer = Killer(INSTALLED, after=True)
    found = remedy(kube, 8, killer)
    assert killer.killed
    assert (found["remediation"], found["proven"]) == ("restored", True)
    assert "time-slicing-8" in entries(kube)
    assert_sound(kube)
