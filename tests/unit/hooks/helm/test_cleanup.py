"""What an uninstall waits for, and which Lease it may delete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import ClusterBusy, Conflict
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, DEPLOYMENT, LEASE, POD, ObjectRef
from gpu_fleet.core.releases.lease import lease_name, parse_lease, render_lease
from gpu_fleet.core.releases.leftovers import Fate, Leftover
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.hooks.helm.binary.process import GRACE_SECONDS
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from gpu_fleet.hooks.helm.lease import ReleaseLease, forget_free_lease
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

NAMESPACE, RELEASE, ME = "apps", "grafana", "worker@1"
GRAFANA = f"apps/v1/Deployment/{NAMESPACE}/grafana"
LEASE_REF = ObjectRef(LEASE, lease_name(RELEASE), NAMESPACE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        for name in (NAMESPACE, "elsewhere"):
            cluster.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    for kind in (POD, DEPLOYMENT, LEASE):
        for item in shared.kube.list(kind):
            ref = ObjectRef(kind, item["metadata"]["name"], item["metadata"]["namespace"])
            shared.kube.delete(ref, grace_seconds=0)


def cleanup_of(cluster: SandboxCluster) -> ReleaseCleanup:
    return ReleaseCleanup(cluster.kube, ReleaseStorage(cluster.kube, RELEASE, NAMESPACE))


def pod(cluster: SandboxCluster, name: str, owner: str, template: str = "", namespace: str = NAMESPACE) -> None:
    kind, owner_name = owner.split("/")
    reference = {"apiVersion": "apps/v1", "kind": kind, "name": owner_name, "uid": "u", "controller": True}
    labels = {"pod-template-hash": template} if template else {}
    cluster.kube.create({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [reference]},
        "spec": {"containers": [{"name": "c", "image": "pause"}]},
    })  # fmt: skip


def deployment(cluster: SandboxCluster, name: str, **annotations: str) -> None:
    labels = {"app": name}
    cluster.kube.create({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "pause"}]}},
        },
    })  # fmt: skip


# --- pods ------------------------------------------------------------------------------------------------------------


def test_pods_of_a_deleted_workload_are_waited_for(cluster: SandboxCluster) -> None:
    pod(cluster, "grafana-5d4-x", "ReplicaSet/grafana-5d4", "5d4")
    pod(cluster, "node-1", "DaemonSet/node")
    left = cleanup_of(cluster).remaining_pods([GRAFANA, f"apps/v1/DaemonSet/{NAMESPACE}/node"])
    assert [item.target for item in left] == ["Pod apps/grafana-5d4-x", "Pod apps/node-1"]
    assert all(item.terminating for item in left)


def test_pods_of_others_are_not_waited_for(cluster: SandboxCluster) -> None:
    pod(cluster, "grafana-agent-7f9-x", "ReplicaSet/grafana-agent-7f9", "7f9")  # another release's Deployment
    pod(cluster, "grafana-own-x", "ReplicaSet/grafana-own")  # a ReplicaSet of nobody's Deployment
    assert cleanup_of(cluster).remaining_pods([GRAFANA]) == ()


def test_pods_of_a_workload_that_stays_are_not_waited_for(cluster: SandboxCluster) -> None:
    ours = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE}
    deployment(cluster, "grafana", **ours, **{"helm.sh/resource-policy": "keep"})
    pod(cluster, "grafana-5d4-x", "ReplicaSet/grafana-5d4", "5d4")
    cleanup = cleanup_of(cluster)
    left = cleanup.remove_leftovers([GRAFANA], frozenset()) + cleanup.remaining_pods([GRAFANA])
    assert left == (Leftover("Deployment apps/grafana", Fate.KEPT),)
    assert not left[0].terminating


@pytest.mark.parametrize("kept", [True, False], ids=["kept by a recovery", "of the release alone"])
def test_what_is_being_deleted_is_not_called_kept(cluster: SandboxCluster, kept: bool) -> None:
    ours = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE}
    policy = {"helm.sh/resource-policy": "keep"} if kept else {}
    deployment(cluster, "grafana", **ours, **policy)
    ref = ObjectRef(DEPLOYMENT, "grafana", NAMESPACE)
    cluster.kube.patch(ref, {"metadata": {"finalizers": ["example.com/hold"]}})
    cluster.kube.delete(ref)
    left = cleanup_of(cluster).remove_leftovers([GRAFANA], frozenset())
    cluster.kube.patch(ref, {"metadata": {"finalizers": None}})
    assert left == (Leftover("Deployment apps/grafana", Fate.TERMINATING, "example.com/hold"),)


def test_pods_are_looked_for_in_their_workloads_namespace(cluster: SandboxCluster) -> None:
    pod(cluster, "grafana-5d4-x", "ReplicaSet/grafana-5d4", "5d4")  # another release's, in the release's namespace
    pod(cluster, "grafana-77-x", "ReplicaSet/grafana-77", "77", namespace="elsewhere")
    left = cleanup_of(cluster).remaining_pods(["apps/v1/Deployment/elsewhere/grafana"])
    assert [item.target for item in left] == ["Pod elsewhere/grafana-77-x"]


# --- the Lease -------------------------------------------------------------------------------------------------------


def lease(cluster: SandboxCluster, holder: str, renewed: float | None = None) -> None:
    when = time.time() if renewed is None else renewed
    cluster.kube.create(render_lease(RELEASE, NAMESPACE, holder, when, previous=None, duration=1))


@pytest.mark.parametrize("behind", [0.0, 3600.0], ids=["same time", "the holder's clock is behind"])
def test_a_holder_that_renews_keeps_its_lease_whatever_its_clock_says(cluster: SandboxCluster, behind: float) -> None:
    """It renews every half second of its own, for a second each time."""
    with (
        ReleaseLease(
            cluster.kube, RELEASE, NAMESPACE, "holder@1", wait_s=1, seconds=2, clock=lambda: time.time() - behind
        ) as first,
        pytest.raises(ClusterBusy, match="holder@1"),
        ReleaseLease(cluster.kube, RELEASE, NAMESPACE, ME, wait_s=1, seconds=2),
    ):
        raise AssertionError("took a living holder's Lease")
    assert not first.lost


def test_a_short_patience_lasts_as_long_as_a_dead_holders_lease(cluster: SandboxCluster) -> None:
    """Otherwise no try of a task with ``lease_wait`` below the Lease's duration would ever get it."""
    lease(cluster, "dead@3", renewed=time.time() - 3600.0)
    with ReleaseLease(cluster.kube, RELEASE, NAMESPACE, ME, wait_s=0, seconds=2, grace=0.5):
        assert cluster.kube.get(LEASE_REF)["spec"]["holderIdentity"] == ME  # type: ignore[index]


