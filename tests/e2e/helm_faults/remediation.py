"""Faults 7 to 11, 13 to 15 and 24 to 30: operations that fail, and what they must leave."""

from __future__ import annotations

import json

from gpu_fleet.core.errors import DeadlinePassed, GateFailed, Invalid, PermanentError, ReleaseError, TransientError
from gpu_fleet.core.kubernetes.kinds import CRD, SECRET, ObjectRef
from gpu_fleet.core.releases.drift import Change
from tests.e2e.helm_faults.table import InThread, failing, failing_deployment, fault
from tests.e2e.helm_world import CHARTS, NAMESPACE, World, wait_for

BAD_SELECTOR = {"message": "bad", "selector": "other", "extra": "leak"}


def fail_hook(place: World) -> None:
    """What the Job controller and a kubelet do when the hook's container fails."""
    ref = place.client.ref("batch/v1", "Job", "tiny-hook", NAMESPACE)
    wait_for("the hook", lambda: place.client.get(ref), place.patience)
    labels = {"job-name": "tiny-hook"}
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "tiny-hook-x", "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "pause"}]},
    }  # fmt: skip
    place.client.create(pod)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/tiny-hook-x"
    place.client._transport.request("PUT", f"{path}/log", body="the hook's last words")
    why = {"status": "True", "reason": "BackoffLimitExceeded", "message": "it failed"}
    # Both are there before a Job counts as failed (KEP-3939), or the API server refuses the status.
    conditions = [{"type": kind, **why} for kind in ("FailureTarget", "Failed")]
    status = {"startTime": "2025-01-01T00:00:00Z", "failed": 1, "conditions": conditions}
    place.client.patch(ref, {"status": status}, subresource="status")


def with_failing_hook(place: World, call) -> Exception:  # type: ignore[no-untyped-def]
    task = InThread(call)
    fail_hook(place)
    task.join()
    pod = place.client.ref("v1", "Pod", "tiny-hook-x", NAMESPACE)
    place.client.delete(pod, grace_seconds=0)
    assert task.error is not None, task.result
    return task.error


@fault(7, "failing pre-install hook")
def failing_hook(place: World) -> None:
    heard: list[str] = []
    import logging

    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gpu_fleet.hooks.helm.hook_logs")
    logger.addHandler(handler)
    try:
        error = with_failing_hook(place, place.engine({"hookEvents": "pre-install"}).install)
    finally:
        logger.removeHandler(handler)
    assert isinstance(error, GateFailed), error
    assert "tiny-hook" in error.message
    assert any("the hook's last words" in line for line in heard), heard
    place.nothing_half_done()
    place.converge()


@fault(8, "hook Job hangs")
def hanging_hook(place: World) -> None:
    place.install_proven({"message": "good"})
    error = failing(place.engine({"message": "bad", "hook": True}, deadline=3).install)
    assert isinstance(error, DeadlinePassed)
    place.right("good")
    place.converge()


@fault(9, "failing pre-rollback hook")
def failing_rollback_hook(place: World) -> None:
    place.install_proven({"message": "good", "hookEvents": "pre-rollback"})
    place.engine({"message": "bad"}).install()
    error = with_failing_hook(place, place.engine().remediate)
    assert isinstance(error, GateFailed | ReleaseError), error
    assert "tiny-hook" in error.message
    assert max(place.stored().statuses) == 3
    assert place.stored().status(3) in {"pending-rollback", "failed"}
    outcome = place.engine(rollback_hooks=False).remediate()
    assert outcome.actions == ("rollback 1",)
    place.right("good")
    place.converge(rollback_hooks=False)


@fault(10, "immutable selector changed", quick=True)
def immutable(place: World) -> None:
    place.install_proven({"message": "good"})
    error = failing(place.engine(BAD_SELECTOR).install)
    assert isinstance(error, PermanentError)
    assert error.reason == "ImmutableField"
    place.right("good")
    assert place.config("tiny-leak") is None
    place.converge()


