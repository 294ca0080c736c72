"""The release engine's decisions against a real helm and the sandbox's API server: who may undo what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import ClusterBusy, ReleaseError, TransientError
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, JOB, LEASE, SECRET, ObjectRef
from gpu_fleet.core.releases.lease import lease_name, parse_lease, render_lease
from gpu_fleet.core.releases.leftovers import Leftover
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.storage import ReleaseStatus, with_status
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from gpu_fleet.hooks.helm.lease import ReleaseLease
from tests.e2e.helm_world import CHARTS, helm_binary
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

pytestmark = pytest.mark.real_helm


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    with sandbox_cluster(tmp_path) as found:
        yield found


KEEP = {"helm.sh/resource-policy": "keep"}


class Waiting(ReleaseEngine):
    """An engine that finds the Lease held, and whose holder acts meanwhile."""

    meanwhile: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = self._session.lease

        def waited() -> ReleaseLease:
            self.meanwhile()
            return taken()

        self._session.lease = waited  # type: ignore[method-assign]


def engine(
    cluster: SandboxCluster,
    message: str = "one",
    *,
    run: str = "dag/run",
    chart: Path = CHARTS / "tiny",
    values: dict[str, Any] | None = None,
    **policy: Any,
) -> Waiting:
    wanted = {"message": message, **(values or {})}
    policy.setdefault("create_namespace", True)
    request = ReleaseRequest("tiny", "ns", ChartRef(str(chart)), wanted, ReleasePolicy(**policy))
    return Waiting(cluster.kube, request, me=f"{run}@{message}", run=run)


def statuses(cluster: SandboxCluster) -> dict[int, str]:
    return {item.revision: str(item.status) for item in engine(cluster).storage.revisions()}


def config(cluster: SandboxCluster, name: str = "tiny-config") -> Any:
    return cluster.kube.get(ObjectRef(CONFIG_MAP, name, "ns"))


def by_hand(cluster: SandboxCluster, *arguments: str) -> None:
    """helm as a person runs it."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cluster.state_dir), "KUBECONFIG": str(cluster.access.path)}
    subprocess.run([helm_binary(), *arguments, "--namespace", "ns"], env=env, capture_output=True, check=True)


def pending(cluster: SandboxCluster, revision: int) -> None:
    """The operation that made this revision has died, or is under way."""
    ref = ObjectRef(SECRET, f"sh.helm.release.v1.tiny.v{revision}", "ns")
    status = ReleaseStatus.PENDING_INSTALL if revision == 1 else ReleaseStatus.PENDING_UPGRADE
    cluster.kube.replace(with_status(cluster.kube.get(ref) or {}, status, "under way"))


# --- what was judged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proven", [True, False], ids=["would roll back", "would uninstall"])
def test_a_revision_that_another_run_made_while_the_lease_was_waited_for_is_left_alone(
    cluster: SandboxCluster, proven: bool
) -> None:
    if proven:
        good = engine(cluster, "good").install()
        engine(cluster).mark_proven(good.revision or 0, good.secret_uid)
    bad = engine(cluster, "bad").install()
    late = engine(cluster, "bad")
    late.meanwhile = lambda: engine(cluster, "newer", run="dag/other").install()
    assert late.remedy_unhealthy(bad.revision or 0, bad.secret_uid) == ()
    assert config(cluster)["data"]["message"] == "newer"
    assert statuses(cluster)[(bad.revision or 0) + 1] == "deployed"


