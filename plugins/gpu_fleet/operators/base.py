"""What every operator and sensor of the package shares: the frozen spec, the retry policy, the way to a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

from gpu_fleet.core.errors import SpecError

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient

#: The task that freezes the resolved spec of a run; every other task reads its XCom and nothing else.
FREEZE_SPEC_TASK_ID = "freeze_spec"
#: The task that does so in a DAG whose first task cannot wait for another one, and the key of its XCom: a drain before
#: an instance's end.
DRAIN_TASK_ID, FROZEN_SPEC = "drain", "frozen_spec"

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
            # A retry would ask again, and the deadline of the approval would start again.
            exception="airflow.providers.standard.exceptions.HITLTimeoutError",
            action=RetryAction.FAIL,
            reason="no person answered in time",
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
    # Here, so that a DAG file of Helm releases does not load the cluster file's models.
    from gpu_fleet.core.spec import parse_cluster

    ti = context["ti"]
    value = ti.xcom_pull(task_ids=FREEZE_SPEC_TASK_ID) or ti.xcom_pull(task_ids=DRAIN_TASK_ID, key=FROZEN_SPEC)
    if not isinstance(value, Mapping) or "spec" not in value:
        raise SpecError(
            f"task {FREEZE_SPEC_TASK_ID!r} of this run has not frozen a cluster spec",
            remedy=f"clear {FREEZE_SPEC_TASK_ID!r}; the run then continues",
        )
    return parse_cluster(value["spec"], where="the spec that this run was pinned to")


def run_name(context: Mapping[str, Any]) -> str:
    """``<dag_id>/<run_id>`` of the current run, as in annotations, ledgers and the record of the cluster lock."""
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}"


def bare_pods_go(context: Mapping[str, Any]) -> bool:
    """Whether the run's Param permits evicting pods without a controller, as ``drain.force`` does."""
    from gpu_fleet.core.drain.rules import (
        PARAM_BARE_PODS,  # Parsing a DAG file does not need the rules of a drain.
    )

    return bool((context.get("params") or {}).get(PARAM_BARE_PODS))


def cluster_of_dag(operator: BaseOperator) -> str:
    """The cluster that a DAG is named after: what follows the first dot of its id; empty outside a DAG."""
    dag = operator.get_dag()
    return dag.dag_id.partition(".")[2] if dag is not None else ""


def attempt(context: Mapping[str, Any]) -> int:
    """A number that all retries of a task share, and another one once a person has cleared it.

    It is stored with what a task remembers, so that a cleared task starts from the beginning. Airflow does not report
    that a task was cleared, but each clear raises ``max_tries`` (``airflow.models.taskinstance.clear_task_instances``),
    and nothing else does.
    """
    return int(context["ti"].max_tries)


def wait_started(context: Mapping[str, Any]) -> float:
    """Epoch seconds at which this task began to wait; kept over its retries, so that they share one deadline."""
    store = context["task_state_store"]
    kept = store.get(WAIT)
    if isinstance(kept, Mapping) and kept.get("attempt") == attempt(context):
        return float(kept["started"])
    started = time.time()
    store.set(WAIT, {"started": started, "attempt": attempt(context)})
    return started


def task_states(context: Mapping[str, Any], task_ids: Iterable[str] | None = None) -> dict[str, str]:
    """Task id -> state of the tasks of this run; a mapped task has an entry ``<id>_<index>`` for each index.

    :param task_ids: the tasks to look up; all of the run without it.
    """
    ti = context["ti"]
    if task_ids is None:
        answer = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])
    elif wanted := list(task_ids):
        answer = ti.get_task_states(dag_id=ti.dag_id, task_ids=wanted, run_ids=[ti.run_id])
    else:
        return {}  # Airflow takes an empty list for no restriction.
    # States are strings or members of an enumeration, depending on how they were read.
    return {name: str(getattr(state, "value", state)) for name, state in answer.get(ti.run_id, {}).items()}


def tasks_before(operator: BaseOperator, matches: Callable[[Any], bool]) -> list[str]:
    """The ids of the tasks upstream of an operator, at any distance, that match; in the order of the DAG."""
    dag, before = operator.get_dag(), operator.get_flat_relative_ids(upstream=True)
    tasks = dag.tasks if dag is not None else []
    return [task.task_id for task in tasks if task.task_id in before and matches(task)]


class Precondition(Protocol):
    """What must hold before an operator acts; the implementations are in ``operators/preconditions.py``."""

    @property
    def needs_cluster(self) -> bool:
        """Whether :meth:`check` uses ``spec`` or ``kube``, and so follows :meth:`FleetOperator.prepare`."""

    def check(self, operator: FleetOperator, context: Mapping[str, Any]) -> None:
        """Return if the condition holds.

        :raises AirflowSkipException: it does not hold, and the task has nothing to do.
        :raises GpuFleetError: it does not hold, and the task must not run.
        """


Preconditions = tuple[Precondition, ...]


class FleetOperator(BaseOperator):
    """Base of the operators that act on one cluster of the fleet, as the run's frozen spec describes it.

    A subclass implements :meth:`act`, which finds ``self.spec`` and ``self.kube``, and declares its ``preconditions``.

    :param run_if: one more precondition, for this task only; checked first.
    """

    spec: ClusterSpec
    kube: KubeClient

    #: What must hold before :meth:`act` runs, in the order in which it is checked. Conditions that need neither spec
    #: nor client are checked before these are loaded.
    preconditions: Preconditions = ()
    #: Set to ``False`` by operators that never talk to the cluster's API server.
    needs_kube: ClassVar[bool] = True
    #: Set to ``True`` by the operator whose result is the record of the cluster lock.
    takes_lock: ClassVar[bool] = False

    def __init__(self, *, run_if: Precondition | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_if = run_if

    def execute(self, context: Mapping[str, Any]) -> Any:
        conditions = [*([self.run_if] if self.run_if is not None else []), *self.preconditions]
        self._check(context, [each for each in conditions if not each.needs_cluster])
        self.prepare(context)
        self._check(context, [each for each in conditions if each.needs_cluster])
        return self.act(context)

    def _check(self, context: Mapping[str, Any], conditions: Iterable[Precondition]) -> None:
        for condition in conditions:
            condition.check(self, context)

    def prepare(self, context: Mapping[str, Any]) -> None:
        """Load the frozen spec, let core read the templates of ``include``, and open the client.

        Methods that resume after a deferral call it first.
        """
        # Here, so that a DAG file of Helm releases loads neither.
        from gpu_fleet.core.manifests import templates
        from gpu_fleet.hooks.files.templates import read_template

        self.spec = frozen_spec(context)
        templates.use(read_template)
        if self.needs_kube:
            from gpu_fleet.hooks.kubernetes.hook import KubernetesHook

            self.kube = KubernetesHook(self.access()).client()

    def access(self) -> ClusterAccess:
        """How to reach the cluster: JSON-able, without credentials, fit for trigger arguments."""
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess

        return ClusterAccess.from_spec(self.spec)

    def act(self, context: Mapping[str, Any]) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must implement act()")
