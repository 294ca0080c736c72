"""When operators skip themselves, or refuse to act."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet import operators, sensors
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.lock import AcquireLockOperator
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, GIVES_BACK, Approved, HadLock, RunIf, SelectedPool
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from tests.unit.airflow_context import TaskInstance, context


class Probe(FleetOperator):
    """Says that it ran."""

    needs_kube = False

    def prepare(self, context: Mapping[str, Any]) -> None:
        """No spec is needed."""

    def act(self, context: Mapping[str, Any]) -> str:
        return "ran"


class GivesBack(Probe):
    preconditions = (HadLock(),)


class FakeTaskInstance:
    """What the operators ask of Airflow's task instance."""

    dag_id, run_id = "gpu_lifecycle.demo", "run"

    def __init__(self, states: dict[str, str] | None = None, xcoms: dict[str, Any] | None = None) -> None:
        self.states, self.xcoms = states or {}, xcoms or {}

    def get_task_states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, Any]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        return {self.run_id: {name: state for name, state in self.states.items() if name in task_ids}}

    def xcom_pull(self, task_ids: str) -> Any:
        return self.xcoms.get(task_ids)


def run(operator: FleetOperator, ti: FakeTaskInstance) -> Any:
    return operator.execute({"ti": ti, "params": {}})


STATES = ["success", "failed", "upstream_failed", "skipped", "removed"]


@pytest.mark.parametrize(
    ("condition", "enough"),
    [(RunIf.ANY_SUCCEEDED, {"success"}), (RunIf.ANY_FAILED, {"failed", "upstream_failed"})],
)
def test_condition_over_every_pair_of_states(condition: RunIf, enough: set[str]) -> None:
    assert not condition.holds([])
    for first in STATES:
        for second in STATES:
            assert condition.holds([first, second]) == bool({first, second} & enough), (first, second)


def pair(run_if: RunIf | None) -> FleetOperator:
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        first, other, task = Probe(task_id="a"), Probe(task_id="b"), Probe(task_id="c", run_if=run_if)
        Probe(task_id="elsewhere")
        [first, other] >> task
    return task


def test_pool_left_out_does_not_keep_the_proof_from_running() -> None:
    assert run(pair(RunIf.ANY_SUCCEEDED), FakeTaskInstance({"a": "success", "b": "skipped"})) == "ran"


def test_without_any_success_the_task_skips_itself_and_names_its_upstreams() -> None:
    states = {"a": "failed", "b": "skipped", "elsewhere": "success"}
    with pytest.raises(AirflowSkipException, match=r"none of the upstream tasks succeeded \(a, b\)"):
        run(pair(RunIf.ANY_SUCCEEDED), FakeTaskInstance(states))


def test_without_any_failure_there_is_nothing_to_remedy() -> None:
    with pytest.raises(AirflowSkipException, match="none of the upstream tasks failed"):
        run(pair(RunIf.ANY_FAILED), FakeTaskInstance({"a": "success", "b": "skipped"}))
    assert run(pair(RunIf.ANY_FAILED), FakeTaskInstance({"a": "upstream_failed", "b": "success"})) == "ran"


def test_task_without_a_condition_does_not_ask() -> None:
    assert run(pair(None), FakeTaskInstance()) == "ran"


def chain() -> FleetOperator:
    with DAG("gpu_lifecycle.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        turn, between, task = (
            AcquireLockOperator(task_id="turn"),
            Probe(task_id="between"),
            GivesBack(task_id="clean_up"),
        )
        turn >> between >> task
    return task


def test_run_that_never_had_the_turn_leaves_the_cluster_alone() -> None:
    with pytest.raises(AirflowSkipException, match="never held the cluster lock"):
        run(chain(), FakeTaskInstance({"turn": "failed", "between": "upstream_failed"}))


def test_run_that_has_the_turn_tidies_up() -> None:
    assert run(chain(), FakeTaskInstance(xcoms={"turn": {"run_id": "run"}})) == "ran"