@fault(11, "CRD missing")
def crd_missing(place: World) -> None:
    place.install_proven({"message": "good"})
    error = failing(place.engine({"message": "bad", "unknownKind": True}).install)
    assert isinstance(error, Invalid)
    assert error.reason == "CrdMissing"
    assert "Stranger (nobody.example.com/v1)" in error.message, error
    assert place.right("good").statuses == {1: "deployed"}
    place.engine().uninstall()
    place.proven = ""
    assert failing(place.engine({"unknownKind": True}).install).reason == "CrdMissing"
    assert place.statuses() == {}
    place.converge()


@fault(13, "quota on Secrets: no revision, retryable", variant="secrets")
def quota_on_secrets(place: World) -> None:
    place.install_proven({"message": "good"})
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": NAMESPACE}}
    used = len(place.client.list(SECRET, NAMESPACE))
    place.client.create({**quota, "spec": {"hard": {"count/secrets": str(used)}}})
    ref = place.client.ref("v1", "ResourceQuota", "q", NAMESPACE)
    hard = {"hard": {"count/secrets": str(used)}, "used": {"count/secrets": str(used)}}
    place.client.patch(ref, {"status": hard}, subresource="status")
    error = failing(place.engine({"message": "two"}).install)
    assert isinstance(error, TransientError), error
    assert "quota" in error.message
    assert place.right("good").statuses == {1: "deployed"}
    place.client.delete(ref)
    place.converge()


@fault(14, "object unmanaged, or owned by another release")
def not_ours(place: World) -> None:
    place.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"message": "theirs"}}
    ref = place.client.ref("v1", "ConfigMap", "tiny-config", NAMESPACE)
    owner = {"meta.helm.sh/release-name": "others", "meta.helm.sh/release-namespace": NAMESPACE}
    for metadata in ({}, {"annotations": owner, "labels": {"app.kubernetes.io/managed-by": "Helm"}}):
        place.client.create({**theirs, "metadata": {"name": "tiny-config", "namespace": NAMESPACE, **metadata}})
        error = failing(place.engine().install)
        assert (type(error), error.reason) == (ReleaseError, "ObjectOwnedByAnother"), error
        assert not metadata or "others" in error.message
        assert place.config() == {"message": "theirs"}
        place.client.delete(ref)
    place.converge()


@fault(15, "kubectl scale conflicts", quick=True)
def conflict(place: World) -> None:
    place.install_proven({"message": "good"})
    place.kubectl("scale", "deployment/tiny", "--replicas=3", "--namespace", NAMESPACE)
    if place.server_side_apply:
        error = failing(place.engine({"message": "two"}).install)
        assert "kubectl" in error.message
        assert "replicas" in error.message
        assert failing(place.engine({"message": "two"}).install).reason in {"FieldConflict", "RollbackFailed"}
        place.engine({"message": "worse"}, conflicts="force").remediate()
        place.right("good")
        place.kubectl("scale", "deployment/tiny", "--replicas=3", "--namespace", NAMESPACE)
    place.engine({"message": "two"}, conflicts="force").install()
    assert place.client.get(place.deployment())["spec"]["replicas"] == 1
    place.right("two")
    place.converge(conflicts="force")


@fault(24, "first install fails: uninstalled by policy, CRDs kept")
def first_install(place: World) -> None:
    with place.faults(*failing_deployment(422)):
        error = failing(place.engine({"crd": True}).install)
    assert place.statuses() == {}, error
    assert place.config() is None
    assert place.client.get(ObjectRef(CRD, "gadgets.example.com")) is not None
    place.converge()


@fault(25, "the rollback itself fails")
def rollback_fails(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "bad"}).install()
    with place.faults(*failing_deployment(422)):
        error = failing(place.engine({"message": "bad"}).remediate)
    assert (type(error), error.reason) == (ReleaseError, "RollbackFailed"), error
    assert "deployed" not in [s for n, s in place.nothing_half_done().statuses.items() if n > 2]
    assert place.engine().remediate().actions == ("rollback 1",)
    place.right("good")
    place.converge()


