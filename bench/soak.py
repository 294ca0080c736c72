"""Kills at random moments: ``python -m bench.soak --kills 100 [--seed N] [--helm 3]``.

Each round starts a random install, upgrade, rollback or uninstall of random values in a worker process, with a real
helm against the sandbox's API server, and at a random moment kills the helm child, the worker, both, the triggerer that
waits for the release, or every connection of the API server. Then the release is installed once more, as a retry or
the next Dag run would, and Helm's storage, the ledger and the objects are read with kubectl: nothing pending, exactly
one revision deployed, nothing leaked, storage and ledger agree. The seed is printed and repeats the choices; the
moments depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_fleet.core.errors import GpuFleetError, TransientError
from tests.e2e.helm_world import CHARTS, NAMESPACE, ROOT, World, helm_binary, helm_children, worker_environment, world

OPERATIONS = ("install", "install", "install", "remediate", "uninstall")
VICTIMS = ("helm", "helm", "worker", "worker", "both", "api", "triggerer")
#: Seconds without renewal after which a killed worker's Lease is free; short, because each round waits for it.
LEASE_S = 3
#: Real seconds that each request of helm takes: spreads an operation over the time in which it can be killed.
LATENCY = 0.08
_PATIENCE = 120.0


@dataclass
class Figures:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    retries: int = 0
    broken: list[str] = field(default_factory=list)


class Soak:
    """One release, its operations and the kills."""

    def __init__(self, place: World, seed: int) -> None:
        self.place = place
        self.random = random.Random(seed)  # noqa: S311  (no secret)
        self.figures = Figures()
        #: Digest that the ledger must call proven; empty: none; ``None``: unknown, because an uninstall was killed.
        self.proven: str | None = ""

    def values(self) -> dict[str, Any]:
        """Random values; half of them add an object, which a failed revision may leak."""
        extra = self.random.choice(("", "more", "leak", "other"))
        return {"message": f"m{self.random.randrange(10**6)}", **({"extra": extra} if extra else {})}

    def round(self) -> None:
        operation = self.random.choice(OPERATIONS)
        victim = self.random.choice(VICTIMS)
        values = self.values()
        moment = self.random.random()
        if victim == "triggerer":
            struck = self.kill_triggerer(moment)
        else:
            struck = self.kill_operation(operation, victim, values, moment)
        if not struck:
            self.figures.missed += 1
            return
        self.figures.kills[victim] += 1
        self.figures.operations["wait" if victim == "triggerer" else operation] += 1
        half = [status for status in self.place.statuses().values() if status.startswith(("pending", "uninst"))]
        self.figures.found[half[0] if half else "nothing half done"] += 1
        self.converge()

    def kill_operation(self, operation: str, victim: str, values: dict[str, Any], moment: float) -> bool:
        """Whether the victim was alive when it was killed."""
        place = self.place
        if operation == "uninstall":
            self.proven = None
        slow = {"userAgent": "Helm", "latency": LATENCY}
        with place.faults(slow):
            worker = place.worker(values, operation, lease_s=LEASE_S)
            try:
                assert worker.stdout is not None
                worker.stdout.readline()  # it has imported everything and begins
                time.sleep(moment * 2.5)
                if worker.poll() is not None:
                    return False
                if victim in {"helm", "both"}:
                    children = helm_children(worker.pid)
                    if not children and victim == "helm":
                        return False
                    if victim == "both":
                        worker.send_signal(signal.SIGSTOP)
                    for pid in children:
                        _kill(pid)
                if victim in {"worker", "both"}:
                    worker.kill()
                if victim == "api":
                    place.cut_connections()
                worker.communicate(timeout=_PATIENCE)
            finally:
                worker.kill()
                worker.communicate()
        until = time.monotonic() + _PATIENCE
        while helm_children() and time.monotonic() < until:
            time.sleep(0.05)
        if helm_children():
            self.figures.broken.append("a helm outlived its worker")
        return True

    def kill_triggerer(self, moment: float) -> bool:
        """A trigger dies, and another triggerer continues with the same arguments; neither writes anything."""
        place = self.place
        deadline = time.time() + 4.0
        arguments = {
            "gate": "release_workloads",
            "args": {"release": "tiny", "namespace": NAMESPACE, "workloads": [f"Deployment/{NAMESPACE}/tiny"]},
            "access": place.access.to_json(),
            "deadline": deadline,
            "started": time.time(),
        }
        before = place.writes()
        script = str(ROOT / "tests" / "e2e" / "helm_triggerer.py")
        events = []
        for last in (False, True):
            child = subprocess.Popen(
                [sys.executable, script, json.dumps(arguments)],
                env=worker_environment(place.helm),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if not last:
                time.sleep(moment * 3.0)
                child.kill()
            text, _ = child.communicate(timeout=_PATIENCE)
            events = [json.loads(line) for line in text.splitlines() if line.startswith('{"type"')]
        if place.writes() != before:
            self.figures.broken.append("a trigger wrote something")
        if not events or events[-1]["type"] != "deadline" or time.time() < deadline:
            self.figures.broken.append(f"the trigger's deadline did not survive: {events}")
        return True

    def converge(self) -> None:
        """The next run installs; transient errors are retried, as Airflow would."""
        wanted = self.values()
        for attempt in range(4):
            try:
                outcome = self.place.engine(wanted, lease_s=LEASE_S).install()
                break
            except GpuFleetError as error:
                self.figures.retries += 1
                if attempt == 3 or not isinstance(error, TransientError):
                    self.figures.broken.append(f"not converging: {error}")
                    return
        stored = self.place.stored()
        self.figures.broken += [*stored.half_done(), *stored.problems(wanted["message"], self.proven)]
        self.proven = (stored.ledger.get("proven") or {}).get("digest", "")
        if self.random.random() < 0.5 and outcome.revision is not None:
            self.place.engine(wanted, lease_s=LEASE_S).mark_proven(outcome.revision, outcome.secret_uid)
            self.proven = outcome.digest

    def run(self, kills: int) -> Figures:
        self.converge()
        while sum(self.figures.kills.values()) < kills and not self.figures.broken:
            self.round()
            done = sum(self.figures.kills.values())
            if done and done % 10 == 0:
                print(f"{done} kills, {len(self.figures.broken)} broken", flush=True)
        return self.figures


def _kill(pid: int) -> None:
    import contextlib
    import os

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    """
    :returns: 0 if every round converged.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--helm", type=int, choices=(3, 4), default=4, help="helm's major version")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    assert (CHARTS / "tiny").is_dir()
    logging.getLogger().setLevel(logging.CRITICAL)
    helm = helm_binary(options.helm)
    print(f"soak: seed {seed}, {options.kills} kills, helm {options.helm}", flush=True)
    import os

    os.environ["HELM_BIN"] = helm
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-soak-") as folder, world(Path(folder), helm) as place:
        figures = Soak(place, seed).run(options.kills)
    for name, counted in (("killed", figures.kills), ("during", figures.operations), ("found after", figures.found)):
        print(f"{name}: " + ", ".join(f"{key} {count}" for key, count in counted.most_common()))
    print(f"retries until converged: {figures.retries}; rounds whose victim had ended already: {figures.missed}")
    print(f"{time.monotonic() - started:.0f} s, seed {seed}")
    for problem in figures.broken:
        print(f"BROKEN: {problem}")
    print("every round converged" if not figures.broken else "not every round converged")
    return 1 if figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
