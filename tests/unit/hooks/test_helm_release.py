"""The release engine's decisions against a real helm and the sandbox's API server: who may undo what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.kinds import CONFIG_MAP, JOB, ObjectRef
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.hooks.helm_lease import ReleaseLease
from gpu_fleet.hooks.helm_release import ReleaseEngine
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

    def _leased(self) -> ReleaseLease:
        self.meanwhile()
        return super()._leased()


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
        patch.setattr("gpu_fleet.hooks.helm_cleanup.ReleaseCleanup.remove_leftovers", die)
        with pytest.raises(SystemExit):
            call()
    assert statuses(cluster) == {}
    assert config(cluster, "tiny-leak") is not None
    assert engine(cluster, "three").install().actions == ("install 1",)
    assert config(cluster, "tiny-leak") is None
    assert config(cluster)["data"]["message"] == "three"
