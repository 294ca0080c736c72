"""The drift check against the sandbox's API server, on which everything is installed as the demo's spec says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from gpu_fleet.core.drift import managed_manifests
from gpu_fleet.core.errors import DriftFound, GateFailed, TransientError
from gpu_fleet.core.kubernetes.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
    LEASE,
    NODE,
    NODE_CLAIM,
    NODE_OVERLAY,
    NODE_POOL,
    PRIORITY_CLASS,
    RUNTIME_CLASS,
    SECRET,
    SERVICE_ACCOUNT,
    ObjectRef,
)
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, InUse
from gpu_fleet.core.manifests.pool_facts import UNKNOWN
from gpu_fleet.core.releases import storage
from gpu_fleet.core.releases.components import COMPONENTS, release_request
from gpu_fleet.core.releases.drift import FIELD_MANAGER as HELM
from gpu_fleet.core.releases.drift import completed
from gpu_fleet.core.releases.lease import lease_name, render_lease
from gpu_fleet.core.releases.ledger import Entry, Ledger
from gpu_fleet.hooks.cluster import drift as drift_hook
from gpu_fleet.hooks.cluster.drift import DriftCheck
from gpu_fleet.hooks.helm.storage import ReleaseStorage
from gpu_fleet.hooks.kubernetes import transport as kubernetes_transport
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.preflight.drift import DRIFT, UNREAD, CheckDriftOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core.neighbour_objects import config_map, daemon_set, slicing, static
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

NODE_POOL_REF = ObjectRef(NODE_POOL, "shared-a10g")
NVIDIA = ObjectRef(RUNTIME_CLASS, "nvidia")


@pytest.fixture(autouse=True)
def known_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No AWS here: the tables of the package say what EC2 would."""
    monkeypatch.setattr(drift_hook, "pool_facts", lambda spec, pool: UNKNOWN)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        define_karpenter(cluster.kube)
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    """As a lifecycle leaves it: all manifests applied, all releases deployed and proven, one node of a pool."""
    spec = spec_at(str(shared.access.path))
    for managed in managed_manifests(spec):
        shared.kube.apply(managed.manifest)
    for component in COMPONENTS:
        install(shared.kube, spec, component)
    labels = {LABEL_NODE_POOL: "shared-a10g"}
    shared.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": labels}})
    yield shared
    shared.faults.clear()
    shared.kube.delete(ObjectRef(NODE, "n1"))
    for managed in managed_manifests(spec):
        kind, name = managed.manifest["kind"], managed.manifest["metadata"]["name"]
        if kind != "Namespace":
            shared.kube.delete(shared.kube.ref(managed.manifest["apiVersion"], kind, name))
    for namespace in ("kube-system", "nvidia-device-plugin"):
        for secret in shared.kube.list(SECRET, namespace, label_selector="owner=helm"):
            shared.kube.delete(ObjectRef(SECRET, secret["metadata"]["name"], namespace))
        for record in shared.kube.list(CONFIG_MAP, namespace):
            shared.kube.delete(ObjectRef(CONFIG_MAP, record["metadata"]["name"], namespace))


def manifest_of(release: str) -> dict[str, Any]:
    """A release's one object here."""
    metadata = {"name": f"{release}-account", "labels": {"chart": "x"}}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def install(
    kube: KubeClient, spec: Any, component: Any, *, proven: bool = True, in_use: InUse = NOTHING_IN_USE
) -> None:
    """A deployed revision in Helm's storage, its object, and the ledger that knows it."""
    request = release_request(spec, component, in_use=in_use)
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": request.namespace}})
    document = manifest_of(request.name)
    kube.apply(completed(document, request.name, request.namespace, request.namespace), field_manager=HELM, force=True)
    payload = {
        "name": request.name,
        "info": {"status": "deployed"},
        "version": 1,
        "chart": {"metadata": {"name": request.chart.name, "version": request.chart.version}},
        "config": dict(request.values),
        "manifest": yaml.safe_dump(document),
    }
    labels = {"name": request.name, "owner": "helm", "status": "deployed", "version": "1"}
    secret = kube.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": storage.SECRET_TYPE,
            "metadata": {
                "name": storage.secret_name(request.name, 1),
                "namespace": request.namespace,
                "labels": {**labels, storage.LABEL_DIGEST: request.digest},
            },
            "data": {"release": storage.encode_payload(payload)},
        }
    )
    entry = Entry(1, request.digest, secret["metadata"]["uid"], "2026-01-01T00:00:00Z", "gpu_lifecycle.demo/1")
    ledger = Ledger(candidate=entry, proven=entry if proven else None)
    ReleaseStorage(kube, request.name, request.namespace).write_ledger(ledger)


