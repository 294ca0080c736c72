"""The release engine against a real helm and the sandbox's API server: what the fault table does not ask."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import (
    ClusterBusy,
    GateFailed,
    Invalid,
    NotFound,
    ReleaseError,
    ToolError,
    TransientError,
)
from gpu_fleet.core.kubernetes.kinds import CRD, SECRET, ObjectRef
from gpu_fleet.core.releases.ledger import Intent
from gpu_fleet.core.releases.storage import ReleaseStatus, with_status
from tests.e2e.helm_faults.table import InThread, failing, slow_deployment
from tests.e2e.helm_world import NAMESPACE, World, helm_binary, helm_children, private_world, wait_for, world
from tests.unit.sandboxed import established

# The server's side of a connection whose client was killed is closed by the garbage collector: asyncio says so.
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


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


@pytest.mark.full
def test_the_proven_revision_survives_any_number_of_upgrades(place: World) -> None:
    place.install_proven({"message": "good"}, history_max=2)
    for number in range(4):
        place.engine({"message": f"m{number}"}, history_max=2).install()
    assert place.engine(history_max=2).remediate().actions == ("rollback 1",)
    assert place.config() == {"message": "good"}


@pytest.mark.full
@pytest.mark.parametrize("way", ["upgrade", "rollback"])
def test_conflicts_are_forced_on_a_release_that_helm_3_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Helm 4 goes on as the last revision was applied, which for one of Helm 3 is on the client."""
    older, newer = helm_binary(3), helm_binary(4)
    with private_world(tmp_path, older, monkeypatch) as place:
        place.install_proven({"message": "good"})
        if way == "rollback":
            place.engine({"message": "bad"}).install()
        monkeypatch.setenv("HELM_BIN", newer)
        place.kubectl("scale", "deployment/tiny", "--replicas=3", "--namespace", NAMESPACE)
        wanted = "good" if way == "rollback" else "two"
        engine = place.engine({"message": wanted}, conflicts="force")
        outcome = engine.remediate() if way == "rollback" else engine.install()
        assert outcome.actions == (("rollback 1",) if way == "rollback" else ("upgrade 2",))
        assert place.client.get(place.deployment())["spec"]["replicas"] == 1
        place.right(wanted)
        place.converge(conflicts="force")
    assert helm_children() == []


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


@pytest.mark.full
def test_a_chart_that_asks_the_cluster_is_refused_only_by_the_clusters_answer(place: World) -> None:
    """``helm template`` knows built-in APIs alone, and finds nothing."""
    from tests.e2e.helm_world import CHARTS

    engine = place.engine(chart="asking")
    before = place.writes()
    error = failing(engine.install)
    assert (type(error), error.reason) == (Invalid, "InvalidManifest"), error
    assert "example.com/v1" in error.message
    assert place.writes() == before
    place.kubectl("apply", "--filename", str(CHARTS / "kinds" / "templates" / "crd.yaml"))
    # Discovery lists a kind once its definition is established.
    look = ("get", "crd/widgets.example.com", "--output", "json")
    wait_for("the definition", lambda: established(json.loads(place.kubectl(*look))), place.patience)
    error = failing(engine.install)
    assert (type(error), error.reason) == (Invalid, "InvalidManifest"), error
    assert "asked-for" in error.message
    place.kubectl("create", "configmap", "asked-for", "--namespace", "kube-system")
    assert engine.install().actions == ("install 1",)
    assert place.engine({"message": "two"}, chart="asking").install().actions == ("upgrade 2",)
    place.right("two")


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


@pytest.mark.full
def test_a_persons_revision_is_reported_and_not_reverted(place: World) -> None:
    from tests.e2e.helm_world import CHARTS

    place.install_proven()
    place.by_hand("upgrade", "tiny", str(CHARTS / "tiny"), "--set", "message=person")
    error = failing(place.engine().install)
    assert error.reason == "ForeignRevision"
    assert failing(place.engine().remediate).reason == "ForeignRevision"
    assert place.config() == {"message": "person"}


