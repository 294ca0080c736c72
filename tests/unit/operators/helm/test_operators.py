"""The generic Helm operator and the fleet's release operators against the sandbox's API server and a real helm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import (
    ApiUnavailable,
    DeadlinePassed,
    Forbidden,
    GateBlind,
    GateFailed,
    GateRefused,
    Invalid,
    PermanentError,
    ReleaseError,
    SpecError,
    TransientError,
)
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, DEPLOYMENT, JOB, LEASE, ObjectRef
from gpu_fleet.core.releases import components
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.verdict import failed, progressing, ready, unseen
from gpu_fleet.hooks.helm.hook import HelmHook, access_of, check_deadline
from gpu_fleet.operators.base import RETRY_POLICY
from gpu_fleet.operators.helm.base import lease_identity
from gpu_fleet.operators.helm.chart_tests import HelmTestOperator
from gpu_fleet.operators.helm.release import HelmReleaseOperator
from gpu_fleet.operators.helm.releases import (
    InstallReleaseOperator,
    ProveReleaseOperator,
    RemediateReleaseOperator,
    UninstallReleaseOperator,
)
from gpu_fleet.operators.helm.rollback import HelmRollbackOperator
from gpu_fleet.operators.helm.uninstall import HelmUninstallOperator
from gpu_fleet.operators.teardown import looks as teardown_looks
from gpu_fleet.sensors.helm import HelmReleaseSensor
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

pytestmark = pytest.mark.real_helm

REPOSITORY = Path(__file__).resolve().parents[4]
TINY = str(REPOSITORY / "tests" / "e2e" / "charts" / "tiny")
KINDS = str(REPOSITORY / "tests" / "e2e" / "charts" / "kinds")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    with sandbox_cluster(tmp_path) as found:
        yield found


def task_context(cluster: SandboxCluster) -> dict[str, Any]:
    ti = TaskInstance(spec=spec_at(str(cluster.access.path)))
    ti.task_id, ti.try_number, ti.map_index = "task", 1, -1  # type: ignore[attr-defined]
    return context(ti)


def operator(cluster: SandboxCluster, **changes: Any) -> HelmReleaseOperator:
    fields: dict[str, Any] = {
        "task_id": "task", "release_name": "tiny", "namespace": "ns", "chart": TINY, "access": cluster.access,
        "create_namespace": True, **changes,
    }  # fmt: skip
    return HelmReleaseOperator(**fields)


def test_installing_shows_values_and_manifest_without_secrets(cluster: SandboxCluster) -> None:
    task = operator(cluster, values={"message": "two"})
    found = task.execute(task_context(cluster))
    assert (found["revision"], found["actions"], found["proven"]) == (1, ["install 1"], False)
    assert task.values == {"message": "two"}
    assert "kind: Deployment" in task.manifest
    assert "hunter2" not in task.manifest
    assert {"values", "manifest"} <= set(task.template_fields)
    assert task.overwrite_rtif_after_execution


def test_access_may_come_as_json(cluster: SandboxCluster) -> None:
    assert operator(cluster, access=cluster.access.to_json()).execute(task_context(cluster))["revision"] == 1


def test_waiting_defers_without_the_lease_and_proves_in_the_end(cluster: SandboxCluster) -> None:
    task = operator(cluster, wait_for="workloads")
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(task_context(cluster))
    lease = cluster.kube.get(ObjectRef(LEASE, "gpu-fleet-release-tiny", "ns"))
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""
    arguments = deferred.value.trigger.serialize()[1]
    assert arguments["gate"] == "release_workloads"
    assert arguments["args"]["workloads"] == ["Deployment/ns/tiny"]
    assert deferred.value.timeout is None, "a deferral's own time-out would end the task without a word"
    event = {"type": "verdict", "gate": "release_workloads", "verdict": ready("RolledOut", "fine").to_json()}
    assert operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), event)["proven"]


def test_a_passed_deadline_proves_nothing(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    event = {"type": "deadline", "gate": "release_workloads", "verdict": progressing("RollingOut", "late").to_json()}
    waiting = operator(cluster, wait_for="workloads", remediation="none")
    with pytest.raises(DeadlinePassed, match="late"):
        waiting.execute_complete(task_context(cluster), event)
    ledger = cluster.kube.get(ObjectRef(CONFIG_MAP, "gpu-fleet-release-tiny", "ns"))
    assert "proven" not in (ledger or {})["data"]


LATE = {"type": "deadline", "gate": "release_workloads", "verdict": progressing("RollingOut", "late").to_json()}
FINE = {"type": "verdict", "gate": "release_workloads", "verdict": ready("RolledOut", "fine").to_json()}


def test_a_first_install_that_never_gets_ready_is_uninstalled(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    with pytest.raises(DeadlinePassed):
        operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), LATE)
    assert HelmHook(cluster.access).history("tiny", "ns") == ()


def test_an_upgrade_that_never_gets_ready_is_rolled_back_to_the_proven_revision(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), FINE)
    found = operator(cluster, values={"message": "bad"}).execute(task_context(cluster))
    waiting = operator(cluster, wait_for="workloads", values={"message": "bad"})
    with pytest.raises(DeadlinePassed):
        waiting.execute_complete(task_context(cluster), LATE, found["revision"], found["secretUid"])
    hook = HelmHook(cluster.access.to_json())
    assert [str(item.status) for item in hook.history("tiny", "ns")] == ["superseded", "superseded", "deployed"]
    assert hook.get_values("tiny", "ns") == {}
    assert hook.status("tiny", "ns").reason == "Proven"


def test_a_release_that_another_run_changed_meanwhile_is_left_alone(cluster: SandboxCluster) -> None:
    first = operator(cluster).execute(task_context(cluster))
    operator(cluster, values={"message": "two"}).execute(task_context(cluster))
    waiting = operator(cluster, wait_for="workloads")
    with pytest.raises(ReleaseError) as caught:
        waiting.execute_complete(task_context(cluster), LATE, first["revision"], first["secretUid"])
    assert caught.value.reason == "CandidateChanged"
    assert len(HelmHook(cluster.access).history("tiny", "ns")) == 2


def refuse(answer: Any) -> Any:
    """A caller's check of the upgraded revision."""

    def check(client: Any, result: Any) -> Any:
        assert client.get(ObjectRef(CONFIG_MAP, "tiny-config", "ns"))["data"]["message"] == "two"
        assert result["revision"] == 2
        if isinstance(answer, Exception):
            raise answer
        return answer

    return check


