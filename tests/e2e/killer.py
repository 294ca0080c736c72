"""SIGKILLs the processes of Airflow's tasks at random instants, and tells in what state the cluster is afterwards."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.timeline import epoch
from tests.e2e.fleet import POOL_LABEL, SYSTEM_NAMESPACE, VALIDATION_NAMESPACE, Fleet, Json, Run

#: Seconds a task's process is given at most before it is killed; most tasks are over by then.
LONGEST = 3.0
#: Used where no clean run has told how long a task takes.
USUAL = 1.0


@dataclass(frozen=True)
class Kill:
    """A SIGKILL that was sent.

    :ivar after: seconds after the process was seen.
    :ivar resumed: the task had been deferred before.
    """

    task_id: str
    pid: int
    after: float
    resumed: bool


@dataclass
class _Planned:
    task_id: str
    pid: int
    due: float
    delay: float
    resumed: bool


class Killer(threading.Thread):
    """Kills the process of each task of one run on the task's first try, once, after a random part of its usual time.

    Airflow writes the pid of the task's own process, a child of the worker that supervises it, into
    ``task_instance.pid`` when the process reports that it runs (airflow sdk execution_time/supervisor.py). The
    supervisor notices its end and asks for a retry, as it would after an out-of-memory kill.

    :param seed: with it and the task's id the instant is drawn.
    :param usual: seconds that the tasks' processes took in a clean run.
    :param spare: task ids that live.
    :param hurry: scales the delays; below 1 for tasks that were over too soon the time before.
    """

    def __init__(
        self,
        fleet: Fleet,
        dag_id: str,
        run_id: str,
        *,
        seed: int,
        usual: Mapping[str, float] | None = None,
        only: Collection[str] | None = None,
        spare: Collection[str] = (),
        hurry: float = 1.0,
    ) -> None:
        super().__init__(name="killer", daemon=True)
        self.kills: list[Kill] = []
        self.error: BaseException | None = None
        self._database = fleet.stack.database
        self._run = (dag_id, run_id)
        self._seed, self._usual, self._hurry = seed, dict(usual or {}), hurry
        self._only, self._spare = only, set(spare)
        self._seen: dict[str, set[int]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        planned: list[_Planned] = []
        try:
            with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=10)) as connection:
                while not self._ended.wait(0.05):
                    running = self._running(connection)
                    planned += [self._plan(*row) for row in running.items() if self._is_new(*row)]
                    now = time.monotonic()
                    for plan in [plan for plan in planned if plan.due <= now]:
                        planned.remove(plan)
                        if running.get(plan.task_id) == plan.pid and kill_task(plan.pid):
                            self.kills.append(Kill(plan.task_id, plan.pid, round(plan.delay, 2), plan.resumed))
        except BaseException as error:  # noqa: BLE001 - handed to the test by __exit__
            self.error = error

    def _running(self, connection: sqlite3.Connection) -> dict[str, int]:
        rows = connection.execute(
            "SELECT task_id, pid FROM task_instance WHERE dag_id = ? AND run_id = ? AND state = 'running' "
            "AND try_number = 1 AND pid IS NOT NULL",
            self._run,
        )
        return {task_id: pid for task_id, pid in rows if self._wanted(task_id)}

    def _wanted(self, task_id: str) -> bool:
        return task_id not in self._spare and (self._only is None or task_id in self._only)

    def _is_new(self, task_id: str, pid: int) -> bool:
        return pid not in self._seen.get(task_id, set()) and task_id not in {kill.task_id for kill in self.kills}

    def _plan(self, task_id: str, pid: int) -> _Planned:
        seen = self._seen.setdefault(task_id, set())
        resumed = bool(seen)
        seen.add(pid)
        part = random.Random(f"{self._seed}:{task_id}:{resumed}").random()
        delay = part * self._hurry * (USUAL if resumed else min(self._usual.get(task_id, USUAL), LONGEST))
        return _Planned(task_id, pid, time.monotonic() + delay, delay, resumed)

    def hits(self, run: Run) -> set[str]:
        """The tasks whose kill landed: they have been tried again (a task may have told its end just before)."""
        return {kill.task_id for kill in self.kills if int(run.tasks[kill.task_id]["try_number"] or 0) > 1}


def kill_task(pid: int) -> bool:
    """SIGKILL the process if it is one of a task of Airflow."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if b"airflow" not in command:
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def usual_seconds(run: Run) -> dict[str, float]:
    """Seconds from start to end of the tasks that ran in a clean run; of those that deferred, unknown."""
    rows = run.fleet.query(
        "SELECT DISTINCT task_id FROM xcom WHERE dag_id = ? AND run_id = ? AND key = 'waiting_for'",
        run.dag_id,
        run.run_id,
    )
    deferred = {row["task_id"] for row in rows}
    spans = {task_id: run.span(task_id) for task_id in run.in_state("success") if task_id not in deferred}
    return {task_id: end - start for task_id, (start, end) in spans.items()}


# --- the state of things ---------------------------------------------------------------------------------------------

#: Whose content differs from run to run, and is looked at on its own (or is a controller's business).
_OTHER = re.compile(r"^ConfigMap \S*/(gpu-fleet-release-|turn$)|^Secret |^(Event|Lease|Node|NodeClaim|Pod|CSINode) ")
_CONTENT = ("spec", "data", "handler", "value")
#: Fields of a spec that the server fills in anew for each object.
_ASSIGNED = ("clusterIP", "clusterIPs")


