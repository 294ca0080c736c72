"""A training job under random spot interruptions: ``python -m bench.checkpointed [--interruptions 20] [--seed 1]``.

A real Airflow and the whole sandbox. The Job is that of ``examples/dags/checkpointed_training.py`` with the program
``examples/training/train.py``, in a pool of two nodes. Again and again, at moments drawn from the seed, the node on
which it runs is announced to be taken. Karpenter has no queue. Compared are, for as many interruptions each,

- ``gpu_spot_drain`` at work: the pod is evicted, saves its state and ends before its machine does;
- the DAG paused, so that nobody reacts: the pod runs until the machine is gone.

Lost are steps that were finished and had to be computed again, and the pods that ended with their machine. The state at
the end is compared with one that was computed here without any interruption.

    eval "$(python tools/toolchain.py --export)"; PYTHONPATH=plugins:. python -m bench.checkpointed
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from demo.api import AirflowApi
from demo.control import Sandbox
from demo.kubectl import Kubectl
from demo.spot import DRAIN, NOTICE_S, await_watcher, instance_of
from demo.stack import ROOT, Stack

POOL, NAMESPACE, CLAIM = "shared-a10g", "default", "training"
QUEUE = "demo-gpu-gpu-fleet"
SPEED = 15.0
#: Real seconds of a step, and steps between two checkpoints: without a warning 5 s of work are lost on average.
STEP_S, EVERY = 0.1, 100
#: Of the notice when nobody reacts to it: the job does not know of it, so it need not be long.
IGNORED_NOTICE_S = 10.0


def example(path: str) -> Any:
    """An example as a module."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "examples" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Attempt:
    """What one pod of the Job printed."""

    pod: str
    lines: list[str] = field(default_factory=list)

    def _steps(self, pattern: str) -> list[int]:
        return [int(found[1]) for line in self.lines if (found := re.match(pattern, line))]

    @property
    def began(self) -> int | None:
        """The step at which it resumed; None until it has printed so."""
        if any(line.startswith("begins at step 0") for line in self.lines):
            return 0
        return next(iter(self._steps(r"resumed at step (\d+) ")), None)

    @property
    def reached(self) -> int:
        """The last step that it finished."""
        return max(self._steps(r"finished step (\d+),"), default=self.began or 0)


def lost_steps(attempts: list[Attempt]) -> int:
    """Steps that were finished and were computed again."""
    lost, reached = 0, 0
    for attempt in attempts:
        if attempt.began is None:
            continue
        lost += max(0, reached - attempt.began)
        reached = max(reached, attempt.reached)
    return lost


