"""Records the specs of unfinished runs, so that their DAGs keep their tasks when cluster files change.

Airflow has one DAG per id, the one that was parsed last, and removes from a run every task that this DAG no longer has:
the scheduler marks its instance *removed*, finished or not (airflow-core 3.3.2 ``models/dagrun.py``,
``task_instance_scheduling_decisions``), and a worker that does not find the task fails it (task-sdk
``execution_time/task_runner.py``, ``parse``). Runs of a DAG that is no longer parsed are ignored
(``get_running_dag_runs_to_examine`` leaves stale DAGs out). Versioned bundles change that only for the DAG files, not
for the files that these read. So while a run is under way its DAG is built from the spec that the run froze, and from
the cluster file again when the run is over. There is at most one such run, as the DAGs have ``max_active_runs=1``.

The specs are kept as one small file per DAG in a folder that the workers write to, and that the DAG processor and the
workers read, so that no database is queried while a DAG file is parsed. All of them must share the folder, so there is
none by default: in a folder of its own, a worker would keep the record of a run whose end another worker has noted, and
build the tasks of later runs from that spec. Without a folder a run keeps its tasks only as long as the cluster file
does not change.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, parse_cluster

log = logging.getLogger(__name__)

#: Names the folder; without it nothing is noted.
STATE_DIR_VARIABLE = "GPU_FLEET_STATE_DIR"
#: Seconds that a DAG keeps the run's spec after the run's verdict, until the scheduler has ended the run.
LINGERS_S = 30.0
#: Seconds after which a run counts as over if its DAG sets no ``dagrun_timeout``.
LONGEST_S = 7 * 24 * 3600.0

_SUFFIX = ".json"
_DAG_ID = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


def state_dir() -> Path | None:
    """``GPU_FLEET_STATE_DIR``; ``None`` where it is not set."""
    named = os.environ.get(STATE_DIR_VARIABLE, "")
    return Path(named) if named else None


def _path(dag_id: str) -> Path | None:
    """Where a DAG's record is; ``None`` without a folder, and for an id that no DAG of this package has."""
    folder = state_dir()
    return folder / f"{dag_id}{_SUFFIX}" if folder is not None and _DAG_ID.fullmatch(dag_id) else None


def note_begin(dag_id: str, run_id: str, spec: Mapping[str, Any], lasts_s: float) -> bool:
    """Pin a run to a spec from now on; this replaces an earlier run's record.

    :param spec: its JSON.
    :param lasts_s: seconds after which the run is over in any case.
    :returns: whether it could be written; a run continues without it.
    """
    return _write(dag_id, {"run": run_id, "until": time.time() + lasts_s, "spec": dict(spec)})


def note_end(dag_id: str, run_id: str) -> bool:
    """Note that a run's verdict is known. Safe to repeat, and without effect on the record of another run.

    :returns: whether there was such a record.
    """
    found = _read(dag_id)
    if found is None or found["run"] != run_id:
        return False
    return _write(dag_id, {**found, "until": min(found["until"], time.time() + LINGERS_S), "ended": True})


def pinned(dag_id: str, *, lingers: bool = True) -> ClusterSpec | None:
    """The spec of the DAG's run that is under way.

    :param lingers: whether a run still counts for :data:`LINGERS_S` after its verdict: it does for the scheduler, but
        not for a worker, which may already be starting the next run.
    :returns: ``None`` if there is none, or one that this version of the package refuses.
    """
    found = _in_force(dag_id, lingers=lingers)
    return None if found is None else found[1]


def run_of(dag_id: str) -> str:
    """The id of the run whose spec a worker now builds the DAG from; empty if it is built from the cluster file.

    The run may be over: a run that was deleted, or whose workers were lost, has not noted its end.
    """
    found = _in_force(dag_id, lingers=False)
    return "" if found is None else found[0]


def _in_force(dag_id: str, *, lingers: bool) -> tuple[str, ClusterSpec] | None:
    found = _read(dag_id)
    if found is None or found["until"] <= time.time() or (found["ended"] and not lingers):
        return None
    try:
        spec = parse_cluster(found["spec"], where=f"the spec of run {found['run']}")
    except SpecError as error:
        log.warning("DAG %s follows its cluster file, although run %s is under way: %s", dag_id, found["run"], error)
        return None
    return (found["run"], spec) if spec.name == dag_id.partition(".")[2] else None


def pinned_dags(family: str) -> list[str]:
    """The ids of a family's DAGs that have a record; :func:`pinned` says whether it counts."""
    folder = state_dir()
    if folder is None:
        return []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    ids = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(dag_id for dag_id in ids if dag_id.startswith(f"{family}.") and _DAG_ID.fullmatch(dag_id))


def _read(dag_id: str) -> dict[str, Any] | None:
    path = _path(dag_id)
    if path is None:
        return None
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s: DAG %s follows its cluster file", path, error, dag_id)
        return None
    if not isinstance(value, dict) or not isinstance(value.get("until"), int | float) or "run" not in value:
        log.warning("%s is no record of a run: DAG %s follows its cluster file", path, dag_id)
        return None
    return {
        "run": str(value["run"]),
        "until": float(value["until"]),
        "ended": bool(value.get("ended")),
        "spec": value.get("spec") or {},
    }


def _write(dag_id: str, record: dict[str, Any]) -> bool:
    """Replace the record atomically: the DAG processor may read it at any moment."""
    path = _path(dag_id)
    if path is None:
        return False
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(record), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s): a change of the cluster file may take tasks from this run", path, error)
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    return True