@pytest.mark.parametrize("answer", [False, GateFailed("no"), ValueError("no"), KeyError("no")])
def test_a_callers_check_decides_and_what_it_refuses_is_rolled_back(cluster: SandboxCluster, answer: Any) -> None:
    operator(cluster).execute(task_context(cluster))
    fine = operator(cluster, wait_for="workloads", check=lambda client, result: True)
    assert fine.execute_complete(task_context(cluster), FINE)["proven"]
    operator(cluster, values={"message": "two"}).execute(task_context(cluster))
    waiting = operator(cluster, wait_for="workloads", check=refuse(answer))
    with pytest.raises(GateFailed, match="no"):
        waiting.execute_complete(task_context(cluster), FINE)
    hook = HelmHook(cluster.access)
    assert [str(item.status) for item in hook.history("tiny", "ns")] == ["superseded", "superseded", "deployed"]
    assert hook.status("tiny", "ns").reason == "Proven"


# --- nothing to run --------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A chart with neither workloads nor CRDs."""
    chart = tmp_path / "charts" / "bare"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: bare\nversion: 1.0.0\n")
    manifest = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bare}\ndata: {message: {{ .Values.message | quote }}}\n"
    )
    (chart / "templates" / "all.yaml").write_text(manifest)
    return str(chart)