def test_a_lease_is_not_taken_while_its_holder_may_still_be_ending_helm(cluster: SandboxCluster) -> None:
    """The holder's Lease is lost after its duration; only then does it send SIGTERM, and SIGKILL after a while."""
    lease(cluster, "stalled@3")  # for one second
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with ReleaseLease(cluster.kube, RELEASE, NAMESPACE, ME, wait_s=120, monotonic=lambda: now[0], sleep=sleep) as taken:
        assert now[0] - 100.0 >= 1.0 + GRACE_SECONDS
        assert not taken.lost


@pytest.mark.parametrize("holder", ["", ME], ids=["unheld", "ours"])
def test_a_free_lease_of_an_absent_release_is_deleted(cluster: SandboxCluster, holder: str) -> None:
    lease(cluster, holder)
    assert forget_free_lease(cluster.kube, RELEASE, NAMESPACE, ME)
    assert cluster.kube.get(LEASE_REF) is None
    assert forget_free_lease(cluster.kube, RELEASE, NAMESPACE, ME)


def test_somebody_elses_lease_stays(cluster: SandboxCluster) -> None:
    lease(cluster, "worker@2")
    assert not forget_free_lease(cluster.kube, RELEASE, NAMESPACE, ME)
    assert cluster.kube.get(LEASE_REF)["spec"]["holderIdentity"] == "worker@2"  # type: ignore[index]


def test_a_lease_that_is_taken_meanwhile_stays(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    lease(cluster, "")
    delete = cluster.kube.delete

    def taken_first(ref: ObjectRef, **options: Any) -> bool:
        record = parse_lease(cluster.kube.get(LEASE_REF))
        cluster.kube.replace(render_lease(RELEASE, NAMESPACE, "worker@2", time.time(), previous=record))
        return delete(ref, **options)

    monkeypatch.setattr(cluster.kube, "delete", taken_first)
    assert not forget_free_lease(cluster.kube, RELEASE, NAMESPACE, ME)
    assert cluster.kube.get(LEASE_REF)["spec"]["holderIdentity"] == "worker@2"  # type: ignore[index]


def test_an_uninstall_of_an_absent_release_waits_for_a_holder_and_takes_a_dead_ones_lease(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease(cluster, "dead@3")  # renewed now, for one second, and never again
    monkeypatch.setattr("gpu_fleet.hooks.helm.binary.command.Helm.version", None)
    monkeypatch.setenv("HELM_BIN", "/bin/true")
    request = ReleaseRequest(RELEASE, NAMESPACE, ChartRef("/chart"), {}, ReleasePolicy())
    engine = ReleaseEngine(cluster.kube, request, me=ME, run="dag/run", lease_wait_s=30, lease_grace_s=0.5)
    assert engine.uninstall().leftovers == ()
    assert cluster.kube.get(LEASE_REF) is None


def test_our_own_lease_is_not_deleted_once_somebody_has_taken_it(cluster: SandboxCluster) -> None:
    with ReleaseLease(cluster.kube, RELEASE, NAMESPACE, ME, wait_s=1) as held:
        record = parse_lease(cluster.kube.get(LEASE_REF))
        cluster.kube.replace(render_lease(RELEASE, NAMESPACE, "worker@2", time.time(), previous=record))
        held.forget()
    assert cluster.kube.get(LEASE_REF)["spec"]["holderIdentity"] == "worker@2"  # type: ignore[index]


def test_our_own_lease_is_deleted_although_a_renewals_answer_got_lost(cluster: SandboxCluster) -> None:
    with ReleaseLease(cluster.kube, RELEASE, NAMESPACE, ME, wait_s=1) as held:
        record = parse_lease(cluster.kube.get(LEASE_REF))
        cluster.kube.replace(render_lease(RELEASE, NAMESPACE, ME, time.time(), previous=record))
        held.forget()
    assert cluster.kube.get(LEASE_REF) is None


def test_a_deletion_can_be_tied_to_a_version(cluster: SandboxCluster) -> None:
    made = cluster.kube.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": NAMESPACE}}
    )
    ref = ObjectRef(CONFIG_MAP, "m", NAMESPACE)
    changed = cluster.kube.patch(ref, {"data": {"a": "b"}})
    with pytest.raises(Conflict):
        cluster.kube.delete(ref, version=made["metadata"]["resourceVersion"])
    assert cluster.kube.delete(ref, version=changed["metadata"]["resourceVersion"])