def test_a_persons_upgrade_in_the_place_of_our_dead_command_is_not_taken_for_ours(place: World) -> None:
    """Our upgrade to the same content died before it wrote anything; the person's gets its number, and its label."""
    from tests.e2e.helm_world import CHARTS

    first = place.engine({"message": "one"}).install()
    place.prove(first)
    engine = place.engine({"message": "one"})
    seen = engine.storage.observe(engine.request)
    assert seen.newest is not None
    intent = Intent(
        "upgrade", 2, first.digest, "2026-01-01T00:00:00Z", "dag/run", base_revision=1,
        base_uid=first.secret_uid, content=seen.newest.content,
    )  # fmt: skip
    engine.storage.write_ledger(seen.ledger.intending(intent))
    place.by_hand("upgrade", "tiny", str(CHARTS / "tiny"), "--set", "message=person")
    stored = place.stored().revisions[2]
    assert stored[1] == first.digest, "helm copies the label"
    with pytest.raises(ReleaseError, match="revision 2") as refused:
        place.engine({"message": "one"}).install()
    assert refused.value.reason == "ForeignRevision"
    assert place.config() == {"message": "person"}
    assert place.ledger()["candidate"]["revision"] == 1


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


@pytest.mark.full
def test_a_failed_upgrade_without_a_proven_revision_leaks_nothing_in_the_end(place: World) -> None:
    place.engine({"message": "first"}).install()
    failing(place.engine({"selector": "other", "extra": "leak"}).install)
    place.engine({"message": "second"}).install()
    assert place.config("tiny-leak") is None
    assert place.config() == {"message": "second"}
    place.settled()


# --- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
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


# --- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_whoever_waits_too_long_for_the_lease_names_its_holder(place: World) -> None:
    place.install_proven({"message": "good"})
    first = place.engine({"message": "two"}, me="the holder")
    second = place.engine({"message": "three"}, lease_wait_s=1.0)
    with place.faults(*slow_deployment()):
        task = InThread(first.install)
        wait_for("helm at work", lambda: place.config() == {"message": "two"} and helm_children())
        error = failing(second.install)
        assert isinstance(error, ClusterBusy)
        assert "the holder" in error.message
        first.cancel("enough")
        task.join()


# --- uninstalling ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_interrupted_uninstall_is_repeated(place: World) -> None:
    outcome = place.engine().install()
    storage = place.engine().storage
    storage.write_ledger(storage.ledger().intending(Intent("uninstall", 1, outcome.digest, "now", "dag/run")))
    secret = place.client.get(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    place.client.replace(with_status(secret, ReleaseStatus.UNINSTALLING, "died"))
    assert place.engine().uninstall().leftovers == ()
    assert place.statuses() == {}


def test_crds_are_not_deleted_while_objects_of_theirs_exist(place: World) -> None:
    place.engine(chart="kinds").install()
    definition = ObjectRef(CRD, "widgets.example.com")
    wait_for("the new kind", lambda: established(place.client.get(definition)), place.patience)
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": NAMESPACE}}
    place.client.create(widget)
    error = failing(place.engine(chart="kinds").uninstall)
    assert (type(error), error.reason) == (ReleaseError, "CrdInUse")
    assert place.client.get(place.client.ref("example.com/v1", "Widget", "w", NAMESPACE)) is not None

    kept = place.engine(chart="kinds").uninstall(keep_kinds=frozenset({"CustomResourceDefinition"}))
    assert "widgets.example.com" in kept.leftovers[0].target
    assert not kept.terminating
    assert place.statuses() == {}
    assert place.client.get(place.client.ref("example.com/v1", "Widget", "w", NAMESPACE)) is not None
    place.engine(chart="kinds").install()


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
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


# --- chart tests -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_charts_tests_count_by_what_storage_says(place: World, phase: str) -> None:
    place.engine({"tests": True}).install()
    pod = place.client.ref("v1", "Pod", "tiny-test", NAMESPACE)
    task = InThread(place.engine().test)
    wait_for("the test's pod", lambda: place.client.get(pod))
    place.client.patch(pod, {"status": {"phase": phase}}, subresource="status")
    task.join()
    if phase == "Succeeded":
        assert task.error is None, task.error
        assert task.result.actions == ("test 1",)
    else:
        assert isinstance(task.error, GateFailed), task.error
        assert "tiny-test" in task.error.message
    place.settled()


# --- by number -------------------------------------------------------------------------------------------------------


def test_a_revision_that_never_worked_is_no_target(place: World) -> None:
    place.install_proven({"message": "good"})
    failing(place.engine({"message": "bad", "selector": "other"}).install)
    error = failing(lambda: place.engine().roll_back(2))
    assert (type(error), error.reason) == (ReleaseError, "TargetFailed")
    assert place.config() == {"message": "good"}