def test_a_release_without_workloads_is_proven_by_a_check_alone(cluster: SandboxCluster, bare: str) -> None:
    fields: dict[str, Any] = {"chart": bare, "values": {"message": "one"}, "wait_for": "workloads"}
    assert not operator(cluster, **fields).execute(task_context(cluster))["proven"]
    checked = operator(cluster, check=lambda client, result: None, **fields)
    assert checked.execute(task_context(cluster))["proven"]
    fields["values"] = {"message": "two"}
    with pytest.raises(GateFailed) as caught:
        operator(cluster, check=lambda client, result: False, **fields).execute(task_context(cluster))
    assert caught.value.reason == "CheckFailed"
    assert HelmHook(cluster.access).get_values("tiny", "ns") == {"message": "one"}


def set_status(cluster: SandboxCluster, wanted: int, name: str = "tiny", namespace: str = "ns") -> None:
    """The Deployment as its controller leaves it."""
    ref = ObjectRef(DEPLOYMENT, name, namespace)
    cluster.kube.patch(ref, {"spec": {"replicas": wanted}})
    generation = (cluster.kube.get(ref) or {})["metadata"]["generation"]
    status = {
        "observedGeneration": generation, "replicas": wanted, "updatedReplicas": wanted, "availableReplicas": wanted,
    }  # fmt: skip
    cluster.kube.patch(ref, {"status": status}, subresource="status")


def test_workloads_that_want_no_pod_end_unproven(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    set_status(cluster, 0)
    found = operator(cluster, wait_for="workloads", drift="ignore").execute(task_context(cluster))
    assert (found["actions"], found["proven"]) == ([], False)
    set_status(cluster, 1)
    assert operator(cluster, wait_for="workloads", drift="ignore").execute(task_context(cluster))["proven"]


def test_a_job_that_the_cluster_has_deleted_is_not_missed(cluster: SandboxCluster, tmp_path: Path) -> None:
    """A rerun of a healthy release, after the Job's time to live: it was uninstalled for a missing workload."""
    chart = tmp_path / "charts" / "tiny"
    shutil.copytree(TINY, chart)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    spec = {"ttlSecondsAfterFinished": 60, "template": template}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": spec}
    (chart / "templates" / "job.yaml").write_text(json.dumps(job))
    fields: dict[str, Any] = {"chart": str(chart), "wait_for": "workloads"}
    operator(cluster, chart=str(chart)).execute(task_context(cluster))
    set_status(cluster, 1)
    with pytest.raises(TaskDeferred):
        operator(cluster, **fields).execute(task_context(cluster))
    cluster.kube.delete(ObjectRef(JOB, "once", "ns"))
    found = operator(cluster, **fields).execute(task_context(cluster))
    assert (found["passing"], found["actions"], found["proven"]) == (["Job/ns/once"], [], True)
    sensor = HelmReleaseSensor(**common(cluster, mode="poke"))
    assert sensor.execute(task_context(cluster))["revision"] == 1


# --- looking again before anything is undone -------------------------------------------------------------------------

NO_EYES = unseen("Forbidden", "cannot list pods", permanent=True)
BLIND = {"type": "verdict", "gate": "release_workloads", "verdict": NO_EYES.to_json()}
BLIND_LATE = {**BLIND, "type": "deadline", "verdict": unseen("ApiUnavailable", "503", permanent=False).to_json()}


@pytest.mark.parametrize("event", [LATE, BLIND, BLIND_LATE], ids=["late", "blind", "blind until the deadline"])
def test_what_is_ready_after_all_is_proven_not_undone(cluster: SandboxCluster, event: Any) -> None:
    operator(cluster).execute(task_context(cluster))
    set_status(cluster, 1)
    assert operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), event)["proven"]