class Training:
    """The Job in a running stack, and what its pods print."""

    def __init__(self, kubectl: Kubectl, kubeconfig: str, home: Path, name: str, speed: float) -> None:
        self.kubectl, self.name = kubectl, name
        self.attempts: list[Attempt] = []
        self._command = [os.environ.get("KUBECTL_BIN", "kubectl"), "logs", "--follow", "-n", NAMESPACE]
        self._environment = {**os.environ, "KUBECONFIG": kubeconfig, "HOME": str(home)}
        self._followers: list[subprocess.Popen[str]] = []
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        metadata = {"name": CLAIM, "namespace": NAMESPACE}
        kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
        dag = example("dags/checkpointed_training.py")
        job = dag.job_object(name, dag.PROGRAM.read_text(encoding="utf-8"), 10**6)
        settings = {"STEP_SECONDS": str(STEP_S * speed), "EVERY": str(EVERY)}
        container = job["spec"]["template"]["spec"]["containers"][0]
        container["env"] += [{"name": key, "value": value} for key, value in settings.items()]
        kubectl.apply(job)

    def pod(self) -> dict[str, Any] | None:
        """The Job's pod that runs and is not on its way out."""
        for pod in self.kubectl.get("pods", "-n", NAMESPACE, "-l", f"batch.kubernetes.io/job-name={self.name}"):
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]:
                return pod
        return None

    def await_steps(self, steps: int, timeout: float = 180.0) -> dict[str, Any]:
        """A pod of the Job that this has not seen before, once it has finished so many steps."""
        deadline = time.monotonic() + timeout
        known = {attempt.pod for attempt in self.attempts}
        pod = None
        while pod is None or pod["metadata"]["name"] in known:
            _in_time(deadline, "the Job's next pod")
            pod = self.pod()
            time.sleep(0.2)
        attempt = Attempt(pod["metadata"]["name"])
        self.attempts.append(attempt)
        self._follow(attempt)
        while attempt.began is None or attempt.reached < attempt.began + steps:
            _in_time(deadline, f"{steps} steps of {attempt.pod}")
            time.sleep(0.1)
        return pod

    def _follow(self, attempt: Attempt) -> None:
        process = subprocess.Popen(
            [*self._command, attempt.pod], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self._followers.append(process)

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                attempt.lines.append(line.rstrip())

        threading.Thread(target=read, daemon=True).start()

    def end(self) -> None:
        self.kubectl.run("delete", "job", self.name, "-n", NAMESPACE, "--ignore-not-found")
        for process in self._followers:
            process.terminate()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()

    def undisturbed(self) -> bool:
        """Whether the newest step that was printed has the loss of a training without any interruption."""
        program = example("training/train.py")
        state, last = program.State(), max(attempt.reached for attempt in self.attempts)
        while state.step < last:
            state = program.train(state, 0)
        wanted = f"finished step {last}, loss {state.loss:.6f}"
        return any(wanted in attempt.lines for attempt in self.attempts)


def _in_time(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"waited in vain for {what}")


def interrupted(training: Training, count: int, chance: random.Random, interrupt: Callable[[str], Any]) -> Training:
    """Take the node of the Job's pod so many times; returns once the pod after the last of them has worked."""
    for number in range(count):
        pod = training.await_steps(5)
        time.sleep(chance.uniform(0.0, EVERY * STEP_S))
        node = pod["spec"]["nodeName"]
        interrupt(node)
        print(f"  {number + 1}: {node} at step {training.attempts[-1].reached}", flush=True)
    training.await_steps(5)
    return training


def cluster_file(folder: Path) -> None:
    """The demo's shared pool alone; Karpenter has no queue, and removes no idle node meanwhile."""
    spec = yaml.safe_load((ROOT / "include" / "clusters" / "demo.yaml").read_text())
    spec["karpenter"]["interruptionQueue"] = None
    spec["interruptions"] = {"queue": QUEUE, "proveSuccessor": False}
    spec["nodePools"] = [pool for pool in spec["nodePools"] if pool["name"] == POOL]
    spec["nodePools"][0]["disruption"]["consolidateAfter"] = "24h"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.checkpointed", description=__doc__)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    build = Path(tempfile.mkdtemp(prefix="bench-checkpointed-"))
    stack = Stack(build_dir=build, speed=SPEED, clusters_dir=build / "clusters")
    cluster_file(build / "clusters")
    try:
        stack.start()
        compare(stack, options.interruptions, options.seed)
        return 0
    finally:
        stack.stop()
        shutil.rmtree(build, ignore_errors=True)


@dataclass
class Doors:
    """The ways into a running stack."""

    stack: Stack
    api: AirflowApi
    kubectl: Kubectl
    sandbox: Sandbox


def compare(stack: Stack, count: int, seed: int) -> None:
    state = stack.sandbox_state()
    kubeconfig, home = state["env"]["KUBECONFIG"], stack.build_dir / "home"
    api = AirflowApi(stack.airflow_url, "admin", stack.password())
    doors = Doors(stack, api, Kubectl(kubeconfig, home), Sandbox(state))
    stand(api)
    await_watcher(doors)
    time.sleep(5)
    rows = []
    for what, notice in (("gpu_spot_drain at work", NOTICE_S), ("nobody reacts", IGNORED_NOTICE_S)):
        print(f"\n{what}: {count} interruptions, seed {seed}", flush=True)
        api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": what == "nobody reacts"})
        doors.sandbox.call("DELETE", "/lost")
        training = Training(doors.kubectl, kubeconfig, home, f"training-{len(rows)}", SPEED)

        def interrupt(node: str, notice: float = notice) -> None:
            body = {"kind": "spot", "notice": notice, "instances": [instance_of(doors, node)]}
            doors.sandbox.call("POST", "/interrupt", json=body)

        try:
            interrupted(training, count, random.Random(seed), interrupt)  # noqa: S311 - moments, not secrets
            lost = doors.sandbox.call("GET", "/lost")
            rows.append((what, lost_steps(training.attempts), len(lost), training.undisturbed()))
        finally:
            training.end()
    print(f"\n{'':<24} {'interruptions':>13} {'steps lost':>10} {'pods lost':>9}  result as without interruptions")
    for what, steps, pods, same in rows:
        print(f"{what:<24} {count:>13} {steps:>10} {pods:>9}  {'yes' if same else 'NO'}")
    print(json.dumps({what: {"steps": steps, "pods": pods, "same": same} for what, steps, pods, same in rows}))


def stand(api: AirflowApi) -> None:
    """The pool, by a lifecycle run."""
    dag_id = "gpu_lifecycle.demo"
    api.wait_for_dag(dag_id)
    run_id = api.trigger(dag_id, {"until": "validated"})
    while (run := api.run(dag_id, run_id))["state"] not in ("success", "failed"):
        time.sleep(1)
    if run["state"] != "success":
        raise RuntimeError(f"the lifecycle run ended {run['state']}")


if __name__ == "__main__":
    sys.exit(main())
