"""The release engine against a real helm and the sandbox's API server: faults, deaths, what a rerun makes of them."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import (
    ClusterBusy,
    DeadlinePassed,
    GpuFleetError,
    Invalid,
    NotFound,
    PermanentError,
    ReleaseError,
    ToolError,
    TransientError,
)
from gpu_fleet.core.kinds import SECRET, ObjectRef
from gpu_fleet.core.releases.storage import ReleaseStatus, with_status
from tests.e2e.helm_world import NAMESPACE, World, helm_binary, helm_children, wait_for, world

# The server's side of a connection whose client was killed is closed by the garbage collector: asyncio says so.
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def slow_deployment(**changes: Any) -> list[dict[str, Any]]:
    """Helm hangs when it writes the Deployment, its last object: Helm 4 applies, Helm 3 creates or patches."""
    rule = {"resource": "deployments", "userAgent": "Helm", "latency": 60, **changes}
    return [{**rule, "verb": verb} for verb in ("patch", "create")]


@pytest.fixture(scope="module", params=[4, pytest.param(3, marks=pytest.mark.full)], ids=["helm4", "helm3"])
def helm(request: pytest.FixtureRequest) -> str:
    return helm_binary(request.param)


@pytest.fixture
def place(tmp_path: Path, helm: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HELM_BIN", helm)
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    with world(tmp_path, helm) as found:
        yield found
    assert list(private.iterdir()) == [], "a private directory with a kubeconfig was left behind"
    assert helm_children() == []


def failing(call: Any) -> GpuFleetError:
    with pytest.raises(GpuFleetError) as caught:
        call()
    return caught.value


class InThread:
    """Runs a call beside the test."""

    def __init__(self, call: Any) -> None:
        self.error: GpuFleetError | None = None
        self.result: Any = None

        def body() -> None:
            try:
                self.result = call()
            except GpuFleetError as error:
                self.error = error

        self.thread = threading.Thread(target=body)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


# --- the straight way ------------------------------------------------------------------------------------------------


def test_install_rerun_upgrade_prove_and_uninstall(place: World) -> None:
    first = place.engine().install()
    assert (first.revision, first.actions) == (1, ("install 1",))
    assert first.workloads == (f"Deployment/{NAMESPACE}/tiny",)
    assert "hunter2" not in first.manifest
    assert "(hidden)" in first.manifest
    place.settled()

    before = place.writes()
    again = place.engine().install()
    assert (again.revision, again.actions) == (1, ())
    assert place.writes() == before, "a rerun without a change wrote something"

    second = place.engine({"message": "two"}).install()
    assert (second.revision, second.proven) == (2, False)
    place.engine().mark_proven(2, second.secret_uid)
    before = place.writes()
    assert place.engine().mark_proven(2, second.secret_uid).proven
    assert place.writes() == before
    assert place.config() == {"message": "two"}

    gone = place.engine().uninstall()
    assert gone.leftovers == ()
    assert place.statuses() == {}
    assert place.ledger() == {}
    assert place.config() is None
    assert place.engine().uninstall().actions == ()


def test_values_of_an_earlier_revision_are_not_inherited(place: World) -> None:
    place.engine({"message": "one", "extra": "more"}).install()
    place.engine({}).install()
    assert place.config() == {"message": "hello"}
    assert place.config("tiny-more") is None


def test_remediation_goes_to_the_proven_revision_not_to_the_previous_one(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "bad"}).install()
    place.engine({"message": "worse"}).install()
    outcome = place.engine({"message": "worse"}).remediate()
    assert outcome.actions == ("rollback 1",)
    assert outcome.proven
    assert place.config() == {"message": "good"}
    place.settled()
    assert place.engine({"message": "worse"}).remediate().actions == ()
    assert place.ledger()["proven"]["copy_of"] == 1


def test_remediation_with_nothing_proven_stops(place: World) -> None:
    place.engine().install()
    error = failing(place.engine().remediate)
    assert (type(error), error.reason) == (ReleaseError, "NoProvenRevision")
    place.settled()


def test_the_proven_revision_survives_any_number_of_upgrades(place: World) -> None:
    place.install_proven({"message": "good"}, history_max=2)
    for number in range(4):
        place.engine({"message": f"m{number}"}, history_max=2).install()
    assert place.engine(history_max=2).remediate().actions == ("rollback 1",)
    assert place.config() == {"message": "good"}


# --- refusals: nothing is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "policy", "reason"),
    [
        ({"message": 3}, {}, "ValuesSchema"),
        ({}, {"create_namespace": False}, "NamespaceMissing"),
    ],
    ids=["values against the schema", "namespace missing"],
)
def test_a_bad_request_is_refused_before_anything_is_written(
    place: World, values: dict[str, Any], policy: dict[str, Any], reason: str
) -> None:
    before = place.writes()
    error = failing(place.engine(values, **policy).install)
    assert isinstance(error, Invalid | NotFound)
    assert error.reason == reason
    assert place.writes() == before


def test_somebody_elses_release_is_refused_and_not_touched(place: World) -> None:
    from tests.e2e.helm_world import CHARTS

    place.by_hand("install", "tiny", str(CHARTS / "tiny"), "--create-namespace")
    before = place.writes()
    for call in (place.engine().install, place.engine().uninstall):
        error = failing(call)
        assert (type(error), error.reason) == (ReleaseError, "NotOurs")
    assert place.writes() == before
    assert place.engine({"message": "ours"}, adopt=True).install().revision == 2
    place.settled()


def test_a_persons_revision_is_reported_and_not_reverted(place: World) -> None:
    from tests.e2e.helm_world import CHARTS

    place.install_proven()
    place.by_hand("upgrade", "tiny", str(CHARTS / "tiny"), "--set", "message=person")
    error = failing(place.engine().install)
    assert error.reason == "ForeignRevision"
    assert failing(place.engine().remediate).reason == "ForeignRevision"
    assert place.config() == {"message": "person"}


@pytest.mark.parametrize("script", ["exit 0", "echo v4.2.3", "echo v2.17.0", "exit 1"])
def test_a_false_helm_never_makes_a_task_succeed(place: World, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake = place.tmp / "helm"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("HELM_BIN", str(fake))
    error = failing(place.engine().install)
    assert isinstance(error, ToolError | ReleaseError)
    assert place.statuses() == {}


def test_no_helm_at_all_names_the_remedy(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(place.tmp / "nothing"))
    error = failing(place.engine().install)
    assert isinstance(error, ToolError)
    assert "HELM_BIN" in error.message


# --- failing operations ----------------------------------------------------------------------------------------------


def test_an_upgrade_that_can_never_work_is_permanent_and_rolled_back(place: World) -> None:
    place.install_proven({"message": "good"})
    error = failing(place.engine({"message": "bad", "selector": "other", "extra": "leak"}).install)
    assert isinstance(error, PermanentError)
    assert error.reason == "ImmutableField"
    assert place.config() == {"message": "good"}
    assert place.config("tiny-leak") is None
    place.settled()
    place.engine({"message": "better"}).install()
    place.settled()


def test_a_first_install_that_fails_is_uninstalled(place: World) -> None:
    error = failing(place.engine({"unknownKind": True}).install)
    assert isinstance(error, Invalid)
    assert error.reason == "CrdMissing"
    assert place.statuses() == {}
    assert place.config() is None
    place.engine().install()
    place.settled()


def test_a_failed_upgrade_without_a_proven_revision_leaks_nothing_in_the_end(place: World) -> None:
    place.engine({"message": "first"}).install()
    failing(place.engine({"selector": "other", "extra": "leak"}).install)
    place.engine({"message": "second"}).install()
    assert place.config("tiny-leak") is None
    assert place.config() == {"message": "second"}
    place.settled()


def test_an_object_of_somebody_else_is_not_taken_over(place: World) -> None:
    place.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tiny-config", "namespace": NAMESPACE}}
    place.client.create({**mine, "data": {"message": "theirs"}})
    error = failing(place.engine().install)
    assert (type(error), error.reason) == (ReleaseError, "ObjectOwnedByAnother")
    assert place.config() == {"message": "theirs"}


def test_a_field_conflict_is_named_and_forced_only_by_policy(place: World, request: pytest.FixtureRequest) -> None:
    if "helm3" in request.node.name:
        pytest.skip("Helm 3 merges on the client and knows no field conflicts")
    place.install_proven()
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "tiny", "namespace": NAMESPACE}}
    place.client.apply({**scaled, "spec": {"replicas": 3}}, force=True, field_manager="autoscaler")
    error = failing(place.engine({"message": "two"}).install)
    assert "autoscaler" in error.message
    assert failing(place.engine({"message": "two"}).install).reason in {"FieldConflict", "RollbackFailed"}
    place.engine({"message": "two"}, conflicts="force").install()
    assert place.client.get(place.deployment())["spec"]["replicas"] == 1
    place.settled()


def test_a_pruned_target_stops_instead_of_taking_the_previous_revision(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "bad"}).install()
    place.client.delete(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    error = failing(place.engine({"message": "bad"}).remediate)
    assert error.reason == "TargetPruned"
    assert place.config() == {"message": "bad"}


def test_an_unreadable_release_fails_closed(place: World) -> None:
    place.engine().install()
    ref = ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE)
    place.client.patch(ref, {"data": {"release": "bm90aGluZw=="}})
    before = place.writes()
    assert failing(place.engine({"message": "two"}).install).reason == "StorageUnreadable"
    assert failing(place.engine().uninstall).reason == "StorageUnreadable"
    assert place.writes() == before


# --- API faults ------------------------------------------------------------------------------------------------------


def test_the_last_write_of_an_install_is_lost_although_helm_reports_success(place: World) -> None:
    lost = {"verb": "update", "resource": "secrets", "userAgent": "Helm", "status": 500, "name": "sh.helm.release.v1.*"}
    with place.faults(lost):
        error = failing(place.engine().install)
    assert isinstance(error, TransientError), error
    assert "pending-install" not in place.statuses().values()
    place.engine().install()
    place.settled()


def test_the_last_write_of_an_upgrade_is_lost(place: World) -> None:
    place.install_proven({"message": "good"})
    lost = {"verb": "update", "resource": "secrets", "userAgent": "Helm", "status": 500, "after": 1, "count": 5}
    with place.faults(lost):
        failing(place.engine({"message": "two"}).install)
    place.engine({"message": "two"}).install()
    assert place.config() == {"message": "two"}
    place.settled()


def test_refused_credentials_in_mid_upgrade_are_recovered(place: World) -> None:
    place.install_proven({"message": "good"})
    refused = {"resource": "deployments", "verb": "patch", "userAgent": "Helm", "status": 401, "count": 2}
    with place.faults(refused):
        error = failing(place.engine({"message": "two"}).install)
    assert isinstance(error, TransientError)
    place.engine({"message": "two"}).install()
    place.settled()


def test_a_short_outage_is_absorbed(place: World) -> None:
    rules = [
        {"verb": "patch", "userAgent": "Helm", "status": 429, "retryAfter": 1, "count": 2},
        {"verb": "get", "resource": "secrets", "userAgent": "gpu-fleet", "status": 503, "count": 2},
        {
            "verb": "create",
            "resource": "configmaps",
            "userAgent": "gpu-fleet",
            "status": 429,
            "retryAfter": 1,
            "count": 1,
        },
    ]
    with place.faults(*rules):
        place.engine().install()
    place.settled()


# --- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proven", [True, False], ids=["proven before", "nothing proven"])
def test_helm_killed_in_mid_upgrade_leaves_nothing_pending(place: World, proven: bool) -> None:
    if proven:
        place.install_proven({"message": "good"})
    else:
        place.engine({"message": "good"}).install()
    with place.faults(*slow_deployment(count=1)):
        task = InThread(place.engine({"message": "two", "extra": "leak"}).install)
        (pid,) = wait_for("helm in mid-upgrade", lambda: place.config("tiny-leak") and helm_children())
        os.kill(pid, signal.SIGKILL)
        task.join()
    assert isinstance(task.error, TransientError)
    assert not [status for status in place.statuses().values() if status.startswith("pending")]
    place.engine({"message": "three"}).install()
    assert place.config() == {"message": "three"}
    assert place.config("tiny-leak") is None
    place.settled()


@pytest.mark.parametrize("first", [True, False], ids=["in the first install", "in an upgrade"])
def test_worker_and_helm_killed_and_the_next_run_recovers(place: World, first: bool) -> None:
    if not first:
        place.install_proven({"message": "good"})
    with place.faults(*slow_deployment()):
        worker = place.worker({"message": "two", "extra": "leak"})
        (pid,) = wait_for("helm at work", lambda: place.config("tiny-leak") and helm_children(worker.pid))
        os.kill(pid, signal.SIGSTOP)  # so that it cannot write on its way down
        worker.kill()
        os.kill(pid, signal.SIGKILL)
        worker.communicate()
    wait_for("end of helm", lambda: not helm_children())
    pending = "pending-install" if first else "pending-upgrade"
    assert pending in place.statuses().values()
    place.engine({"message": "three"}).install()
    assert place.config() == {"message": "three"}
    assert place.config("tiny-leak") is None
    place.settled()


def test_a_dead_worker_takes_its_helm_along(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment()):
        worker = place.worker({"message": "two"})
        wait_for("helm at work", lambda: place.config() == {"message": "two"} and helm_children(worker.pid))
        worker.kill()
        worker.communicate()
        wait_for("end of helm", lambda: not helm_children())
    outcome = place.engine({"message": "two"}).install()
    assert outcome.actions[-1].startswith("upgrade")
    place.settled()


def test_worker_dead_after_helms_success_and_before_the_ledger(place: World) -> None:
    outcome = place.engine().install()
    name = ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE)
    assert place.client.get(name) is not None
    engine = place.engine()
    ledger = engine.storage.ledger()
    from dataclasses import replace

    from gpu_fleet.core.releases.ledger import Intent

    engine.storage.write_ledger(
        replace(ledger, candidate=None, intent=Intent("install", 1, outcome.digest, "now", "dag/run"))
    )
    again = place.engine().install()
    assert again.actions == ()
    place.settled()


def test_a_killed_task_ends_helm_and_fails(place: World) -> None:
    place.install_proven({"message": "good"})
    engine = place.engine({"message": "two"})
    with place.faults(*slow_deployment()):
        task = InThread(engine.install)
        wait_for("helm at work", lambda: place.config() == {"message": "two"} and helm_children())
        engine.cancel("the task was killed")
        task.join()
    assert task.error is not None
    assert task.error.reason == "Interrupted"
    assert helm_children() == []
    place.nobody_holds()
    place.engine({"message": "two"}).install()
    place.settled()


def test_a_hanging_hook_ends_at_our_deadline(place: World) -> None:
    place.install_proven({"message": "good"})
    error = failing(place.engine({"hook": True}, deadline=3).install)
    assert isinstance(error, DeadlinePassed)
    assert place.config() == {"message": "good"}
    place.settled()


def test_a_zombies_second_deployed_revision_is_repaired(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "two"}).install()
    zombie = place.client.get(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    place.client.replace(with_status(zombie, ReleaseStatus.DEPLOYED, "a zombie"))
    assert list(place.statuses().values()).count("deployed") == 2
    outcome = place.engine({"message": "two"}).install()
    assert outcome.actions[0] == "rollback 1"
    assert place.config() == {"message": "two"}
    place.settled()


def test_a_worker_frozen_past_its_lease_stops_when_it_wakes(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment(count=1)):
        worker = place.worker({"message": "frozen"})
        (pid,) = wait_for("helm at work", lambda: place.config() == {"message": "frozen"} and helm_children(worker.pid))
        for each in (worker.pid, pid):
            os.kill(each, signal.SIGSTOP)
        outcome = place.engine({"message": "other"}).install()
        assert outcome.actions[0] == "rollback 1"
        for each in (pid, worker.pid):
            os.kill(each, signal.SIGCONT)
        text, _ = worker.communicate(timeout=60)
    assert worker.returncode != 0, text
    assert "Lease" in text
    wait_for("end of helm", lambda: not helm_children())
    place.engine({"message": "other"}).install()
    assert place.config() == {"message": "other"}
    place.settled()


# --- two at once -----------------------------------------------------------------------------------------------------


def test_two_runs_at_once_are_serialised_and_none_recovers_the_other(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment(latency=3)):
        tasks = [InThread(place.engine({"message": "two"}).install) for _ in range(2)]
        for task in tasks:
            task.join()
    assert [task.error for task in tasks] == [None, None]
    assert sorted(len(task.result.actions) for task in tasks) == [0, 1]
    assert place.statuses() == {1: "superseded", 2: "deployed"}
    place.settled()


def test_whoever_waits_too_long_for_the_lease_names_its_holder(place: World) -> None:
    place.install_proven({"message": "good"})
    first = place.engine({"message": "two"}, me="the holder")
    second = place.engine({"message": "three"})
    second._lease_wait_s = 1.0
    with place.faults(*slow_deployment()):
        task = InThread(first.install)
        wait_for("helm at work", lambda: place.config() == {"message": "two"} and helm_children())
        error = failing(second.install)
        assert isinstance(error, ClusterBusy)
        assert "the holder" in error.message
        first.cancel("enough")
        task.join()


# --- uninstalling ----------------------------------------------------------------------------------------------------


def test_an_uninstall_held_up_by_a_finalizer_is_resumed_and_reported(place: World) -> None:
    place.engine().install()
    from gpu_fleet.core.kinds import CONFIG_MAP

    ref = ObjectRef(CONFIG_MAP, "tiny-config", NAMESPACE)
    place.client.patch(ref, {"metadata": {"finalizers": ["example.com/hold"]}})
    engine = place.engine(operation_timeout=5)
    outcome = engine.uninstall()
    assert [text for text in outcome.leftovers if "tiny-config" in text and "example.com/hold" in text]
    assert engine.cleanup.waiting(outcome.leftovers)
    assert place.ledger()["intent"]["action"] == "uninstall"
    assert place.engine().uninstall().leftovers == outcome.leftovers
    place.client.patch(ref, {"metadata": {"finalizers": None}})
    assert place.engine().uninstall().leftovers == ()
    assert place.ledger() == {}


def test_an_interrupted_uninstall_is_repeated(place: World) -> None:
    place.engine().install()
    secret = place.client.get(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    place.client.replace(with_status(secret, ReleaseStatus.UNINSTALLING, "died"))
    assert place.engine().uninstall().leftovers == ()
    assert place.statuses() == {}


def test_crds_are_not_deleted_while_objects_of_theirs_exist(place: World) -> None:
    place.engine(chart="kinds").install()
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": NAMESPACE}}
    place.client.create(widget)
    error = failing(place.engine(chart="kinds").uninstall)
    assert (type(error), error.reason) == (ReleaseError, "CrdInUse")
    assert place.client.get(place.client.ref("example.com/v1", "Widget", "w", NAMESPACE)) is not None

    kept = place.engine(chart="kinds").uninstall(keep_kinds=frozenset({"CustomResourceDefinition"}))
    assert "widgets.example.com (kept)" in kept.leftovers[0]
    assert place.statuses() == {}
    assert place.client.get(place.client.ref("example.com/v1", "Widget", "w", NAMESPACE)) is not None
    place.engine(chart="kinds").install()


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_the_kubeconfig_is_private_and_short_lived(place: World) -> None:
    found: list[tuple[int, int]] = []
    with place.faults(*slow_deployment(latency=2, count=1)):
        task = InThread(place.engine().install)

        def look() -> bool:
            for path in (place.tmp / "tmp").glob("gpu-fleet-helm-*/kubeconfig"):
                found.append((stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)))
            return bool(found)

        wait_for("the kubeconfig", look)
        task.join()
    assert set(found) == {(0o600, 0o700)}