@pytest.mark.parametrize(
    ("event", "trouble", "error"),
    [(LATE, Forbidden, GateBlind), (BLIND, Forbidden, GateBlind), (LATE, ApiUnavailable, ApiUnavailable)],
    ids=["late, no permission", "nobody has the permission", "late, no answer"],
)
def test_nothing_is_undone_by_a_task_that_cannot_look(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, event: Any, trouble: Any, error: type[Exception]
) -> None:
    def refuse(access: Any, query: Any) -> Any:
        raise trouble("not now")

    operator(cluster).execute(task_context(cluster))
    monkeypatch.setattr("gpu_fleet.triggers.looking._list", refuse)
    with pytest.raises(error, match="not now"):
        operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), event)
    assert [str(item.status) for item in HelmHook(cluster.access).history("tiny", "ns")] == ["deployed"]


def test_nothing_is_undone_by_a_first_look_that_is_refused(cluster: SandboxCluster) -> None:
    cluster.fail_requests(verb="list", kind="Deployment", status=403, message="not now")
    with pytest.raises(GateBlind, match="not now"):
        operator(cluster, wait_for="workloads").execute(task_context(cluster))
    assert [str(item.status) for item in HelmHook(cluster.access).history("tiny", "ns")] == ["deployed"]


def test_a_triggerer_that_cannot_look_undoes_nothing_while_the_worker_sees_no_fault(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    with pytest.raises(GateBlind, match="cannot list pods"):
        operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), BLIND)
    assert len(HelmHook(cluster.access).history("tiny", "ns")) == 1


