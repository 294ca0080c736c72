"""Whether a run has the tasks of the DAG that its frozen spec makes. Pure.

Airflow gives a run the tasks of the DAG as its database has it, which is that of the cluster file as the DAG processor
read it last (airflow-core 3.3.2 ``models/dagrun.py``, ``verify_integrity``). Once the DAG has been parsed again the
scheduler adds to a run what is new and marks as *removed* what has gone (``jobs/scheduler_job_runner.py``,
``_verify_integrity_if_dag_changed``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_SHOWN = 3


def difference(tasks: Collection[str], states: Mapping[str, Any]) -> str:
    """In which tasks a run differs from its DAG, in words; empty if in none.

    :param tasks: the DAG's task ids.
    :param states: task id (of a mapped task ``<id>_<index>``) to state of the run's task instances.
    """
    run = {key for key, state in states.items() if state != "removed"}
    mapped = {key: re.sub(r"_[0-9]+$", "", key) for key in run}
    missing = sorted(set(tasks) - run - set(mapped.values()))
    surplus = sorted(key for key in run if key not in tasks and mapped[key] not in tasks)
    parts = [f"it lacks {_some(missing)}"] if missing else []
    if surplus:
        parts.append(f"it has {_some(surplus)}, which the spec does not make")
    return " and ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
