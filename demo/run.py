"""The demo's scenario: one lifecycle, or a lifecycle and a broken upgrade; then the report."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from demo import facts, spot, workload
from demo.api import AirflowApi
from demo.borrowed import WITH_CONTROLLERS, Borrowed, label_of
from demo.control import Sandbox
from demo.kubectl import Kubectl
from demo.processes import pss_mb, session_pids
from demo.progress import Follower
from demo.report import Report, render, timeline_json
from demo.saved import saved_pids
from demo.stack import ROOT, Stack
from demo.timeline import epoch, read_spans, timeline

CLUSTER = "demo"
LIFECYCLE = f"gpu_lifecycle.{CLUSTER}"
SHARED_POOL = "shared-a10g"
SHARING = f"validation.pool_{SHARED_POOL}.sharing"
#: Generous: the lifecycle takes about three minutes at the demo's speed.
RUN_TIMEOUT_S = 900.0
#: An image tag that no registry has: pods of this revision can never start.
BROKEN_TAG = "v0.20.0-broken"


def run(stack: Stack, *, fault: str | None, keep: bool, kubeconfig: Path | None = None) -> int:
    """
    :param fault: ``broken-plugin``: then an upgrade that never becomes ready; ``spot-interruption``: then EC2 takes a
        node with a user's job.
    :param keep: stop after validation and leave everything running.
    :param kubeconfig: of an API server to borrow.
    :returns: 0 on success.
    """
    stack.outlives = keep
    began = time.time()
    borrowed = prepare(stack, kubeconfig)
    start(stack, borrowed)
    memory = MemoryWatch(stack)
    memory.start()
    kept = False
    try:
        print(f"ready after {time.time() - began:.0f} s: Airflow at {stack.airflow_url}")
        scene = Scene(stack)
        if fault == "broken-plugin":
            passed = scene.broken_plugin(cluster_file(stack))
        elif fault == "spot-interruption":
            passed = scene.spot_interruption()
        else:
            passed = scene.lifecycle("validated" if keep else "torn_down")
        scene.report["peak_pss_mb"] = round(memory.stop())
        scene.report["seconds_with_start"] = round(time.time() - began, 1)
        save(stack.build_dir / "report.json", scene.report)
        print(render(scene.report))
        if keep:
            kept = True
            say_where(stack)
        return 0 if passed else 1
    except TimeoutError as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        memory.stop()
        if not kept:
            stack.stop()
            if borrowed is not None:
                print(borrowed.clean().text)


def up(stack: Stack, kubeconfig: Path | None, *, foreground: bool) -> None:
    """Start sandbox and Airflow and leave them running, or stay until interrupted."""
    borrowed = prepare(stack, kubeconfig)
    start(stack, borrowed)
    say_where(stack)
    if foreground:
        try:
            stay(stack)
        finally:
            if borrowed is not None:
                print(borrowed.clean().text)


def prepare(stack: Stack, kubeconfig: Path | None) -> Borrowed | None:
    """Prepare the cluster files for the stack, and claim the API server to borrow.

    :raises StackError: that server must not be used.
    """
    clusters = stack.build_dir / "clusters"
    shutil.rmtree(clusters, ignore_errors=True)
    shutil.copytree(ROOT / "include" / "clusters", clusters)
    stack.clusters_dir = clusters
    if kubeconfig is None:
        return None
    borrowed = Borrowed.open(kubeconfig, stack.build_dir / "home")
    borrowed.claim()
    print(label_of(borrowed.version, borrowed.server, borrowed.controllers))
    borrowed.write_spec(cluster_file(stack))
    borrow(stack, borrowed)
    return borrowed


def borrow(stack: Stack, borrowed: Borrowed) -> None:
    """Make a stack use a borrowed API server; to be called before the start."""
    stack.kubeconfig = borrowed.kubeconfig
    stack.sandbox_parts = () if borrowed.controllers else WITH_CONTROLLERS


def start(stack: Stack, borrowed: Borrowed | None) -> None:
    """Start the stack; if it does not start, nothing is left on a borrowed API server."""
    try:
        stack.start()
    except BaseException:
        if borrowed is not None:
            print(borrowed.clean().text)
        raise


def cluster_file(stack: Stack) -> Path:
    return stack.build_dir / "clusters" / f"{CLUSTER}.yaml"


class Scene:
    """What the demo does with a running stack, and its report."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        state = stack.sandbox_state()
        self.sandbox = Sandbox(state)
        self.kubectl = Kubectl(state["env"]["KUBECONFIG"], stack.build_dir / "home")
        self.api = AirflowApi(stack.airflow_url, "admin", stack.password())
        self.report: Report = {"timelines": {}, "runs": []}
        self.story_has_a_job = False
        self.job = False

    # --- runs ----------------------------------------------------------------------------------------------------
    def lifecycle(self, until: str) -> bool:
        """One lifecycle; its approval is answered as soon as a user's job runs on the new GPUs."""
        self.story_has_a_job = until == "torn_down"
        run = self._run(until)
        passed = bool(run["state"] == "success")
        if until == "torn_down":
            passed = passed and self.report.get("leaks") == []
        self.report["outcome"] = (
            f"the lifecycle run ended {run['state']}" if passed else f"FAILED: the lifecycle run ended {run['state']}"
        )
        return passed

    def broken_plugin(self, spec_file: Path) -> bool:
        """A healthy lifecycle, then an upgrade of the device plugin that never becomes ready."""
        first = self._run("validated")
        if first["state"] != "success":
            self.report["outcome"] = f"FAILED: the healthy lifecycle ended {first['state']}"
            return False
        before = facts.releases(self.kubectl)
        print(f"\nupgrading the device plugin to image tag {BROKEN_TAG}, which exists in no registry\n")
        healthy = spec_file.read_text()
        spec_file.write_text(break_plugin(healthy))
        second = self._run("validated")
        spec_file.write_text(healthy)
        failed = [task for task in self.api.tasks(LIFECYCLE, second["dag_run_id"]) if task["state"] == "failed"]
        causes = [self._log(second["dag_run_id"], task) for task in failed]
        cause_found = any(BROKEN_TAG in cause or "ImagePull" in cause for cause in causes)
        end = facts.wait_for_health(self.kubectl, before, timeout=120)
        rolled_back = facts.rollback(self.kubectl)
        self.report["fault"] = {
            "injected": f"image tag {BROKEN_TAG}",
            "failed_tasks": [task["task_id"] for task in failed],
            "cause_named": cause_found,
            "rollback": rolled_back,
            "end_state": end,
        }
        proven = next((row.get("proven_revision") for row in before if row["name"] == facts.PLUGIN), None)
        to_proven = rolled_back is not None and rolled_back["to"] == proven
        passed = second["state"] == "failed" and cause_found and to_proven and end["healthy"]
        self.report["releases"] = facts.releases(self.kubectl)
        self.report["outcome"] = (
            f"{'as it should be' if passed else 'FAILED'}: the upgrade's run ended {second['state']}, "
            f"the cause was {'named' if cause_found else 'NOT named'} "
            f"({', '.join(task['task_id'] for task in failed)}), {facts.rollback_text(rolled_back)}, "
            f"and the end state is {'healthy' if end['healthy'] else 'NOT healthy'}: {end['message']}"
        )
        return passed

    def spot_interruption(self) -> bool:
        """A healthy lifecycle, then EC2 takes a node on which a user's job runs."""
        first = self._run("validated")
        if first["state"] != "success":
            self.report["outcome"] = f"FAILED: the healthy lifecycle ended {first['state']}"
            return False
        return spot.interrupt_and_follow(self, self.report, SHARED_POOL)

    def _run(self, until: str) -> dict[str, Any]:
        self.api.wait_for_dag(LIFECYCLE)
        run_id = self.api.trigger(LIFECYCLE, {"until": until})
        print(f"\n{LIFECYCLE}: run {run_id}, until {until}\n")
        print(f"{'at':>6}  {'phase':<32} {'task':<24} {'state':<12} {'elapsed':>8}   what it waits for\n{'-' * 130}")
        follower = Follower(self.api, self.stack, on_input=lambda task: self._approve(run_id, task), on_tick=self._look)
        run = follower.follow(LIFECYCLE, run_id, RUN_TIMEOUT_S)
        self._collect(run)
        return run

    def _look(self, tasks: list[dict[str, Any]]) -> None:
        """What must be observed, or done, while the capacity exists."""
        done = {task["task_id"]: task for task in tasks if task["state"] == "success"}
        if self.story_has_a_job and not self.job and SHARING in done:
            # Before the plan is made: a teardown must not evict a pod that the approver has not seen.
            self.job = True
            workload.create(self.kubectl, SHARED_POOL)
            print("        a user starts a training job on the shared GPUs")
        if "release_turn" in done and "nodes" not in self.report:
            offers = self.api.xcom(LIFECYCLE, done["release_turn"]["dag_run_id"], "preflight.check_aws") or {}
            physical = {name: int(offer["gpus"]) for name, offer in offers.get("instance_types", {}).items()}
            self.report["nodes"] = facts.nodes(self.kubectl, physical)
            self.report["releases"] = facts.releases(self.kubectl)

    def _approve(self, run_id: str, task_id: str) -> None:
        plan = self.api.xcom(LIFECYCLE, run_id, "teardown.plan") or {"plan": {"pods": []}}
        users = [pod for pod in plan["plan"]["pods"] if pod.startswith(f"{workload.NAMESPACE}/")]
        if self.job and not users:
            print("        the training job started too late for the plan; its user deletes it")
            workload.remove(self.kubectl)
        else:
            print(f"        the plan names the user's pods: {', '.join(users) or 'none'}")
        print(f"        the demo answers {task_id}: Approve")
        self.api.answer(LIFECYCLE, run_id, task_id, "Approve")

    def _collect(self, run: dict[str, Any]) -> None:
        run_id = run["dag_run_id"]
        started, ended = epoch(run["start_date"]), epoch(run["end_date"])
        spans = read_spans(self.stack.database, LIFECYCLE, run_id)
        told = self.sandbox.waits()
        save(self.stack.build_dir / "waits.json", told)
        waits = [(wait["started"], wait["ended"]) for wait in told]
        split = timeline(spans, waits, started=started or 0.0, ended=ended or 0.0)
        self.report["timelines"][run_id] = timeline_json(split, started or 0.0)
        self.report["runs"].append(
            {"run_id": run_id, "state": run["state"], "seconds": round((ended or 0) - (started or 0), 1)}
        )
        outcomes = {task["task_id"]: task for task in self.api.tasks(LIFECYCLE, run_id)}

        def xcom(task_id: str, key: str = "return_value") -> Any:
            return self.api.xcom(LIFECYCLE, run_id, task_id, key) if task_id in outcomes else None

        self.report.update(facts.from_xcoms(outcomes, xcom, seconds=((ended or 0) - (started or 0)) * self.stack.speed))

    def _log(self, run_id: str, task: dict[str, Any]) -> str:
        return self.api.log(LIFECYCLE, run_id, task["task_id"], max(1, int(task.get("try_number") or 1)))