@dataclass(frozen=True)
class EndState:
    """What must be the same after a run whose tasks were killed as after a clean one.

    :ivar objects: the cluster's objects; of generated names, how many there are.
    :ivar content: digests of what the objects of fixed names want.
    :ivar releases: Helm's revisions with their status.
    :ivar proven: release to revision, and whether the ledger calls it proven.
    :ivar allocatable: pool to GPUs per node.
    :ivar open: what no task has cleaned up.
    """

    objects: Counter[str]
    content: dict[str, str]
    releases: dict[str, str]
    proven: dict[str, tuple[int, bool]]
    allocatable: dict[str, list[int]]
    instances: int
    open: list[str] = field(default_factory=list)


def end_state(fleet: Fleet) -> EndState:
    names = fleet.kubectl.run("api-resources", "--verbs=list", "-o", "name").split()
    kinds = [name for name in names if name.split(".")[0] not in ("events", "leases", "componentstatuses")]
    objects, content, open_ends = Counter[str](), dict[str, str](), list[str]()
    for item in fleet.objects(",".join(kinds)):
        key = _key(item)
        objects[key] += 1
        if not _OTHER.match(key) and objects[key] == 1:
            content[key] = json.dumps({part: _wanted(item[part]) for part in _CONTENT if part in item}, sort_keys=True)
        open_ends += _open_ends(item)
    holder = fleet.turn_holder()
    if holder:
        open_ends.append(f"the turn is held by {holder}")
    return EndState(
        objects=objects,
        content=content,
        releases=fleet.revisions(),
        proven={n: (r["revision"], r.get("proven_revision") == r["revision"]) for n, r in fleet.releases().items()},
        allocatable={pool: sorted(found) for pool, found in sorted(fleet.allocatable().items())},
        instances=len(fleet.instances()),
        open=sorted(open_ends),
    )


def _wanted(part: Any) -> Any:
    return {key: value for key, value in part.items() if key not in _ASSIGNED} if isinstance(part, dict) else part


def _key(item: Json) -> str:
    meta = item["metadata"]
    name = meta.get("generateName") or meta["name"]
    if item["kind"] in ("Node", "CSINode"):
        name = meta.get("labels", {}).get(POOL_LABEL, "any")
    return f"{item['kind']} {meta.get('namespace', '')}/{name}"


def _open_ends(item: Json) -> list[str]:
    meta = item["metadata"]
    told = f"{item['kind']} {meta.get('namespace', '')}/{meta['name']}"
    found = []
    if meta.get("deletionTimestamp"):
        found.append(f"{told} is being deleted")
    if item["kind"] == "Pod" and meta.get("namespace") in (SYSTEM_NAMESPACE, VALIDATION_NAMESPACE):
        found.append(f"{told} is left")
    if item["kind"] == "Node" and "karpenter.sh/do-not-disrupt" in meta.get("annotations", {}):
        found.append(f"{told} is still protected")
    return found


def differences(clean: EndState, now: EndState) -> list[str]:
    """What is not as after the clean run, in words."""
    found = [f"objects: {now.objects[k] - clean.objects[k]:+d} {k}" for k in sorted(clean.objects | now.objects)
             if now.objects[k] != clean.objects[k]]  # fmt: skip
    for key in sorted(clean.content.keys() & now.content.keys()):
        if clean.content[key] != now.content[key]:
            found.append(f"content of {key}: {clean.content[key]} -> {now.content[key]}")
    for name in ("releases", "proven", "allocatable", "instances", "open"):
        before, after = getattr(clean, name), getattr(now, name)
        if before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


def launched(fleet: Fleet) -> set[str]:
    """Every instance that Karpenter ever launched, terminated ones included."""
    filters = [{"Name": "tag-key", "Values": [POOL_LABEL]}]
    pages = fleet.aws("ec2").get_paginator("describe_instances").paginate(Filters=filters)
    return {i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]}


# --- the triggerer ---------------------------------------------------------------------------------------------------


def triggerer(fleet: Fleet) -> int:
    """The pid of the stack's triggerer."""
    return components(fleet, "triggerer")[0]


def components(fleet: Fleet, name: str) -> list[int]:
    """The pids of the processes of a component of the stack's Airflow, its first one first.

    :raises AssertionError: there is none.
    """
    from demo.processes import session_pids

    process = fleet.stack.airflow_process
    leader = (
        process.pid
        if process is not None
        else json.loads((fleet.stack.build_dir / "stack.json").read_text())["airflow_pid"]
    )
    found = []
    for pid in session_pids(int(leader)):
        with suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"):
                found.append(pid)
    assert found, f"the stack has no {name}"
    return found


def process_of(pid: int) -> tuple[list[str], dict[str, str]]:
    """A process's command and environment, to start it again as it was."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
    return command, dict(entry.split("=", 1) for entry in entries if "=" in entry)


def ended_at(run: Run, task_id: str) -> float:
    """Epoch seconds of a task's end."""
    value: Any = epoch(run.tasks[task_id]["end_date"])
    assert value is not None, run.tasks[task_id]
    return float(value)
