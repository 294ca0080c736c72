"""What every operator and sensor of the package shares: the frozen spec, the retry policy, the way to a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import PermanentError, SpecError

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient

#: The task that freezes the resolved spec of a run; every other task reads its XCom and nothing else.
FREEZE_SPEC_TASK_ID = "freeze_spec"

#: The task that finds out to which pool the run's Param ``node`` belongs; only DAGs with that Param have it.
SELECT_NODE_TASK_ID = "preflight.select_node"

#: Key in Airflow's task state store under which a task keeps the beginning of its wait.
WAIT = "wait"

#: Transient or permanent is a type; this is the one place where it meets Airflow.
RETRY_POLICY = ExceptionRetryPolicy(
    [
        RetryRule(
            exception="gpu_fleet.core.errors.PermanentError",
            action=RetryAction.FAIL,
            reason="permanent: a retry of this task cannot help",
        ),
        RetryRule(
            # Else a retry would ask again, and the deadline of an approval would begin anew.
            exception="airflow.providers.standard.exceptions.HITLTimeoutError",
            action=RetryAction.FAIL,
            reason="nobody answered in time",
        ),
    ]
)

#: Defaults of every task (passed as the DAGs' ``default_args``).
DEFAULT_ARGS: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    "retry_policy": RETRY_POLICY,
    "execution_timeout": timedelta(minutes=15),
}


def frozen_spec(context: Mapping[str, Any]) -> ClusterSpec:
    """The spec that this Dag run was pinned to by its first task.

    :raises SpecError: if the run has no frozen spec (the first task was never run), or one that an older version of the
        package froze and this one refuses.
    """
    from gpu_fleet.core.spec import parse_cluster

    value = context["ti"].xcom_pull(task_ids=FREEZE_SPEC_TASK_ID)
    if not isinstance(value, Mapping) or "spec" not in value:
        raise SpecError(
            f"task {FREEZE_SPEC_TASK_ID!r} of this run has not frozen a cluster spec",
            remedy=f"clear {FREEZE_SPEC_TASK_ID!r} and let the run go on",
        )
    return parse_cluster(value["spec"], where="the spec that this run was pinned to")


def run_name(context: Mapping[str, Any]) -> str:
    """``<dag_id>/<run_id>`` of the current run, as it is written into annotations, ledgers and turn records."""
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}"


def bare_pods_go(context: Mapping[str, Any]) -> bool:
    """Whether the run's Param says that pods without a controller may be evicted, as ``drain.force`` does."""
    from gpu_fleet.core.teardown.drain import PARAM_BARE_PODS

    return bool((context.get("params") or {}).get(PARAM_BARE_PODS))


def cluster_of_dag(operator: BaseOperator) -> str:
    """The cluster that a DAG is named after: what follows the first dot of its id; empty outside a DAG."""
    dag = operator.get_dag()
    return dag.dag_id.partition(".")[2] if dag is not None else ""


def attempt(context: Mapping[str, Any]) -> int:
    """A number that all retries of a task share, and another one once a person has cleared it.

    It is kept with what a task remembers, so that a cleared task begins anew. Airflow does not say that a task was
    cleared, but each clear raises ``max_tries`` (``airflow.models.taskinstance.clear_task_instances``), and nothing
    else does.
    """
    return int(context["ti"].max_tries)


def wait_started(context: Mapping[str, Any]) -> float:
    """Epoch seconds at which this task began to wait: kept over its retries, so that they share one deadline."""
    store = context["task_state_store"]
    kept = store.get(WAIT)
    if isinstance(kept, Mapping) and kept.get("attempt") == attempt(context):
        return float(kept["started"])
    started = time.time()
    store.set(WAIT, {"started": started, "attempt": attempt(context)})
    return started


def skip_unselected_pool(context: Mapping[str, Any], node_pool: str) -> None:
    """Skip the task if the run's Params ``pools`` or ``node`` select other pools only; empty they select all.

    The Param ``node`` selects the pool of that node, as the task :data:`SELECT_NODE_TASK_ID` has found it.
    """
    params = context["params"]
    selected = params.get("pools") or []
    if selected and node_pool not in selected:
        raise AirflowSkipException(f"pool {node_pool} is not among this run's pools: {', '.join(selected)}")
    node = params.get("node")
    if node:
        found = context["ti"].xcom_pull(task_ids=SELECT_NODE_TASK_ID)
        # Without an answer the run has failed before it came here; then no pool is singled out.
        if isinstance(found, Mapping) and found.get("pool") not in (None, node_pool):
            raise AirflowSkipException(f"node {node} belongs to pool {found['pool']}, not to {node_pool}")