def test_graph_without_turns_is_not_restricted() -> None:
    with DAG("own", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        task = GivesBack(task_id="clean_up")
    assert run(task, FakeTaskInstance()) == "ran"


def test_only_the_pool_of_the_one_node_is_looked_at() -> None:
    ti = TaskInstance()
    ti.xcoms["return_value"] = {"node": "n2", "pool": "whole-a100"}

    def check(pool: str, node: str | None) -> None:
        task = Probe(task_id=f"t{pool}{node}")
        task.node_pool = pool
        SelectedPool().check(task, context(ti, node=node))

    check("whole-a100", "n2")
    with pytest.raises(AirflowSkipException, match="belongs to pool whole-a100"):
        check("shared-a10g", "n2")
    check("shared-a10g", None)


class Chooses(Probe):
    """Says of which pools nodes are requested."""

    chooses_pools = True


@pytest.mark.parametrize(
    ("chosen", "acts"),
    [({"replace": {"mine": {}}}, True), ({"replace": {"other": {}}}, False), ({"replace": {}}, False), (None, False)],
)
def test_only_pools_that_a_task_before_has_chosen_are_acted_on(chosen: Any, acts: bool) -> None:
    with DAG("gpu_drain.demo", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
        plan, task = Chooses(task_id="plan_again"), Probe(task_id="request")
        plan >> task
    task.node_pool = "mine"
    given = {"ti": FakeTaskInstance(xcoms={"plan_again": chosen}), "params": {}}
    if acts:
        SelectedPool().check(task, given)
    else:
        with pytest.raises(AirflowSkipException, match="plan_again requests no node of pool mine"):
            SelectedPool().check(task, given)


POOL = (SelectedPool(),)
#: Every operator of the package -> what must hold before it acts.
DECLARED: dict[str, tuple[Any, ...]] = {
    # the lock
    "AcquireLockOperator": (Approved(),),
    "ReleaseLockOperator": (),
    # preflight: changes nothing
    "CheckAwsOperator": (),
    "CheckDriftOperator": (),
    "CheckNeighboursOperator": (),
    "CheckPrerequisitesOperator": (),
    "CheckToolsOperator": (),
    "PlanChangesOperator": (),
    "SelectNodeOperator": (),
    "GateSensor": (),
    # provisioning and rollout
    "ApplyManifestsOperator": CHANGES_CLUSTER,
    "ApplyNodeClassOperator": CHANGES_CLUSTER,
    "ApplyNodePoolOperator": CHANGES_CLUSTER,
    "InstallReleaseOperator": CHANGES_CLUSTER,
    "ProveReleaseOperator": CHANGES_CLUSTER,
    "RemediateReleaseOperator": GIVES_BACK,
    # capacity and validation
    "AwaitCapacityOperator": POOL,
    "RequestCapacityOperator": (*POOL, *CHANGES_CLUSTER),
    "RequestSharedCapacityOperator": (*POOL, *CHANGES_CLUSTER),
    "ProtectNodesOperator": (*POOL, *CHANGES_CLUSTER),
    "ReleasePlaceholdersOperator": (*POOL, *CHANGES_CLUSTER),
    "RunProbesOperator": (*POOL, *CHANGES_CLUSTER),
    "HoldCapacityOperator": (*POOL, *CHANGES_CLUSTER),
    "OpenHeadroomOperator": CHANGES_CLUSTER,
    "AwaitBlocksOperator": (),
    "CheckBlockEndOperator": (),
    "StopAdmittingOperator": CHANGES_CLUSTER,
    "PrePullImagesOperator": (*POOL, *CHANGES_CLUSTER),
    "AdmitNodesOperator": (*POOL, *GIVES_BACK),
    "RemediateUnprovenOperator": (*POOL, *GIVES_BACK),
    "ReplaceDriftedOperator": (*POOL, *GIVES_BACK),
    "RemediateNodesOperator": (*POOL, *GIVES_BACK),
    "CleanUpValidationOperator": (*POOL, *GIVES_BACK),
    "PublishPoolOperator": (*POOL, HadLock()),
    # interruptions: whoever holds the cluster lock, the instances end
    "DrainInterruptedOperator": (),
    "AwaitPlacementOperator": (),
    "PublishLostOperator": (),
    # drains by hand
    "PlanDrainOperator": (Approved(),),
    "CordonNodesOperator": CHANGES_CLUSTER,
    "DrainByHandOperator": CHANGES_CLUSTER,
    "RemoveDrainedOperator": CHANGES_CLUSTER,
    "UndoCordonsOperator": GIVES_BACK,
    # teardown
    "PlanTeardownOperator": (Approved(),),
    "FreezePoolsOperator": CHANGES_CLUSTER,
    "DrainOperator": CHANGES_CLUSTER,
    "DrainPoolOperator": CHANGES_CLUSTER,
    "DrainRemovedPoolsOperator": CHANGES_CLUSTER,
    "UndoFreezeOperator": GIVES_BACK,
    "DeleteObjectsOperator": CHANGES_CLUSTER,
    "DeleteNodePoolsOperator": CHANGES_CLUSTER,
    "DeleteNodeClassesOperator": CHANGES_CLUSTER,
    "DeleteRuntimeClassOperator": CHANGES_CLUSTER,
    "UninstallReleaseOperator": CHANGES_CLUSTER,
    "LeakCheckOperator": (),
}


def acting(cls: type[FleetOperator]) -> Iterator[type[FleetOperator]]:
    """The operators of the package below a class that implement ``act``."""
    for each in cls.__subclasses__():
        if each.__module__.startswith("gpu_fleet.") and each.act is not FleetOperator.act and each.__name__[0] != "_":
            yield each
        yield from acting(each)


def test_every_operator_declares_what_must_hold_before_it_acts() -> None:
    """One that declared nothing would change a cluster without its lock, or a plan that no person approved."""
    for package in (operators, sensors):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    assert {each.__name__: each.preconditions for each in acting(FleetOperator)} == DECLARED


@pytest.mark.parametrize("probe", ["throughput", "dcgm"])
def test_a_measuring_probe_runs_whatever_came_before_it(probe: str) -> None:
    task = RunProbesOperator(task_id=probe, node_pool="p", probe=probe)
    assert task.preconditions == (*POOL, *GIVES_BACK)


def test_the_pools_of_a_teardown_are_published_whichever_the_run_selects() -> None:
    task = PublishPoolOperator(task_id="publish", node_pool="p", cluster="demo", torn_down=True)
    assert task.preconditions == (HadLock(),)