@pytest.mark.parametrize("way", ["a new revision", "the same revision, finished"])
def test_a_rollback_that_storage_asked_for_stops_if_the_release_changed_meanwhile(
    cluster: SandboxCluster, way: str
) -> None:
    good = engine(cluster, "good").install()
    engine(cluster).mark_proven(good.revision or 0, good.secret_uid)
    engine(cluster, "two").install()
    late = engine(cluster)
    ref = ObjectRef(SECRET, "sh.helm.release.v1.tiny.v2", "ns")
    if way == "a new revision":
        late.meanwhile = lambda: engine(cluster, "newer", run="dag/other").install()
    else:
        finished = ReleaseStatus.DEPLOYED
        pending(cluster, 2)
        late.meanwhile = lambda: cluster.kube.replace(with_status(cluster.kube.get(ref) or {}, finished, "done"))
    with pytest.raises(ClusterBusy) as caught:
        late.remediate()
    assert caught.value.reason == "ReleaseChanged"
    assert statuses(cluster)[max(statuses(cluster))] == "deployed"
    assert config(cluster)["data"]["message"] in {"two", "newer"}
    assert engine(cluster).remediate().actions == ("rollback 1",), "a fresh look may"


def held(cluster: SandboxCluster, holder: str, age: float = 0.0) -> None:
    lease = parse_lease(cluster.kube.get(ObjectRef(LEASE, lease_name("tiny"), "ns")))
    cluster.kube.replace(render_lease("tiny", "ns", holder, time.time() - age, previous=lease, duration=2))


def test_a_living_holders_operation_is_not_called_dead(cluster: SandboxCluster, caplog: Any) -> None:
    found = engine(cluster).install()
    engine(cluster).mark_proven(found.revision or 0, found.secret_uid)
    engine(cluster, "two").install()
    pending(cluster, 2)
    held(cluster, "dag/other@1")
    assert engine(cluster).assess().reason == "HeldByAnother"
    held(cluster, "dag/dead@1", age=3600.0)
    assert engine(cluster).assess().reason == "PendingChange"
    held(cluster, "dag/other@1")  # it renews no more: its Lease runs out
    with caplog.at_level("INFO"):
        assert engine(cluster).remediate().actions == ("rollback 1",)
    first = next(record.getMessage() for record in caplog.records if " is Locked: " in record.getMessage())
    assert "is being changed by dag/other@1" in first


def test_who_may_not_read_leases_may_look_at_a_release(cluster: SandboxCluster) -> None:
    engine(cluster).install()
    cluster.fail_requests(verb="get", kind="Lease", status=403, reason="Forbidden")
    assert engine(cluster).assess().reason == "NotProven"


def test_whoever_has_nothing_to_do_waits_for_no_holder(cluster: SandboxCluster) -> None:
    engine(cluster).install()
    held(cluster, "dag/other@1")
    assert engine(cluster).install().actions == ()
    assert (cluster.kube.get(ObjectRef(LEASE, lease_name("tiny"), "ns")) or {})["spec"]["holderIdentity"]


def test_a_look_that_waits_sees_what_the_holder_has_made(cluster: SandboxCluster) -> None:
    engine(cluster).install()
    pending(cluster, 1)
    held(cluster, "dag/other@1")
    looking = engine(cluster)
    ref = ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", "ns")
    looking.meanwhile = lambda: cluster.kube.replace(
        with_status(cluster.kube.get(ref) or {}, ReleaseStatus.DEPLOYED, "done")
    )
    assert looking.assess(wait=True).reason == "NotProven"


def test_a_revision_that_was_proven_while_the_lease_was_waited_for_stays(cluster: SandboxCluster) -> None:
    found = engine(cluster).install()
    late = engine(cluster)
    late.meanwhile = lambda: engine(cluster).mark_proven(found.revision or 0, found.secret_uid)
    assert late.remedy_unhealthy(found.revision or 0, found.secret_uid) == ()
    assert statuses(cluster) == {1: "deployed"}


@pytest.mark.parametrize("remediation", ["rollback", "uninstall"])
def test_only_what_this_run_installed_is_uninstalled(cluster: SandboxCluster, remediation: str) -> None:
    """A rerun, weeks later, meets one bad pod of a release that nobody has ever proven."""
    found = engine(cluster, run="dag/first").install()
    judged = found.revision or 0, found.secret_uid
    rerun = engine(cluster, run="dag/rerun", remediation=remediation)
    assert rerun.install().actions == ()
    assert rerun.remedy_unhealthy(*judged) == ()
    assert statuses(cluster) == {1: "deployed"}
    assert engine(cluster, run="dag/first", remediation=remediation).remedy_unhealthy(*judged) == ("uninstall 1",)
    assert statuses(cluster) == {}