def test_events_that_may_not_be_read_only_make_the_message_poorer(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    set_status(cluster, 1)
    cluster.fail_requests(verb="list", kind="Event", status=403, message="no")
    assert operator(cluster, wait_for="workloads").execute(task_context(cluster))["proven"]


@pytest.mark.parametrize("event", [LATE, BLIND, BLIND_LATE], ids=["late", "blind", "blind until the deadline"])
@pytest.mark.parametrize("blind", [True, False], ids=["worker blind", "worker sees it ready"])
def test_the_fleets_remediation_undoes_nothing_unseen(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, event: Any, blind: bool
) -> None:
    component(monkeypatch, TINY)
    InstallReleaseOperator(task_id="task", component="karpenter").execute(task_context(cluster))
    set_status(cluster, 1, "karpenter", "kube-system")
    remedy = RemediateReleaseOperator(task_id="task", component="karpenter")
    if blind:
        cluster.fail_requests(verb="list", kind="Deployment", status=403, message="not for you")
        with pytest.raises(GateBlind, match="not for you"):
            remedy.considered(task_context(cluster), event)
        with pytest.raises(GateBlind, match="not for you"):
            remedy.execute(task_context(cluster))
    else:
        assert remedy.considered(task_context(cluster), event)["why"] == "RolledOut"


@pytest.mark.parametrize("blind", [False, True])
def test_a_proof_that_saw_nothing_does_not_cut_the_remedys_own_wait_short(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    component(monkeypatch, TINY)
    InstallReleaseOperator(task_id="install", component="karpenter").execute(task_context(cluster))
    with DAG("d", schedule=None) as dag:
        prove = ProveReleaseOperator(task_id="prove", component="karpenter")
        remedy = RemediateReleaseOperator(task_id="remedy", component="karpenter")
        prove >> remedy
    found = {**task_context(cluster), "dag": dag}
    found["ti"].task_states["prove"] = "failed"
    verdict = unseen("Forbidden", "not for you", permanent=True) if blind else failed("Crashing", "it crashes")
    with pytest.raises(GateBlind if blind else GateRefused):
        prove.proven(found, {"type": "verdict", "gate": "release_workloads", "verdict": verdict.to_json()})
    # Nothing is ready yet, and nothing is wrong with it either.
    if blind:
        with pytest.raises(TaskDeferred):
            remedy.execute(found)
    else:
        with pytest.raises(ReleaseError, match="no revision"):
            remedy.execute(found)


def common(cluster: SandboxCluster, **changes: Any) -> dict[str, Any]:
    return {"task_id": "task", "release_name": "tiny", "namespace": "ns", "access": cluster.access.to_json(), **changes}


def test_rolling_back_to_the_proven_and_to_a_named_revision(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), FINE)
    operator(cluster, values={"message": "two"}).execute(task_context(cluster))
    back = HelmRollbackOperator(**common(cluster)).execute(task_context(cluster))
    assert (back["actions"], back["proven"], back["history"][-1]) == (["rollback 1"], True, "3 deployed")
    assert HelmRollbackOperator(**common(cluster, revision="")).execute(task_context(cluster))["actions"] == []
    forth = HelmRollbackOperator(**common(cluster, revision="2")).execute(task_context(cluster))
    assert forth["actions"] == ["rollback 2"]
    assert HelmRollbackOperator(**common(cluster, revision=2)).execute(task_context(cluster))["actions"] == []
    for revision, reason in ((9, "TargetPruned"),):
        with pytest.raises(ReleaseError) as caught:
            HelmRollbackOperator(**common(cluster, revision=revision)).execute(task_context(cluster))
        assert caught.value.reason == reason
    with pytest.raises(SpecError):
        HelmRollbackOperator(**common(cluster, revision="last")).execute(task_context(cluster))


def test_uninstalling_any_release(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    for actions in (["uninstall 1"], []):
        gone = HelmUninstallOperator(**common(cluster)).execute(task_context(cluster))
        assert (gone["actions"], gone["leftovers"]) == (actions, [])


def test_a_chart_without_tests_is_not_tested(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    with pytest.raises(Invalid, match="no tests"):
        HelmTestOperator(**common(cluster)).execute(task_context(cluster))


def test_the_sensor_sees_absent_deployed_and_later_revisions(cluster: SandboxCluster) -> None:
    def sensor(**changes: Any) -> HelmReleaseSensor:
        return HelmReleaseSensor(**common(cluster, workloads=False, mode="poke", **changes))

    assert not sensor().poke({})
    assert sensor(absent=True).poke({})
    operator(cluster).execute(task_context(cluster))
    assert sensor().poke({})
    assert sensor(revision=1).execute(task_context(cluster))["status"] == "deployed"
    assert not sensor(revision="2").poke({})
    assert not sensor(absent=True).poke({})
    with pytest.raises(TaskDeferred):
        HelmReleaseSensor(**common(cluster, mode="poke")).execute(task_context(cluster))


def test_the_sensor_does_not_wait_for_what_wants_no_pod_unless_told_to(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    set_status(cluster, 0)
    fields = common(cluster, mode="poke")
    assert HelmReleaseSensor(**fields).execute(task_context(cluster))["status"] == "deployed"
    with pytest.raises(TaskDeferred):
        HelmReleaseSensor(**fields, allow_unproven=False).execute(task_context(cluster))


@pytest.mark.parametrize(
    ("access", "field"),
    [
        ({"mode": "ssh"}, "access.mode"),
        ({"mode": "eks"}, "access.cluster_name"),
        ({"mode": "eks", "cluster": "x"}, "access"),
        ("cluster", "access"),
    ],
)
def test_a_way_to_no_cluster_names_its_field(access: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        access_of(access)
    assert caught.value.field == field


def test_on_eks_no_helm_command_may_outlive_its_token() -> None:
    eks = {"mode": "eks", "cluster_name": "prod", "region": "eu-central-1"}
    fields: dict[str, Any] = {"task_id": "a", "release_name": "r", "namespace": "n", "chart": "/c", "access": eks}
    task = HelmReleaseOperator(**fields, command_deadline=timedelta(minutes=15))
    with pytest.raises(SpecError) as caught:
        task.execute({})
    assert caught.value.field == "command_deadline"
    request = ReleaseRequest("r", "n", ChartRef("/c"), policy=ReleasePolicy(deadline=900))
    with pytest.raises(SpecError, match="14 minutes"):
        HelmHook(eks).install_or_upgrade(request)
    check_deadline(access_of(eks), ReleasePolicy(deadline=840))
    check_deadline(access_of({"mode": "kubeconfig"}), ReleasePolicy(deadline=3600))


def test_what_is_permanent_is_not_retried_unless_the_caller_says_so() -> None:
    fields: dict[str, Any] = {"release_name": "r", "namespace": "n", "chart": "c", "access": {"mode": "kubeconfig"}}
    assert HelmReleaseOperator(task_id="a", **fields).retry_policy is RETRY_POLICY
    assert HelmReleaseOperator(task_id="a", retry_policy=None, **fields).retry_policy is None


def test_a_task_killed_before_the_end_does_not_succeed(cluster: SandboxCluster) -> None:
    task = operator(cluster)
    task.on_kill()
    with pytest.raises(TransientError, match="killed"):
        task.execute(task_context(cluster))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"values": ["a"]}, "values"),
        ({"release_name": "Bad Name"}, "release_name"),
        ({"chart": "tiny", "repository": "https://h"}, "version"),
        ({"chart": ""}, "chart"),
    ],
)
def test_bad_arguments_name_their_field(cluster: SandboxCluster, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        operator(cluster, **changes).execute(task_context(cluster))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"check": lambda client, result: True}, "check"), ({"wait_for": "pods"}, "wait_for")],
    ids=["a check that would never be asked", "a wait for nothing known"],
)
def test_what_would_not_be_done_is_refused_when_the_dag_is_parsed(changes: dict[str, Any], field: str) -> None:
    fields: dict[str, Any] = {"release_name": "r", "namespace": "n", "chart": "c", "access": {"mode": "kubeconfig"}}
    with pytest.raises(SpecError) as caught:
        HelmReleaseOperator(task_id="a", **fields, **changes)
    assert caught.value.field == field
    assert caught.value.remedy
    HelmReleaseOperator(task_id="b", check=lambda client, result: True, wait_for="installed", **fields)