def break_plugin(text: str) -> str:
    """The cluster file with an image tag for the device plugin that does not exist."""
    spec = copy.deepcopy(yaml.safe_load(text))
    spec["devicePlugin"].setdefault("values", {})["image"] = {"tag": BROKEN_TAG}
    # Waiting ten minutes for an image that does not exist shows no more than waiting two.
    spec.setdefault("deadlines", {}).update({"prove": "2m", "capacity": "3m", "release": "2m"})
    return yaml.safe_dump(spec, sort_keys=False)


class MemoryWatch(threading.Thread):
    """Samples the proportional set size of everything that the stack started."""

    def __init__(self, stack: Stack, interval: float = 5.0) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.interval = interval
        self.peak = 0.0
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self.interval):
            pids: list[int] = []
            for process in (self.stack.sandbox_process, self.stack.airflow_process):
                if process is not None:
                    pids += session_pids(process.pid)
            self.peak = max(self.peak, pss_mb(pids))

    def stop(self) -> float:
        """The peak, in MiB."""
        self._stopping.set()
        return self.peak


def save(path: Path, report: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=str) + "\n")


def still_running(build_dir: Path) -> bool:
    """Whether the stack of stack.json is alive."""
    return bool(saved_pids(build_dir))


def stay(stack: Stack) -> None:
    """Wait until interrupted, or until a part dies.

    :raises StackError: names the part that died; everything else is stopped.
    """
    try:
        while True:
            stack.check()
            time.sleep(2)
    except BaseException:
        stack.stop()
        raise


def say_where(stack: Stack) -> None:
    """Print addresses and credentials of what is left running."""
    print(
        f"\nAirflow    {stack.airflow_url}   user admin, password {stack.password()}\n"
        f"kubectl    export KUBECONFIG={stack.sandbox_state()['env']['KUBECONFIG']}\n"
        f"stop it    make down\n"
    )
