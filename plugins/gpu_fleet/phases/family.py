"""A family of DAGs: the same graph, once per cluster of the fleet.

Only the DAGs that the parsing context asks for are built: Airflow parses the file again at each start of a task, which
must not take longer in a fleet of fifty clusters. A problem of one cluster affects only its own DAGs: each is replaced
by a DAG of the same id that shows the problem and fails when it is run.

While a run is under way, its DAG is built from the spec that the run was pinned to (``hooks/files/runs.py``): a cluster
file that is edited, broken or removed meanwhile takes no task from it. A second file about the same cluster does not
change the DAG either; the first task of a run refuses it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_parsing_context

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.files.clusters import load_cluster, load_each
from gpu_fleet.hooks.files.dag_files import clusters_of
from gpu_fleet.hooks.files.runs import pinned, pinned_dags
from gpu_fleet.hooks.settings import retry_delay_s
from gpu_fleet.operators.base import DEFAULT_ARGS
from gpu_fleet.operators.spec import InvalidSpecOperator

log = logging.getLogger(__name__)

#: A DAG needs a start date; it is in the past, because runs are triggered or scheduled without catch-up.
START_DATE = datetime(2025, 1, 1, tzinfo=UTC)


def fleet_dags(
    family: str,
    build: Callable[[ClusterSpec], DAG],
    file: str = "",
    *,
    only: Callable[[ClusterSpec], bool] | None = None,
) -> dict[str, DAG]:
    """DAG id to DAG, for the clusters that are to be parsed now.

    :param family: the DAG ids are ``<family>.<cluster>``.
    :param build: the graph of one cluster.
    :param file: the DAG file. It shares the clusters with the family's other files in its folder, see
        :mod:`gpu_fleet.hooks.files.dag_files`.
    :param only: which clusters have a DAG of this family; without it all. A cluster file that cannot be read does not
        say, so then there is no stand-in.
    :raises SpecError: only if the folder of cluster files cannot be read.
    """
    dags: dict[str, DAG] = {}
    for dag_id, spec, problem in _wanted(family, file):
        if only is not None and (spec is None or not only(spec)):
            continue
        if spec is None:
            dags[dag_id] = broken(dag_id, problem)
            continue
        dags[dag_id] = dag = _built(dag_id, spec, build)
        if problem is not None:
            dag.doc_md = f"{dag.doc_md}\n\n{_STILL_UNDER_WAY}\n\n```\n{problem}\n```"
    return dags


_STILL_UNDER_WAY = (
    "**The cluster file cannot be used any more.** The run under way continues with the spec that it froze; the next "
    "one will fail:"
)


def _dag_id(family: str, name: str) -> str:
    """``family.name``; for a file name that Airflow does not accept in a DAG id, which would break every DAG of the
    family, an id that it accepts.
    """
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:180]
    if plain == name:
        return f"{family}.{name}"
    # Unique even if another file has the name to which this one was reduced.
    return f"{family}.{plain}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _built(dag_id: str, spec: ClusterSpec, build: Callable[[ClusterSpec], DAG]) -> DAG:
    """The cluster's DAG, or its stand-in.

    Validated as Airflow does it, because an error there affects the whole file: all its DAGs would become stale.
    """
    try:
        dag = build(spec)
        dag.validate()
    except Exception as error:  # whatever it is, it must not affect other clusters
        log.exception("DAG %s cannot be built", dag_id)
        return broken(dag_id, error)
    return dag


def _wanted(family: str, file: str) -> Iterator[tuple[str, ClusterSpec | None, SpecError | None]]:
    """DAG id, the spec to build it from, and what is wrong with its cluster file."""
    wanted = get_parsing_context().dag_id
    if wanted is not None:
        prefix, _, name = wanted.partition(".")
        if prefix == family and name:
            yield (wanted, *_one(wanted, name))
        return
    mine = clusters_of(family, file)
    files = {_dag_id(family, name): spec for name, spec in load_each(wanted=mine).items()}
    # A run continues also when its file is gone.
    begun = {dag_id for dag_id in pinned_dags(family) if mine(dag_id.removeprefix(f"{family}."))}
    for dag_id in sorted({*files, *begun}):
        found = files.get(dag_id)
        problem = None if isinstance(found, ClusterSpec) else found
        spec = (pinned(dag_id) if dag_id in begun else None) or (found if isinstance(found, ClusterSpec) else None)
        if spec is not None or problem is not None:
            yield dag_id, spec, problem


def _one(dag_id: str, name: str) -> tuple[ClusterSpec | None, SpecError | None]:
    """The spec for a task: the one stored when the DAG was parsed for the scheduler, or, for the first task of a run,
    the one that will be stored next.
    """
    spec = pinned(dag_id, lingers=False)
    if spec is not None:
        return spec, None
    try:
        return load_cluster(name, alone=True), None
    except SpecError as error:
        return None, error


def broken(dag_id: str, error: Exception | None) -> DAG:
    """The stand-in for a DAG whose cluster file cannot be used, or that cannot be built from it."""
    known = isinstance(error, SpecError)
    problem = str(error) if known else f"the DAG cannot be built: {type(error).__name__}: {error}"
    with DAG(
        dag_id=dag_id,
        schedule=None,
        start_date=START_DATE,
        auto_register=False,
        catchup=False,
        doc_md=f"# The cluster file cannot be used\n\n```\n{problem}\n```\n\nOther clusters are not affected.",
        dag_display_name=f"{dag_id} (cluster file invalid)",
        tags=["gpu-fleet", "invalid"],
        default_args={**DEFAULT_ARGS, "retries": 0},
    ) as dag:
        InvalidSpecOperator(task_id="invalid_spec", problem=problem)
    return dag


def fleet_dag(
    family: str,
    spec: ClusterSpec,
    *,
    doc: str,
    graph: Callable[[ClusterSpec], None],
    params: dict[str, Param] | None = None,
    schedule: Any = None,
    deadline: Any = None,
    tags: tuple[str, ...] = (),
    max_active_runs: int = 1,
) -> DAG:
    """One cluster's DAG of a family.

    :param doc: Markdown; the DAG file's docstring.
    :param graph: adds the tasks.
    :param schedule: cron expression (UTC), ``None``: only on request.
    :param deadline: an Airflow ``DeadlineAlert``.
    :param max_active_runs: more than 1 only for runs that take no cluster lock, and whose tasks are the same for any
        spec: they are not pinned to the DAG of one spec (``hooks/files/runs.py``).
    """
    with DAG(
        dag_id=f"{family}.{spec.name}",
        schedule=schedule,
        start_date=START_DATE,
        # The file's globals count; otherwise a DAG that fails half-way would be registered, too.
        auto_register=False,
        catchup=False,
        # Only one run at a time can hold the cluster lock; a second one would only wait for it.
        max_active_runs=max_active_runs,
        default_args={
            **DEFAULT_ARGS,
            "retry_delay": timedelta(seconds=retry_delay_s()),
            "owner": ", ".join(spec.owners),
        },
        doc_md=f"{doc.strip()}\n\n{cluster_table(spec)}",
        params=dict(params or {}),
        tags=["gpu-fleet", f"cluster:{spec.name}", *tags],
        dagrun_timeout=dagrun_timeout(spec),
        deadline=deadline,
    ) as dag:
        graph(spec)
    return dag


def dagrun_timeout(spec: ClusterSpec) -> timedelta:
    """A backstop behind the gates' own deadlines: the sum of all of them, twice (every task may be retried)."""
    seconds = sum(getattr(spec.deadlines, name).seconds for name in type(spec.deadlines).model_fields)
    # A run waits for a Capacity Block once, and gives its jobs their notice at the end.
    blocks = [block.wait + block.notice for pool in spec.node_pools if (block := pool.capacity_block) is not None]
    return timedelta(seconds=2 * seconds + max(blocks, default=0))


def cluster_table(spec: ClusterSpec) -> str:
    """The cluster's pools as a Markdown table, for ``doc_md``."""
    rows = [
        f"| {pool.name} | {', '.join(pool.instance_types)} | {pool.wanted_nodes} | {pool.sharing_words} |"
        for pool in spec.node_pools
    ]
    head = [
        f"Cluster `{spec.cluster.name}` (Kubernetes {spec.cluster.version}) in {spec.region}, "
        f"owned by {', '.join(spec.owners)}.",
        "",
        "| pool | instance types | wanted nodes | sharing |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])
