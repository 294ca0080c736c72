"""Faults 1 to 6, 16, 36 and 38: processes that die, hang or come back, and two at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

from gpu_fleet.core.errors import DeadlinePassed, GpuFleetError, TransientError
from gpu_fleet.core.kubernetes.kinds import POD, SECRET, ObjectRef
from gpu_fleet.core.releases.ledger import Intent
from gpu_fleet.core.releases.storage import ReleaseStatus, with_status
from tests.e2e.helm_faults.table import InThread, failing, fault, helm_at_work, kill, slow_deployment
from tests.e2e.helm_world import NAMESPACE, World, helm_children, operator, retried, task_context, wait_for


@contextlib.contextmanager
def ready_with(place: World, *messages: str) -> Iterator[None]:
    """Pods get ready with these contents, and with no other: what a kubelet does."""
    done = threading.Event()
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def keep() -> None:
        while not done.wait(0.2):
            for pod in place.client.list(POD, NAMESPACE):
                metadata = pod["metadata"]
                if (metadata.get("annotations") or {}).get("message") not in messages:
                    continue
                if (pod.get("status") or {}).get("phase") != "Running":
                    with contextlib.suppress(GpuFleetError):
                        place.client.patch(
                            ObjectRef(POD, metadata["name"], NAMESPACE), {"status": status}, subresource="status"
                        )

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def killed_worker(place: World, message: str = "two") -> None:
    """Worker and helm die at once in the middle of an apply; one more ConfigMap is left behind."""
    with place.faults(*slow_deployment()):
        worker = place.worker({"message": message, "extra": "leak"})
        try:
            pid = helm_at_work(place, lambda: place.config("tiny-leak"), worker.pid)
            kill(signal.SIGSTOP, pid)  # so that it cannot write on its way down
            worker.kill()
            kill(signal.SIGKILL, pid)
        finally:
            worker.kill()
            worker.communicate()
    wait_for("end of helm", lambda: not helm_children(), place.patience)


@fault(1, "kill -9 helm in pending-install", quick=True)
def pending_install(place: World) -> None:
    killed_worker(place)
    assert place.stored().statuses == {1: "pending-install"}
    outcome = place.engine({"message": "in the end"}).install()
    assert outcome.actions == ("uninstall 1", "install 1")
    assert place.config("tiny-leak") is None
    place.converge()


@fault(2, "kill -9 helm in pending-upgrade, in mid-apply", quick=True)
def pending_upgrade(place: World) -> None:
    place.install_proven({"message": "good"})
    killed_worker(place)
    assert place.stored().statuses == {1: "deployed", 2: "pending-upgrade"}
    outcome = place.engine({"message": "in the end"}).install()
    assert outcome.actions == ("rollback 1", "upgrade 4")
    assert place.config("tiny-leak") is None
    place.converge()


@fault(2, "kill -9 helm in pending-upgrade, while it waits", variant="waiting", controllers=True)
def pending_upgrade_waiting(place: World) -> None:
    place.install_proven({"message": "good"})
    with ready_with(place, "good", "in the end"):
        task = InThread(place.engine({"message": "two", "extra": "leak"}, wait=True).install)
        kill(signal.SIGKILL, helm_at_work(place, lambda: place.config() == {"message": "two"}))
        task.join()
    assert isinstance(task.error, TransientError), task.error
    place.nothing_half_done()
    assert place.config() == {"message": "good"}
    assert place.config("tiny-leak") is None
    place.converge()


@fault(3, "kill and kill -9 helm in pending-rollback")
def pending_rollback(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "bad", "extra": "leak"}).install()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with place.faults(*slow_deployment(count=2)):
            newest = max(place.statuses())
            task = InThread(place.engine().remediate)
            pid = helm_at_work(place, lambda before=newest: max(place.statuses()) > before)  # type: ignore[misc]
            kill(number, pid)
            task.join()
        assert task.error is not None
    assert "pending-rollback" in place.stored().statuses.values()
    outcome = place.engine().remediate()
    assert outcome.actions == ("rollback 1",)
    assert place.ledger()["proven"]["copy_of"] == 1
    assert place.config("tiny-leak") is None, "the killed rollback had not deleted it yet"
    place.right("good")
    place.converge()


@fault(4, "kill -9 of the Python parent")
def dead_parent(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment()):
        worker = place.worker({"message": "two"})
        try:
            helm_at_work(place, lambda: place.config() == {"message": "two"}, worker.pid)
        finally:
            worker.kill()
            worker.communicate()
        wait_for("end of helm", lambda: not helm_children(), place.patience)
    outcome = place.engine({"message": "in the end"}).install()
    assert outcome.actions[-1].startswith("upgrade")
    place.converge()


@fault(5, "task marked failed (on_kill)", quick=True)
def task_killed(place: World) -> None:
    place.install_proven({"message": "good"})
    task = operator(place, values={"message": "two"})
    with place.faults(*slow_deployment()):
        running = InThread(lambda: task.execute(task_context()))
        helm_at_work(place, lambda: place.config() == {"message": "two"})
        task.on_kill()
        running.join()
    assert running.error is not None
    assert running.error.reason == "Interrupted"
    assert helm_children() == []
    assert place.nothing_half_done().status(2) == "failed"
    place.nobody_holds()
    place.converge()


@fault(6, "worker stopped past its Lease, another recovers, the first wakes")
def frozen_worker(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment(count=1)):
        worker = place.worker({"message": "frozen"})
        pid = helm_at_work(place, lambda: place.config() == {"message": "frozen"}, worker.pid)
        kill(signal.SIGSTOP, worker.pid, pid)
        outcome = place.engine({"message": "other"}).install()
        assert outcome.actions[0] == "rollback 1"
        kill(signal.SIGCONT, pid, worker.pid)
        text, _ = worker.communicate(timeout=60)
    assert worker.returncode != 0, text
    assert "Lease" in text
    wait_for("end of helm", lambda: not helm_children(), place.patience)
    retried(place.engine({"message": "other"}).install)
    place.right("other")
    place.converge()


@fault(6, "a zombie's second deployed revision", variant="zombie")
def zombie(place: World) -> None:
    place.install_proven({"message": "good"})
    place.engine({"message": "two"}).install()
    secret = place.client.get(ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE))
    place.client.replace(with_status(secret, ReleaseStatus.DEPLOYED, "a zombie"))
    assert list(place.stored().statuses.values()) == ["deployed", "deployed"]
    outcome = place.engine({"message": "two"}).install()
    assert outcome.actions[0] == "rollback 1"
    place.right("two")
    place.converge()


@fault(16, "two Dag runs, one release", quick=True)
def two_runs(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*slow_deployment(latency=3)):
        tasks = [InThread(place.engine({"message": "two"}).install) for _ in range(2)]
        for task in tasks:
            task.join()
    assert [task.error for task in tasks] == [None, None]
    assert sorted(len(task.result.actions) for task in tasks) == [0, 1]
    assert place.stored().statuses == {1: "superseded", 2: "deployed"}
    place.converge()


@fault(36, "API server does not answer")
def frozen_api(place: World) -> None:
    place.install_proven({"message": "good"})
    # Every write of Helm hangs; a dead server and one that accepts connections and says nothing look alike to it.
    frozen = [{"userAgent": "Helm", "verb": verb, "latency": 60} for verb in ("patch", "update", "create")]
    with place.faults(*frozen):
        error = failing(place.engine({"message": "two"}, deadline=3).install)
    assert isinstance(error, DeadlinePassed), error
    assert helm_children() == []
    place.converge()


@fault(36, "API server drops every connection", variant="cut")
def cut_api(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults({"userAgent": "Helm", "cut": True}):
        error = failing(place.engine({"message": "two"}, deadline=20).install)
    assert isinstance(error, TransientError), error
    place.nothing_half_done()
    place.converge()


@fault(38, "worker dies after Helm's success, before the ledger entry")
def before_the_ledger(place: World) -> None:
    outcome = place.engine({"message": "one"}).install()
    storage = place.engine().storage
    intent = Intent("install", 1, outcome.digest, "now", "dag/run")
    storage.write_ledger(replace(storage.ledger(), candidate=None, intent=intent))
    again = place.engine({"message": "one"}).install()
    assert again.actions == ()
    assert place.right("one").statuses == {1: "deployed"}
    place.converge()