def test_the_identity_names_run_task_try_and_process(cluster: SandboxCluster) -> None:
    identity = lease_identity(task_context(cluster))
    assert identity.startswith("gpu_lifecycle.demo/manual__1/task/1@")


def component(monkeypatch: pytest.MonkeyPatch, chart: str) -> None:
    """The demo's releases, made of a local chart: where charts come from is tested elsewhere."""
    from dataclasses import replace

    real = components.release_request

    def local(spec: Any, name: Any, **more: Any) -> Any:
        return replace(real(spec, name, **more), chart=ChartRef(chart), values={})

    monkeypatch.setattr(components, "release_request", local)


def test_crds_are_installed_proven_and_uninstalled(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    component(monkeypatch, KINDS)
    install = InstallReleaseOperator(task_id="task", component="karpenter-crd")
    assert install.execute(task_context(cluster))["crds"] == ["widgets.example.com"]
    assert "(schema left out)" in install.manifest
    prove = ProveReleaseOperator(task_id="task", component="karpenter-crd")
    assert prove.execute(task_context(cluster))["proven"]
    remedy = RemediateReleaseOperator(task_id="task", component="karpenter-crd")
    assert remedy.execute(task_context(cluster)) == {"remediation": "nothing", "why": "Proven"}
    for _ in range(2):
        gone = UninstallReleaseOperator(task_id="task", component="karpenter-crd").execute(task_context(cluster))
        assert gone["leftovers"] == []
    assert cluster.kube.get(ObjectRef(CONFIG_MAP, "gpu-fleet-release-karpenter-crd", "kube-system")) is None


def test_proving_what_is_not_installed_is_an_error(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    component(monkeypatch, KINDS)
    with pytest.raises(ReleaseError) as caught:
        ProveReleaseOperator(task_id="task", component="karpenter-crd").execute(task_context(cluster))
    assert caught.value.reason == "NotTheCandidate"


def test_nothing_installed_is_nothing_to_remedy(cluster: SandboxCluster) -> None:
    found = RemediateReleaseOperator(task_id="task", component="karpenter").execute(task_context(cluster))
    assert found == {"remediation": "nothing", "why": "NoRelease"}


def test_an_unknown_component_is_refused(cluster: SandboxCluster) -> None:
    with pytest.raises(SpecError, match="device-plugin"):
        InstallReleaseOperator(task_id="task", component="gpu-operator").execute(task_context(cluster))


def test_the_device_plugin_stays_while_it_serves_gpu_nodes_of_others(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown_looks, "node_groups_of", lambda spec: [])
    template = {
        "metadata": {"labels": {"d": "d"}},
        "spec": {"nodeSelector": {"nvidia.com/gpu.present": "true"}, "containers": [{"name": "c", "image": "x"}]},
    }
    namespace = spec_at(str(cluster.access.path)).device_plugin.namespace
    owner = {"meta.helm.sh/release-name": "nvidia-device-plugin", "meta.helm.sh/release-namespace": namespace}
    cluster.kube.create(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "plugin", "namespace": "default", "annotations": owner},
            "spec": {"selector": {"matchLabels": {"d": "d"}}, "template": template},
        }
    )
    metadata = {"name": "theirs", "labels": {"nvidia.com/gpu.present": "true"}}
    cluster.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    uninstall = UninstallReleaseOperator(task_id="task", component="device-plugin")
    found = uninstall.execute(task_context(cluster))
    why = ["GPU node theirs has GPUs and is not removed"]
    assert found == {"release": "nvidia-device-plugin", "kept": "InUse", "why": why}