def check(cluster: SandboxCluster, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    """The XCom ``drift``, and what was returned or raised."""
    ti = TaskInstance(spec=spec_at(str(cluster.access.path), **changes))
    operator = CheckDriftOperator(task_id="check_drift")
    try:
        outcome: Any = operator.execute(context(ti))
    except (DriftFound, GateFailed) as error:
        outcome = error
    return ti.xcoms[DRIFT], (outcome, ti.xcoms[UNREAD])


def brief(drift: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(item["kind"], item["object"], item["field"], item["wanted"], item["found"]) for item in drift]


def test_a_cluster_as_its_spec_says_has_no_drift_however_often_it_is_looked_at(cluster: SandboxCluster) -> None:
    before = cluster.kube.get(NODE_POOL_REF)
    for _ in range(3):
        drift, (outcome, unread) = check(cluster)
        assert (drift, unread) == ([], [])
        assert outcome["compared"] >= 8 + 3 + 3
    assert cluster.kube.get(NODE_POOL_REF) == before


def test_what_karpenter_itself_writes_is_no_drift(cluster: SandboxCluster) -> None:
    body = {"metadata": {"annotations": {"karpenter.sh/nodepool-hash": "123"}, "finalizers": ["karpenter.sh/x"]}}
    cluster.kube.patch(NODE_POOL_REF, body, field_manager="karpenter")
    status = {"status": {"resources": {"nodes": "2"}}}
    cluster.kube.patch(NODE_POOL_REF, status, subresource="status", field_manager="karpenter")
    try:
        assert check(cluster)[0] == []
    finally:
        cluster.kube.patch(NODE_POOL_REF, {"metadata": {"finalizers": None}})


def test_a_deleted_object_is_reported_and_the_task_fails_for_good(cluster: SandboxCluster) -> None:
    cluster.kube.delete(NVIDIA)
    drift, (error, _) = check(cluster)
    assert brief(drift) == [("deleted", "RuntimeClass nvidia", "", "present", None)]
    assert isinstance(error, DriftFound)
    assert error.reason == "Drifted"
    assert "RuntimeClass nvidia deleted" in error.message


def test_a_changed_field_is_reported_with_both_values_and_who_did_it(cluster: SandboxCluster) -> None:
    cluster.kube.patch(NODE_POOL_REF, {"spec": {"limits": {"nodes": "99"}}}, field_manager="kubectl-edit")
    drift, _ = check(cluster)
    assert brief(drift) == [("changed", "NodePool shared-a10g", "spec.limits.nodes", "4", "99")]
    assert drift[0]["by"] == "kubectl-edit"


def test_a_removed_and_an_added_field_are_told_apart(cluster: SandboxCluster) -> None:
    body = {"spec": {"template": {"spec": {"taints": None}}, "limits": {"memory": "1Ti"}}}
    cluster.kube.patch(NODE_POOL_REF, body, field_manager="kubectl-edit")
    kinds = {(item["kind"], item["field"], str(item["found"])) for item in check(cluster)[0]}
    assert kinds == {("deleted", "spec.template.spec.taints", "None"), ("added", "spec.limits.memory", "1Ti")}


def test_a_pool_that_left_the_spec_is_reported(cluster: SandboxCluster) -> None:
    old = cluster.kube.get(NODE_POOL_REF) or {}
    metadata = {"name": "old-pool", "labels": old["metadata"]["labels"]}
    cluster.kube.apply({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": metadata, "spec": old["spec"]})
    try:
        assert brief(check(cluster)[0]) == [("added", "NodePool old-pool", "", None, "present")]
    finally:
        cluster.kube.delete(ObjectRef(NODE_POOL, "old-pool"))


def test_what_is_made_on_demand_is_not_missed(cluster: SandboxCluster) -> None:
    cluster.kube.delete(ObjectRef(PRIORITY_CLASS, "gpu-fleet-placeholder"))
    assert check(cluster)[0] == []


def test_an_object_of_a_release_is_compared_with_helms_manifest(cluster: SandboxCluster) -> None:
    name = "nvidia-device-plugin-account"
    ref = ObjectRef(SERVICE_ACCOUNT, name, "nvidia-device-plugin")
    cluster.kube.patch(ref, {"metadata": {"labels": {"chart": "other"}}}, field_manager="kubectl")
    target = f"ServiceAccount nvidia-device-plugin/{name}"
    assert brief(check(cluster)[0]) == [("changed", target, "metadata.labels.chart", "x", "other")]
    cluster.kube.delete(ref)
    assert brief(check(cluster)[0]) == [("deleted", target, "", "present", None)]


def test_a_release_of_other_content_names_the_value(cluster: SandboxCluster) -> None:
    value = spec_at(str(cluster.access.path)).to_json()["devicePlugin"]
    changed = {**value, "chart": {**value["chart"], "version": "0.19.3"}}
    found = brief(check(cluster, devicePlugin=changed)[0])
    target = "release nvidia-device-plugin/nvidia-device-plugin"
    assert found == [("changed", target, "chart.version", "0.19.3", value["chart"]["version"])]


@pytest.mark.parametrize("with_node", [True, False])
def test_an_unproven_plugin_is_drift_only_where_a_node_could_have_proven_it(
    cluster: SandboxCluster, with_node: bool
) -> None:
    spec = spec_at(str(cluster.access.path))
    namespace = "nvidia-device-plugin"
    cluster.kube.delete(ObjectRef(SECRET, storage.secret_name(namespace, 1), namespace))
    cluster.kube.delete(ObjectRef(CONFIG_MAP, f"gpu-fleet-release-{namespace}", namespace))
    install(cluster.kube, spec, "device-plugin", proven=False)
    if not with_node:
        cluster.kube.delete(ObjectRef(NODE, "n1"))
    found = [(item["field"], item["wanted"], item["found"]) for item in check(cluster)[0]]
    assert found == ([("proven", True, False)] if with_node else [])


def test_parts_that_are_managed_elsewhere_are_left_out(cluster: SandboxCluster) -> None:
    cluster.kube.delete(NVIDIA)
    namespace = "nvidia-device-plugin"
    cluster.kube.delete(ObjectRef(SECRET, storage.secret_name(namespace, 1), namespace))
    spec = spec_at(str(cluster.access.path)).to_json()
    theirs = {
        "runtimeClass": {**spec["runtimeClass"], "manage": False},
        "devicePlugin": {**spec["devicePlugin"], "manage": False},
    }
    # Then the plugin is somebody else's; the spec is about what it does.
    drift, _ = check(cluster, **theirs)
    assert [(item["object"], item["field"]) for item in drift] == [
        ("pool shared-a10g", "NoDevicePlugin"),
        ("pool whole-a100", "NoDevicePlugin"),
    ]
    with theirs_installed(cluster.kube, exclusive="version: v1", time_slicing_4=slicing(4)):
        assert check(cluster, **theirs)[0] == []
    with theirs_installed(cluster.kube, exclusive="version: v1", time_slicing_4=slicing(8)):
        (drift,) = check(cluster, **theirs)[0]
    assert drift["field"] == "ConfigEntryDiffers"
    assert "time-slicing, 8 per GPU" in drift["found"]


@contextmanager
def theirs_installed(kube: KubeClient, **entries: str) -> Iterator[None]:
    """Somebody else's release of NVIDIA's chart, with these configs."""
    plugin = daemon_set("their-plugin", "kube-system", config_map="their-configs", managed=True, default="exclusive")
    meta = {"name": "their-configs", "namespace": "kube-system"}
    del plugin["metadata"]["uid"]
    kube.apply(plugin)
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **config_map(**entries)})
    try:
        yield
    finally:
        kube.delete(ObjectRef(DAEMON_SET, "their-plugin", "kube-system"))
        kube.delete(ObjectRef(CONFIG_MAP, "their-configs", "kube-system"))


def test_a_second_device_plugin_is_drift_and_gone_it_is_none(cluster: SandboxCluster) -> None:
    plugin = static()
    del plugin["metadata"]["uid"]
    cluster.kube.apply(plugin)
    try:
        (found,) = check(cluster)[0]
    finally:
        cluster.kube.delete(ObjectRef(DAEMON_SET, plugin["metadata"]["name"], "kube-system"))
    assert (found["kind"], found["object"]) == ("added", "DaemonSet kube-system/nvidia-device-plugin-daemonset")
    assert found["field"] == "ForeignDevicePlugin"
    assert "shared-a10g, whole-a100" in found["found"]
    assert check(cluster)[0] == []


def test_what_cannot_be_known_of_others_is_no_pass(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="list", kind="DaemonSet", status=403, reason="Forbidden")
    _, (error, unread) = check(cluster)
    assert error.reason == "DriftUnknown"
    assert ("all DaemonSets", "NeighboursUnknown") in [(item["object"], item["reason"]) for item in unread]


def test_what_cannot_be_read_for_a_while_is_named_and_looked_at_again(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_transport, "RETRY_BUDGET_S", 0.5)
    cluster.fail_requests(verb="patch", kind="RuntimeClass", status=503)
    drift, (error, unread) = check(cluster)
    assert drift == []
    assert isinstance(error, GateFailed)
    assert error.reason == "DriftUnknown"
    assert [item["object"] for item in unread] == ["RuntimeClass nvidia"]


def test_what_may_not_be_read_is_named_and_is_no_pass(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="patch", kind="RuntimeClass", status=403, reason="Forbidden")
    _, (error, unread) = check(cluster)
    assert isinstance(error, DriftFound)
    assert error.reason == "DriftUnknown"
    assert unread[0]["reason"] == "Forbidden"


def test_drifted_nodes_are_named_and_fail_nothing(cluster: SandboxCluster) -> None:
    """They are the normal state while long jobs run."""
    marks = {"karpenter.sh/nodepool-hash": "1", "karpenter.sh/nodepool-hash-version": "v3"}
    pool = cluster.kube.get(NODE_POOL_REF)
    assert pool is not None
    spec = {key: value for key, value in pool["spec"]["template"]["spec"].items() if key != "taints"}
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": "old", "labels": {LABEL_NODE_POOL: "shared-a10g"}, "annotations": marks},
        "spec": spec,
    }
    cluster.kube.create(claim)
    ref = ObjectRef(NODE_CLAIM, "old")
    cluster.kube.patch(ref, {"status": {"nodeName": "n1"}}, subresource="status")
    known = {"metadata": {"annotations": marks | {"karpenter.sh/nodepool-hash": "2"}}}
    cluster.kube.patch(NODE_POOL_REF, known, field_manager="karpenter")
    ti = TaskInstance(spec=spec_at(str(cluster.access.path)))
    try:
        assert CheckDriftOperator(task_id="check_drift").execute(context(ti))["drifted"] == 1
    finally:
        cluster.kube.delete(ref)
    (node,) = ti.xcoms["drifted"]
    assert node["node"] == "n1"
    assert {"field": "taints", "was": "", "now": "nvidia.com/gpu=true:NoSchedule"} in node["changes"]


