"""Apply and delete against the sandbox's API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import FieldConflict, SpecError
from gpu_fleet.core.kubernetes.kinds import NODE, RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.verdict import ready
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator
from gpu_fleet.operators.teardown import looks as teardown_looks
from gpu_fleet.operators.teardown.delete import DeleteObjectsOperator, DeleteRuntimeClassOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

NVIDIA = ObjectRef(RUNTIME_CLASS, "nvidia")
REFS = [{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "nvidia"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    yield shared
    shared.faults.clear()
    found = shared.kube.get(NVIDIA)
    if found is not None:
        shared.kube.patch(NVIDIA, {"metadata": {"finalizers": None}})
        shared.kube.delete(NVIDIA)


def task_context(cluster: SandboxCluster) -> dict[str, Any]:
    return context(TaskInstance(spec=spec_at(str(cluster.access.path))))


def apply(cluster: SandboxCluster, **options: Any) -> tuple[ApplyManifestsOperator, Any]:
    operator = ApplyManifestsOperator(task_id="apply", **({"builder": "runtime_class"} | options))
    return operator, operator.execute(task_context(cluster))


def delete(cluster: SandboxCluster, **options: Any) -> Any:
    return DeleteObjectsOperator(task_id="delete", **options).execute(task_context(cluster))


def test_what_is_absent_is_created_and_a_second_time_nothing_changes(cluster: SandboxCluster) -> None:
    _, first = apply(cluster)
    before = cluster.kube.get(NVIDIA)
    _, second = apply(cluster)
    assert first["created"] == second["unchanged"] == ["RuntimeClass nvidia"]
    assert cluster.kube.get(NVIDIA) == before


def test_what_differs_is_changed(cluster: SandboxCluster) -> None:
    apply(cluster)
    cluster.kube.patch(NVIDIA, {"metadata": {"labels": None}}, field_manager="gpu-fleet")
    _, report = apply(cluster)
    assert report["changed"] == ["RuntimeClass nvidia"]


def test_several_objects_are_applied_in_the_builders_order(cluster: SandboxCluster) -> None:
    _, report = apply(cluster, builder="system_namespaces")
    done = report["created"] + report["unchanged"]
    assert done[0] == "Namespace gpu-fleet-system"
    assert len(done) == 3


def test_the_manifests_can_be_read_among_the_rendered_fields(cluster: SandboxCluster) -> None:
    operator, _ = apply(cluster)
    assert "manifests" in operator.template_fields
    assert operator.overwrite_rtif_after_execution
    (manifest,) = yaml.safe_load_all(operator.manifests)
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("RuntimeClass", "nvidia")


def test_a_field_of_another_manager_is_a_conflict_that_names_it_and_force_is_a_choice(cluster: SandboxCluster) -> None:
    apply(cluster)
    stolen = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
    labels = {"gpu-fleet.io/cluster": "other"}
    cluster.kube.apply(
        {**stolen, "metadata": {"name": "nvidia", "labels": labels}, "handler": "nvidia"},
        field_manager="somebody",
        force=True,
    )
    with pytest.raises(FieldConflict, match="somebody"):
        apply(cluster)
    _, report = apply(cluster, force=True)
    assert report["changed"] == ["RuntimeClass nvidia"]


@pytest.mark.parametrize("options", [{"builder": "nope"}, {"builder_args": {"nope": 1}}])
def test_a_wrong_builder_or_argument_is_the_dags_fault(cluster: SandboxCluster, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="nope"):
        apply(cluster, **options)


def test_an_unknown_pool_is_named(cluster: SandboxCluster) -> None:
    with pytest.raises(SpecError, match="nope"):
        apply(cluster, builder="node_pool", builder_args={"pool": "nope"})


@pytest.mark.parametrize("how", [{"refs": REFS}, {"builder": "runtime_class"}])
def test_deletion_is_idempotent(cluster: SandboxCluster, how: dict[str, Any]) -> None:
    apply(cluster)
    assert delete(cluster, **how)["deleted"] == ["RuntimeClass nvidia"]
    assert cluster.kube.get(NVIDIA) is None
    assert delete(cluster, **how)["absent"] == ["RuntimeClass nvidia"]


def test_what_others_made_is_kept_unless_told_otherwise(cluster: SandboxCluster) -> None:
    others = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "x"}
    cluster.kube.create(others)
    assert delete(cluster, refs=REFS)["kept"] == ["RuntimeClass nvidia"]
    assert cluster.kube.get(NVIDIA) is not None
    assert delete(cluster, refs=REFS, only_ours=False)["deleted"] == ["RuntimeClass nvidia"]


def test_waiting_for_absence_defers_only_while_something_holds_the_object(cluster: SandboxCluster) -> None:
    apply(cluster)
    assert delete(cluster, refs=REFS, wait=True)["deleted"] == ["RuntimeClass nvidia"]

    apply(cluster)
    cluster.kube.patch(NVIDIA, {"metadata": {"finalizers": ["example.com/hold"]}})
    with pytest.raises(TaskDeferred) as deferred:
        delete(cluster, refs=REFS, wait=True)
    assert deferred.value.trigger.gate == "object_gone"
    event = {"type": "verdict", "gate": "object_gone", "verdict": ready("ObjectGone", "gone").to_json()}
    operator = DeleteObjectsOperator(task_id="delete", refs=REFS, wait=True)
    report = operator.finish(task_context(cluster), event, **(deferred.value.kwargs or {}))
    assert report["deleted"] == ["RuntimeClass nvidia"]


@pytest.mark.parametrize("how", [{}, {"refs": REFS, "builder": "runtime_class"}])
def test_exactly_one_way_to_say_what(cluster: SandboxCluster, how: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="either builder or refs"):
        delete(cluster, **how)


def test_the_runtime_class_stays_while_others_have_gpu_nodes(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown_looks, "node_groups_of", lambda spec: [])
    apply(cluster)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "theirs"}}
    cluster.kube.create(node)
    here = ObjectRef(NODE, "theirs")
    try:
        cluster.kube.patch(here, {"status": {"capacity": {"nvidia.com/gpu": "1"}}}, subresource="status")
        operator = DeleteRuntimeClassOperator(task_id="delete_runtime_class")
        assert operator.execute(task_context(cluster))["kept"] == ["RuntimeClass nvidia"]
        assert cluster.kube.get(NVIDIA) is not None
    finally:
        cluster.kube.delete(here)
    assert DeleteRuntimeClassOperator(task_id="again").execute(task_context(cluster))["deleted"] == [
        "RuntimeClass nvidia"
    ]