def test_the_device_plugin_stays_if_it_was_approved_to_stay_and_without_any_plan(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown_looks, "node_groups_of", lambda spec: [])
    uninstall = UninstallReleaseOperator(task_id="task", component="device-plugin", plan_task_id="plan_again")
    here = task_context(cluster)
    with pytest.raises(PermanentError, match="clear plan_again") as caught:
        uninstall.execute(here)
    assert caught.value.reason == "NoPlan"
    here["ti"].xcoms["return_value"] = {"plan": {"keeps": {"devicePlugin": ["NodePool vision"], "runtimeClass": []}}}
    assert uninstall.execute(here)["why"] == ["NodePool vision (when the teardown was approved)"]


# --- beside admission webhooks ---------------------------------------------------------------------------------------

ECR = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
#: Kyverno's rules for pods, generated for their controllers as well.
REWRITES = {
    "registry": ECR,
    "env": {"DD_AGENT_HOST": "10.0.0.1"},
    "labels": {"team": "x"},
    "kinds": ["Pod", "Deployment", "DaemonSet", "StatefulSet", "Job"],
}


def test_a_webhook_that_rewrites_workloads_is_no_drift_and_makes_no_second_revision(cluster: SandboxCluster) -> None:
    """A dry run passes the webhook, too, so it is compared with what the webhook makes of the manifest."""
    cluster.faults.set("mutate-pods", REWRITES)
    first = operator(cluster).execute(task_context(cluster))
    assert operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), FINE)["proven"]
    live = cluster.kube.get(ObjectRef(DEPLOYMENT, "tiny", "ns"))
    assert live is not None
    (container,) = live["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith(f"{ECR}/")
    assert HelmHook(cluster.access).status("tiny", "ns").reason == "Proven"
    again = operator(cluster).execute(task_context(cluster))
    assert (again["revision"], again["actions"]) == (first["revision"], [])


def test_a_webhook_that_came_later_is_seen_once_and_converges(cluster: SandboxCluster) -> None:
    operator(cluster).execute(task_context(cluster))
    operator(cluster, wait_for="workloads").execute_complete(task_context(cluster), FINE)
    cluster.faults.set("mutate-pods", REWRITES)
    assert operator(cluster).execute(task_context(cluster))["actions"] == ["upgrade 2"]
    assert operator(cluster).execute(task_context(cluster))["actions"] == []