def test_nodes_that_may_not_be_read_are_no_pass(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="list", resource="nodeclaims", status=403, reason="Forbidden")
    _, (error, unread) = check(cluster)
    assert error.reason == "DriftUnknown"
    # Whose config entries the release has to keep is read from the nodes, too.
    plugin = "release nvidia-device-plugin/nvidia-device-plugin"
    assert [item["object"] for item in unread] == [plugin, "the pools' nodes"]


def test_damaged_storage_is_named(cluster: SandboxCluster) -> None:
    namespace = "nvidia-device-plugin"
    ref = ObjectRef(SECRET, storage.secret_name(namespace, 1), namespace)
    cluster.kube.patch(ref, {"data": {"release": "bm90IGhlbG0="}})
    _, (error, unread) = check(cluster)
    assert error.reason == "DriftUnknown"
    assert unread[0]["object"] == f"release {namespace}/{namespace}"


def test_a_release_that_is_being_changed_is_looked_at_again(cluster: SandboxCluster) -> None:
    namespace = "nvidia-device-plugin"
    cluster.kube.create(render_lease(namespace, namespace, "dag/other@1", time.time(), previous=None))
    _, (error, unread) = check(cluster)
    cluster.kube.delete(ObjectRef(LEASE, lease_name(namespace), namespace))
    assert isinstance(error, GateFailed)
    assert [(item["object"], item["reason"]) for item in unread] == [
        (f"release {namespace}/{namespace}", "HeldByAnother")
    ]
    assert "dag/other@1" in unread[0]["message"]


