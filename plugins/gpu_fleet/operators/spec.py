"""Pins a Dag run to its cluster spec, or reports why the spec cannot be used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from gpu_fleet.core.errors import SpecError, TransientError
from gpu_fleet.operators.base import task_states

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: Key in Airflow's task state store, which survives retries and clears of the task, unlike its XComs.
FROZEN = "frozen_spec"
#: Seconds that a run waits for the DAG processor to read a cluster file that was edited just before, and between looks.
#: Airflow reads a DAG file again after ``[dag_processor] min_file_process_interval``, by default 30 s.
DAG_PATIENCE_S, DAG_LOOK_S = 120.0, 1.0


def selected_pools(param: Any, known: tuple[str, ...]) -> list[str]:
    """The pools that the Param ``pools`` selects, in the spec's order; none selected means all.

    :raises SpecError: naming the pools there are.
    """
    if param in (None, "", [], ()):
        return list(known)
    wanted = [param] if isinstance(param, str) else list(param)
    unknown = [str(name) for name in wanted if name not in known]
    if unknown:
        raise SpecError(
            f"there is no pool {', '.join(map(repr, unknown))}",
            field="params.pools",
            remedy=f"one of: {', '.join(known)}",
        )
    return [name for name in known if name in wanted]


def refuse_unknown_conf(context: Mapping[str, Any]) -> None:
    """Refuse a misspelt key in a run's conf, which would silently leave the default in force.

    :raises SpecError: naming the key and the Params there are.
    """
    conf = getattr(context.get("dag_run"), "conf", None) or {}
    # Not the context's "params": Airflow has added the conf to those, unknown keys and all.
    params = list(getattr(context.get("dag"), "params", None) or {})
    unknown = sorted(set(conf) - set(params))
    if unknown:
        raise SpecError(
            f"this DAG has no Param {', '.join(map(repr, unknown))}",
            field="conf",
            remedy=f"one of: {', '.join(params) or 'none; start it without conf'}",
        )


def refuse_beyond(spec: ClusterSpec, *, notifies: bool = True) -> list[str]:
    """Refuse a spec that names what cluster files of this deployment may not.

    :param notifies: whether the run may use the notifiers of the file. They do not stop a run that does not use them: a
        teardown has to end capacity that costs money. ``load_notifier`` refuses them by itself.
    :returns: what the file names without permission and such a run does not use.
    :raises SpecErrors: ``NotAllowedHere``, if the spec names what cluster files of this deployment may not.
    """
    from gpu_fleet.core.spec import SpecErrors
    from gpu_fleet.core.trust import NOT_ALLOWED, beyond
    from gpu_fleet.hooks.settings import trust

    found = beyond(trust(), spec)
    passed = [] if notifies else [problem for problem in found if problem.field.startswith("validation.notify")]
    problems = [SpecError(p.message, field=p.field, remedy=p.remedy) for p in found if p not in passed]
    if problems:
        error = SpecErrors(problems, where=f"{spec.name}.yaml")
        error.reason = NOT_ALLOWED
        raise error
    return [f"{problem.field}: {problem.message} ({problem.remedy})" for problem in passed]


class FreezeSpecOperator(BaseOperator):
    """Reads the cluster file and freezes it for this run: later tasks read only what this task returns.

    The run's DAG is also built from it until the run is over (``hooks/files/runs.py``).
    Cleared or retried, the task returns what the run was pinned to at first, whatever the file says by now: a run must
    not follow two specs. Start a new run to use a changed file. With a lock file (``charts.lock.yaml``) the charts'
    digests are pinned too.

    :param cluster: name of the cluster, which is its file's stem.
    :param provisions: the run is about the cluster's capacity: refused for a cluster with ``state: absent``.
    :returns: ``{"spec", "digest", "file", "pools"}``; ``pools`` are the ones that the run's Params select.
    :raises SpecError: if the file or a Param is wrong, or the file names what this deployment lets no cluster file use
        (``NotAllowedHere``); names the field and the remedy.
    :raises TransientError: ``DagOutdated``: Airflow still has the tasks of an older file, or this worker's DAG is that
        of another run; a retry gets the right one.
    """

    template_fields = ("cluster",)
    ui_color = "#eef2f7"

    def __init__(self, *, cluster: str, provisions: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.provisions = provisions

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        store = context["task_state_store"]
        frozen = store.get(FROZEN)
        if isinstance(frozen, dict) and frozen.get("digest"):
            self.log.info("this run was pinned before, to digest %s", frozen["digest"])
            self._keep_dag(context, frozen, mine=context["ti"].run_id)
            self._await_dag(context)
            return frozen
        refuse_unknown_conf(context)
        frozen = freeze(self.cluster, context.get("params") or {}, self.log, provisions=self.provisions)
        store.set(FROZEN, frozen)
        self.log.info("pinned to %s, digest %s, pools %s", frozen["file"], frozen["digest"], frozen["pools"])
        self._keep_dag(context, frozen)
        self._await_dag(context)
        return frozen

    def _await_dag(self, context: Mapping[str, Any]) -> None:
        """Wait until Airflow has given this run the tasks of its spec.

        A file that was edited just before the run began may not have been read again yet, and Airflow may keep the DAG
        of the previous run for a moment.

        :raises TransientError: ``DagOutdated``.
        """
        from gpu_fleet.core.run_shape import difference

        dag = self.get_dag()
        until, told = time.monotonic() + DAG_PATIENCE_S, ""
        while dag is not None:
            states = task_states(context)
            differs = difference(dag.task_ids, states) if self.task_id in states else ""
            if not differs:
                return
            if time.monotonic() >= until:
                raise TransientError(
                    f"this run does not have the tasks of its spec: {differs}; Airflow's DAG processor has not read "
                    f"the cluster file for {DAG_PATIENCE_S:.0f} s: check that it runs, then start another run",
                    reason="DagOutdated",
                )
            if differs != told:
                self.log.info("waiting for Airflow to read the cluster file again: of this run's tasks, %s", differs)
                told = differs
            time.sleep(DAG_LOOK_S)

    def _keep_dag(self, context: Mapping[str, Any], frozen: Mapping[str, Any], mine: str = "") -> None:
        """Keep the run's DAG at this spec until the run's verdict, however the cluster file changes.

        The DAG of this task may have been built for an earlier run that recorded no end (it was deleted, or its workers
        were lost). The DAG processor has then built the same DAG, so comparing the two would show nothing. A record
        that cannot be written does not fail the task: a retry would not be able to write it either.

        :param mine: the run whose record may be in force already: this run, if it was pinned before.
        :raises TransientError: ``DagOutdated``: a retry gets the DAG of the record that is written here.
        """
        from gpu_fleet.hooks.files.runs import LONGEST_S, note_begin, run_of

        dag = self.get_dag()
        if dag is None:
            return
        built_of = run_of(dag.dag_id)
        lasts = dag.dagrun_timeout.total_seconds() if dag.dagrun_timeout else LONGEST_S
        kept = note_begin(dag.dag_id, context["ti"].run_id, frozen["spec"], lasts)
        if kept and built_of not in ("", mine):
            raise TransientError(
                f"this worker has built the DAG from the spec of run {built_of}, which has recorded no end; "
                "from now on it is built from this run's: the task is retried",
                reason="DagOutdated",
            )


def freeze(cluster: str, params: Mapping[str, Any], log: Any, *, provisions: bool) -> dict[str, Any]:
    """The resolved spec of a cluster file, as a run is pinned to it; see :class:`FreezeSpecOperator`.

    :param params: of the run; ``pools`` selects among the spec's.
    :param log: gets the notes on the spec.
    :raises SpecError: see :class:`FreezeSpecOperator`.
    """
    from gpu_fleet.core.spec.notes import notes_of
    from gpu_fleet.hooks.files.clusters import load_cluster
    from gpu_fleet.hooks.helm.charts.locks import apply_locks

    spec = load_cluster(cluster)
    for told in refuse_beyond(spec, notifies=provisions):
        log.warning("%s; this run continues without it", told)
    if provisions and spec.state == "absent":
        raise SpecError(
            f"cluster {spec.name} is to be absent, so no capacity is created or validated for it",
            field="state",
            remedy=f"run gpu_teardown.{spec.name}, or write state: present",
        )
    if provisions:  # a teardown installs nothing: a chart that is not locked must not keep it from working
        spec = apply_locks(spec)
    for note in notes_of(spec):
        log.warning("note: %s", note)
    return {
        "spec": spec.to_json(),
        "digest": spec.digest,
        "file": f"{spec.name}.yaml",
        "pools": selected_pools(params.get("pools"), spec.pool_names),
    }


class InvalidSpecOperator(BaseOperator):
    """Stands in for the DAG of a cluster whose file is broken; fails with the problem when it is run.

    :param problem: what is wrong, with field and remedy.
    """

    def __init__(self, *, problem: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.problem = problem

    def execute(self, context: Mapping[str, Any]) -> None:  # noqa: ARG002
        raise SpecError(self.problem)