def test_what_was_only_taken_over_is_not_uninstalled(cluster: SandboxCluster) -> None:
    """The ledger was lost: the run that writes it anew is not the one that installed."""
    found = engine(cluster, run="dag/first").install()
    engine(cluster).storage.delete_ledger()
    rerun = engine(cluster, run="dag/rerun")
    assert rerun.install().actions == ()
    assert rerun.remedy_unhealthy(found.revision or 0, found.secret_uid) == ()
    assert statuses(cluster) == {1: "deployed"}


@pytest.mark.parametrize("lost", [True, False], ids=["the ledger was lost", "adopted"])
def test_a_persons_content_is_not_taken_for_ours_because_it_inherited_our_label(
    cluster: SandboxCluster, lost: bool
) -> None:
    engine(cluster).install()
    by_hand(cluster, "upgrade", "tiny", str(CHARTS / "tiny"), "--set", "message=person")
    assert config(cluster)["data"]["message"] == "person"
    if lost:
        engine(cluster).storage.delete_ledger()
    assert engine(cluster, adopt=not lost).install().actions == ("upgrade 3",)
    assert config(cluster)["data"]["message"] == "one"


# --- local charts ----------------------------------------------------------------------------------------------------


def test_a_changed_local_chart_is_deployed_and_an_unchanged_one_writes_nothing(
    cluster: SandboxCluster, tmp_path: Path
) -> None:
    chart = tmp_path / "charts" / "tiny"
    shutil.copytree(CHARTS / "tiny", chart)
    engine(cluster, chart=chart).install()
    template = chart / "templates" / "all.yaml"
    template.write_text(template.read_text().replace("{{ .Values.message | quote }}", "from the template"))
    again = engine(cluster, chart=chart).install()
    assert again.actions == ("upgrade 2",)
    assert config(cluster)["data"]["message"] == "from the template"
    assert engine(cluster, chart=chart).install().actions == ()


@pytest.mark.parametrize(("ttl", "actions"), [(60, ()), (None, ("upgrade 2",))], ids=["with a ttl", "without"])
def test_a_job_that_the_cluster_deletes_by_itself_is_no_drift(
    cluster: SandboxCluster, tmp_path: Path, ttl: int | None, actions: tuple[str, ...]
) -> None:
    chart = tmp_path / "charts" / "tiny"
    shutil.copytree(CHARTS / "tiny", chart)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    spec = {"template": template, **({"ttlSecondsAfterFinished": ttl} if ttl else {})}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": spec}
    (chart / "templates" / "job.yaml").write_text(json.dumps(job))
    engine(cluster, chart=chart).install()
    cluster.kube.delete(ObjectRef(JOB, "once", "ns"))
    assert engine(cluster, chart=chart).install().actions == actions


# --- a release that another chart has --------------------------------------------------------------------------------


def test_a_release_of_another_chart_is_refused_before_anything_is_written(
    cluster: SandboxCluster, tmp_path: Path
) -> None:
    """Two DAGs chose the same name: the second chart would delete what the first one made."""
    engine(cluster).install()
    chart = tmp_path / "charts" / "other"
    shutil.copytree(CHARTS / "tiny", chart)
    (chart / "Chart.yaml").write_text((CHARTS / "tiny" / "Chart.yaml").read_text().replace("name: tiny", "name: other"))
    before = cluster.kube.get(ObjectRef(LEASE, "gpu-fleet-release-tiny", "ns"))
    with pytest.raises(ReleaseError) as caught:
        engine(cluster, "two", chart=chart).install()
    assert caught.value.reason == "OtherChart"
    for word in ("release_name", "'tiny'", "'other'", "adopt"):
        assert word in caught.value.message
    assert statuses(cluster) == {1: "deployed"}
    assert cluster.kube.get(ObjectRef(LEASE, "gpu-fleet-release-tiny", "ns")) == before
    assert engine(cluster, "two", chart=chart, adopt=True).install().actions == ("upgrade 2",)
    assert engine(cluster, "three", chart=chart).install().actions == ("upgrade 3",)