class RunIf(StrEnum):
    """A condition on the tasks directly upstream that no trigger rule of Airflow expresses; give it with ``ALL_DONE``.

    ``ALL_DONE_MIN_ONE_SUCCESS`` is skipped as soon as one upstream was (here: a pool that the run leaves out), and
    ``ONE_FAILED`` does not wait for the others.
    """

    ANY_SUCCEEDED = "any_succeeded"
    ANY_FAILED = "any_failed"

    def holds(self, states: Iterable[str]) -> bool:
        """Whether it holds for these states of task instances; ``upstream_failed`` counts as failed."""
        found = set(states)
        if self is RunIf.ANY_SUCCEEDED:
            return "success" in found
        return not found.isdisjoint({"failed", "upstream_failed"})


class FleetOperator(BaseOperator):
    """Base of the operators that act on one cluster of the fleet, as the run's frozen spec describes it.

    A subclass implements :meth:`act`; ``self.spec`` and ``self.kube`` are there when it runs.

    :param run_if: skip the task unless this holds for the tasks directly upstream.
    """

    spec: ClusterSpec
    kube: KubeClient
    node_pool: str

    #: set to ``False`` by operators that never talk to the cluster's API server.
    needs_kube = True
    #: set to ``True`` by operators with a ``node_pool`` that the run's Param ``pools`` may leave out.
    skips_unselected_pools = False
    #: set to ``True`` by operators that run whatever happened before and yet must not touch a cluster whose turn this
    #: run never had: another run may be at work there.
    only_in_turn = False
    #: set to ``True`` by operators that change the cluster: they see to it that their run holds its turn, and that a
    #: person has answered the approval before them, if there is one (not those of ``only_in_turn``, which give back).
    changes_cluster = False
    #: set to ``True`` by other operators that must not run after an approval without that answer.
    carries_out_plan = False

    def __init__(self, *, run_if: RunIf | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_if = run_if

    def execute(self, context: Mapping[str, Any]) -> Any:
        if self.skips_unselected_pools:
            skip_unselected_pool(context, self.node_pool)
        if self.run_if is not None:
            self._skip_unless(context, self.run_if)
        if self.only_in_turn:
            self._skip_without_turn(context)
        self.prepare(context)
        if self.carries_out_plan or (self.changes_cluster and not self.only_in_turn):
            from gpu_fleet.operators.teardown.approval import require_approval

            require_approval(self, context)
        if self.changes_cluster:
            from gpu_fleet.operators.turn import keep_turn

            keep_turn(self, context)
        return self.act(context)

    def _skip_unless(self, context: Mapping[str, Any], condition: RunIf) -> None:
        ti, upstream = context["ti"], sorted(self.upstream_task_ids)
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=upstream, run_ids=[ti.run_id]).get(ti.run_id, {})
        # Airflow's states are strings or enumerations of them, depending on the way they came.
        if not condition.holds(str(getattr(state, "value", state)) for state in states.values()):
            raise AirflowSkipException(f"not {condition.value.replace('_', ' ')} of: {', '.join(upstream)}")

    def tasks_before(self, kind: type[BaseOperator]) -> list[str]:
        """The ids of the tasks of a kind somewhere upstream."""
        dag, before = self.get_dag(), self.get_flat_relative_ids(upstream=True)
        tasks = dag.tasks if dag is not None else []
        return [task.task_id for task in tasks if task.task_id in before and isinstance(task, kind)]

    def _skip_without_turn(self, context: Mapping[str, Any]) -> None:
        from gpu_fleet.operators.turn import AcquireTurnOperator

        turns = self.tasks_before(AcquireTurnOperator)
        if turns and not any(context["ti"].xcom_pull(task_ids=task_id) for task_id in turns):
            raise AirflowSkipException(f"this run never had the cluster's turn ({', '.join(turns)}): nothing to do")

    def prepare(self, context: Mapping[str, Any]) -> None:
        """Load the frozen spec and open the client; also to be called first by ``execute_complete`` methods."""
        self.spec = frozen_spec(context)
        if self.needs_kube:
            from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

            self.kube = KubernetesHook(self.access()).client()

    def access(self) -> ClusterAccess:
        """How to reach the cluster: JSON-able, without credentials, fit for trigger arguments."""
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess

        return ClusterAccess.from_spec(self.spec)

    def act(self, context: Mapping[str, Any]) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must implement act()")


__all__ = [
    "DEFAULT_ARGS",
    "FREEZE_SPEC_TASK_ID",
    "RETRY_POLICY",
    "SELECT_NODE_TASK_ID",
    "FleetOperator",
    "PermanentError",
    "RunIf",
    "bare_pods_go",
    "frozen_spec",
    "run_name",
    "wait_started",
]