# --- NodeOverlays -----------------------------------------------------------------------------------------------------

OVERLAY = ObjectRef(NODE_OVERLAY, "gpu-fleet-shared-a10g")


def test_an_overlay_that_promises_something_else_is_drift(cluster: SandboxCluster) -> None:
    cluster.kube.patch(OVERLAY, {"spec": {"capacity": {"nvidia.com/gpu": "8"}}}, field_manager="kubectl-edit")
    drift, (error, _) = check(cluster)
    assert isinstance(error, DriftFound)
    assert [(item["object"], item["field"], item["wanted"], item["found"]) for item in drift] == [
        (str(OVERLAY), "spec.capacity.nvidia.com/gpu", "4", "8")
    ]


def test_an_overlay_that_is_gone_is_drift(cluster: SandboxCluster) -> None:
    cluster.kube.delete(OVERLAY)
    drift, _ = check(cluster)
    assert [(item["kind"], item["object"]) for item in drift] == [("deleted", str(OVERLAY))]


def test_an_overlay_of_a_pool_that_shares_no_more_is_drift(cluster: SandboxCluster) -> None:
    found = cluster.kube.get(OVERLAY) or {}
    stale = {**found, "metadata": {"name": "gpu-fleet-whole-a100", "labels": found["metadata"]["labels"]}}
    cluster.kube.create(stale)
    drift, _ = check(cluster)
    cluster.kube.delete(ObjectRef(NODE_OVERLAY, "gpu-fleet-whole-a100"))
    assert [(item["kind"], item["object"]) for item in drift] == [("added", "NodeOverlay gpu-fleet-whole-a100")]