@fault(26, "a failed rollback, then another failing upgrade: still to the good revision", quick=True)
def rollback_fails_then_upgrade(place: World) -> None:
    place.install_proven({"message": "good"})
    good = place.ledger()["proven"]["digest"]
    place.engine({"message": "bad"}).install()
    with place.faults(*failing_deployment(422)):
        failing(place.engine({"message": "bad"}).remediate)
    failing(place.engine({**BAD_SELECTOR, "message": "worse"}).install)
    place.right("good")
    assert place.ledger()["proven"]["digest"] == good
    place.converge()


@fault(27, "rerun with no change", quick=True)
def no_change(place: World) -> None:
    outcome = place.engine({"message": "one"}).install()
    place.prove(outcome)
    before = place.writes()
    for _ in range(2):
        again = place.engine({"message": "one"}).install()
        assert (again.actions, again.revision) == ((), 1)
    assert place.writes() == before
    assert place.right("one").statuses == {1: "deployed"}
    place.converge()


@fault(28, "retry after a failure with changed values")
def values_not_inherited(place: World) -> None:
    place.install_proven({"message": "good"})
    failing(place.engine({**BAD_SELECTOR, "extra": "more"}).install)
    place.engine({}).install()
    stored = place.right("hello")
    assert json.loads(json.dumps(stored.revisions[max(stored.revisions)][3].get("config") or {})) == {}
    assert place.config("tiny-more") is None
    place.converge()


@fault(29, "drift: edited, deleted, added", quick=True)
def drift(place: World) -> None:
    place.install_proven({"message": "good"})
    place.kubectl("patch", "configmap/tiny-config", "-n", NAMESPACE, "--patch", '{"data": {"message": "theirs"}}')
    place.kubectl("annotate", "deployment/tiny", "-n", NAMESPACE, "example.com/added=yes")
    place.kubectl("delete", "secret/tiny-secret", "-n", NAMESPACE)
    before = place.writes()
    seen = place.engine({"message": "good"}, drift="warn").install()
    assert seen.actions == ()
    assert place.writes() == before
    text = "\n".join(seen.drift)
    assert f"Secret {NAMESPACE}/tiny-secret {Change.DELETED}" in text
    assert f"ConfigMap {NAMESPACE}/tiny-config: data.message {Change.TAKEN} by kubectl-patch" in text
    assert f"{Change.ADDED} by kubectl-annotate" in text
    assert "example.com/added" in text
    assert failing(place.engine({"message": "good"}).install).reason == "FieldConflict"
    assert place.writes() == before
    outcome = place.engine({"message": "good"}, conflicts="force").install()
    assert outcome.actions == ("upgrade 2",)
    assert place.client.get(place.client.ref("v1", "Secret", "tiny-secret", NAMESPACE)) is not None
    place.right("good")
    again = place.engine({"message": "good"}, conflicts="force").install()
    assert again.actions == ()
    place.converge(conflicts="force")


@fault(30, "the ledger's revision pruned from the history")
def target_pruned(place: World) -> None:
    place.install_proven({"message": "good"})
    place.by_hand("upgrade", "tiny", str(CHARTS / "tiny"), "--set", "message=person")
    place.engine({"message": "bad"}, adopt=True).install()
    place.client.delete(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    error = failing(place.engine({"message": "bad"}).remediate)
    assert error.reason == "TargetPruned"
    assert "history" in error.message
    place.right("bad")
    failing(place.engine({**BAD_SELECTOR, "message": "worse"}).install)
    assert failing(place.engine({"message": "other"}).install).reason == "TargetPruned"
    assert place.nothing_half_done().status(2) == "superseded", "a revision that was never proven was chosen"
    place.converge(remediation="none")