def test_a_release_that_another_chart_takes_while_the_lease_is_waited_for_is_left_to_it(
    cluster: SandboxCluster, tmp_path: Path
) -> None:
    chart = tmp_path / "charts" / "other"
    shutil.copytree(CHARTS / "tiny", chart)
    (chart / "Chart.yaml").write_text((CHARTS / "tiny" / "Chart.yaml").read_text().replace("name: tiny", "name: other"))
    late = engine(cluster, "two", chart=chart)
    late.meanwhile = lambda: engine(cluster).install()
    with pytest.raises(ReleaseError) as caught:
        late.install()
    assert caught.value.reason == "OtherChart"
    assert config(cluster)["data"]["message"] == "one"


# --- uninstalls that died --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "recovery"])
def test_what_a_dead_uninstall_left_is_removed_before_the_next_install(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """An object that only an earlier revision listed; the worker dies between helm's uninstall and its removal."""
    engine(cluster, values={"extra": "leak"}).install()
    cluster.kube.patch(ObjectRef(CONFIG_MAP, "tiny-leak", "ns"), {"metadata": {"annotations": KEEP}})
    found = engine(cluster, "two").install()
    cluster.kube.patch(ObjectRef(CONFIG_MAP, "tiny-leak", "ns"), {"metadata": {"annotations": dict.fromkeys(KEEP)}})

    def die(*_arguments: Any) -> Any:
        raise SystemExit("killed")

    dying = engine(cluster, "two", remediation="uninstall")
    call = dying.uninstall if wanted else partial(dying.remedy_unhealthy, found.revision or 0, found.secret_uid)
    with monkeypatch.context() as patch:
        patch.setattr("gpu_fleet.hooks.helm.cleanup.ReleaseCleanup.remove_leftovers", die)
        with pytest.raises(SystemExit):
            call()
    assert statuses(cluster) == {}
    assert config(cluster, "tiny-leak") is not None
    assert engine(cluster, "three").install().actions == ("install 1",)
    assert config(cluster, "tiny-leak") is None
    assert config(cluster)["data"]["message"] == "three"


@pytest.mark.parametrize("until", ["it goes", "the patience ends"])
def test_nothing_is_installed_over_what_is_on_its_way_out(
    cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: str
) -> None:
    """Helm would take a dying object for its own, and it would vanish afterwards."""
    held = ObjectRef(CONFIG_MAP, "tiny-config", "ns")
    engine(cluster).install()
    cluster.kube.patch(held, {"metadata": {"finalizers": ["example.com/hold"]}})
    pending(cluster, 1)
    again = engine(cluster, "two", operation_timeout=2)

    def waits() -> list[str]:
        said = (record.getMessage() for record in caplog.records)
        return [text for text in said if "waits until what an uninstall has left is gone" in text]

    remove = ReleaseCleanup.remove_leftovers

    def let_go(*args: Any) -> tuple[Leftover, ...]:
        if until == "it goes" and waits():
            cluster.kube.patch(held, {"metadata": {"finalizers": None}})
        return remove(*args)

    monkeypatch.setattr(ReleaseCleanup, "remove_leftovers", let_go)
    caplog.set_level("INFO")
    if until == "the patience ends":
        with pytest.raises(
            TransientError, match=r"ConfigMap ns/tiny-config \(terminating\): example.com/hold"
        ) as caught:
            again.install()
        assert caught.value.reason == "ObjectsTerminating"
        assert statuses(cluster) == {}
        cluster.kube.patch(held, {"metadata": {"finalizers": None}})
        again = engine(cluster, "two")
    assert again.install().actions[-1] == "install 1"
    (said,) = waits()  # once, and not at every look
    assert "ConfigMap ns/tiny-config (terminating): example.com/hold" in said
    assert config(cluster)["data"]["message"] == "two"
    assert "deletionTimestamp" not in config(cluster)["metadata"]