def test_a_pool_of_which_ec2_says_nothing_is_named_and_not_passed(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(spec: Any, pool: Any) -> Any:
        raise TransientError("EC2 does not answer", reason="Throttled")

    monkeypatch.setattr(drift_hook, "pool_facts", unknown)
    _, (error, unread) = check(cluster)
    assert isinstance(error, GateFailed)
    assert [item["object"] for item in unread] == ["NodePool shared-a10g", "NodePool whole-a100"]


# --- entries that living nodes carry ---------------------------------------------------------------------------------
def reinstall(cluster: SandboxCluster, used: InUse) -> None:
    namespace = "nvidia-device-plugin"
    cluster.kube.delete(ObjectRef(SECRET, storage.secret_name(namespace, 1), namespace))
    cluster.kube.delete(ObjectRef(CONFIG_MAP, f"gpu-fleet-release-{namespace}", namespace))
    install(cluster.kube, spec_at(str(cluster.access.path)), "device-plugin", in_use=used)


def carries(cluster: SandboxCluster, entry: str) -> None:
    body = {"metadata": {"labels": {"nvidia.com/device-plugin.config": entry}}}
    cluster.kube.patch(ObjectRef(NODE, "n1"), body)


OLD = InUse({"time-slicing-2": ("node n1",), "mps-4": ("node n2",)}, (("old", "NoSchedule"),))


def test_an_entry_that_a_node_carries_belongs_to_the_release(cluster: SandboxCluster) -> None:
    reinstall(cluster, OLD)
    carries(cluster, "time-slicing-2")
    assert check(cluster)[0] == []


def test_an_entry_that_no_node_carries_any_more_is_a_word_and_no_drift(cluster: SandboxCluster) -> None:
    reinstall(cluster, OLD)
    spec = spec_at(str(cluster.access.path))
    looked = DriftCheck(cluster.kube, spec).run()
    assert looked.drifts == []
    assert looked.notes == [
        "no node carries config entry mps-4 any more; the next lifecycle drops it",
        "no node carries config entry time-slicing-2 any more; the next lifecycle drops it",
    ]
    assert check(cluster)[0] == []


def test_an_entry_that_a_node_carries_and_the_release_lacks_is_drift(cluster: SandboxCluster) -> None:
    carries(cluster, "time-slicing-2")
    ((kind, target, field, _, found),) = brief(check(cluster)[0])
    assert (kind, target) == ("deleted", "release nvidia-device-plugin/nvidia-device-plugin")
    assert (field, found) == ("values.config.map.time-slicing-2", None)


def test_an_entry_that_is_none_of_ours_is_named(cluster: SandboxCluster) -> None:
    carries(cluster, "mig-mixed")
    looked = DriftCheck(cluster.kube, spec_at(str(cluster.access.path))).run()
    assert looked.drifts == []
    (note,) = looked.notes
    assert "'mig-mixed'" in note
    assert "node n1" in note
