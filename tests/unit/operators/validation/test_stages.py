"""Recording where the time of nodes went: from the cluster and EC2 into the pool's history; never a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset

from gpu_fleet.core.errors import ApiUnavailable
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.pools.proofs import proven_at
from gpu_fleet.core.stages.history import KEY, StageHistory
from gpu_fleet.core.stages.moments import Moment, NodeTimes
from gpu_fleet.core.stages.summary import STAGES, StageReport
from gpu_fleet.core.validation.report import Outcome, PoolReport
from gpu_fleet.hooks.cluster import launches, pods
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.stages import ARRIVALS, note_arrivals, record_stages
from tests.unit.airflow_context import StateStore, TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.core.stages.stage_objects import CAME, INSTANCE, claim, node, placeholder, times
from tests.unit.report_objects import NOW, broken_node, busy_node, host, report
from tests.unit.report_objects import node as good_node
from tests.unit.sandboxed import sandbox_cloud

POOL = "shared-a10g"
ASSET = Asset("gpu-fleet://demo/shared-a10g/validated")
RUN = "gpu_lifecycle.demo/manual__1"


def operator(**attributes: Any) -> ProtectNodesOperator:
    task = ProtectNodesOperator(task_id="t", node_pool=POOL)
    task.__dict__["spec"] = demo_spec()
    for name, value in attributes.items():
        task.__dict__[name] = value
    return task


def run_with(store: StateStore | None) -> dict[str, Any]:
    return context(TaskInstance()) | ({} if store is None else {"asset_state_store": {ASSET: store}})


# --- what is seen ----------------------------------------------------------------------------------------------------
@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """EC2 and the pods of the cluster, without either."""
    found = SimpleNamespace(launches={INSTANCE: NOW + CAME[Moment.LAUNCHED]}, pods=[placeholder()])

    def answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(launches, "launch_times", lambda *_: answer(found.launches))
    monkeypatch.setattr(pods, "pods_on", lambda *_: answer(found.pods))
    return found


def noted(nodes: list[dict[str, Any]]) -> Any:
    run = run_with(None)
    note_arrivals(operator(kube=SimpleNamespace(now=lambda: NOW + 150)), run, nodes, [claim()])
    return run["ti"].xcoms.get(ARRIVALS)


def test_what_the_cluster_knows_of_the_nodes_is_noted(seen: SimpleNamespace) -> None:
    found = noted([node()])
    assert found["now"] == NOW + 150
    [one] = [NodeTimes.from_json(each) for each in found["nodes"]]
    assert one.at[Moment.PENDING] == NOW
    assert one.at[Moment.LAUNCHED] == NOW + CAME[Moment.LAUNCHED]


def test_nobody_is_asked_about_no_node(seen: SimpleNamespace) -> None:
    seen.launches = seen.pods = AssertionError("asked")
    assert noted([]) is None


def test_without_ec2_the_claims_conditions_are_taken(seen: SimpleNamespace) -> None:
    seen.launches = ApiUnavailable("EC2 does not answer")
    [one] = [NodeTimes.from_json(each) for each in noted([node()])["nodes"]]
    assert one.at[Moment.LAUNCHED] == NOW + CAME[Moment.LAUNCHED] + 1.0


def test_without_the_pods_nothing_is_noted_and_nothing_fails(seen: SimpleNamespace) -> None:
    seen.pods = ApiUnavailable("the API server does not answer")
    assert noted([node()]) is None


# --- what is kept ----------------------------------------------------------------------------------------------------
def arrived(*numbers: int) -> dict[str, Any]:
    nodes = [replace(times(n, run="", without=(Moment.PROVEN, Moment.USED)), node=host(n)) for n in numbers]
    return {"now": NOW, "nodes": [each.to_json() for each in nodes]}


def proof(*numbers: int, late: float = 0.0) -> PoolReport:
    return report(*(replace(good_node(n), at=NOW + n * 1000 + CAME[Moment.PROVEN] + late) for n in numbers))


def test_nodes_are_kept_with_their_proof_and_told_to_the_report() -> None:
    store = StateStore()
    run = run_with(store)
    record_stages(operator(), run, arrived(1, 2), [proof(1, 2)], ASSET)
    history = StageHistory.from_json(store[KEY])
    assert [each.total for each in history.nodes] == [CAME[Moment.PROVEN]] * 2
    told = StageReport.from_json(run["ti"].xcoms[STAGES])
    assert [each.node for each in told.nodes] == [host(1), host(2)]
    assert told.recorded == 2


def test_a_task_that_runs_again_tells_the_same() -> None:
    store, told = StateStore(), []
    for _ in range(2):
        run = run_with(store)
        record_stages(operator(), run, arrived(1), [proof(1)], ASSET)
        told.append((dict(store), run["ti"].xcoms[STAGES]))
    assert told[0] == told[1]


def test_what_got_slower_is_a_warning_with_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    store = StateStore()
    store.set(KEY, StageHistory(0.0, tuple(times(n) for n in range(10))).to_json())
    run = run_with(store)
    record_stages(operator(), run, arrived(50), [proof(50, late=80.0)], ASSET)
    [slow] = run["ti"].xcoms[STAGES]["slower"]
    assert (slow["stage"], slow["took"], slow["usual"]) == ("proof", 110.0, 30.0)
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "got slower" in line]
    assert "warning" in warning
    assert "GPUs allocatable → proven took 110 s, 80 s more than usual" in warning


class Broken(StateStore):
    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("the backend is down")


@pytest.mark.parametrize("store", [None, Broken()], ids=["no store", "a store that fails"])
def test_a_history_that_cannot_be_kept_fails_nothing(store: StateStore | None) -> None:
    run = run_with(store)
    record_stages(operator(), run, arrived(1), [proof(1)], ASSET)
    assert STAGES not in run["ti"].xcoms


def test_a_run_that_has_chosen_no_node_records_nothing() -> None:
    store = StateStore()
    record_stages(operator(), run_with(store), None, [], ASSET)
    assert store == {}


# --- when a node is proven -------------------------------------------------------------------------------------------
def test_only_nodes_that_passed_every_proof_are_proven_and_when_the_last_one_had_passed() -> None:
    first = report(*(replace(good_node(n), at=NOW) for n in (1, 2)), replace(busy_node(3), at=NOW))
    second = report(replace(good_node(1), at=NOW + 9), replace(broken_node(2), at=NOW + 9), probe="vectoradd")
    measured = report(replace(good_node(1), at=NOW + 99), probe="throughput")
    assert proven_at([first, second, measured]) == {host(1): NOW + 9}
    assert first.nodes[2].outcome is Outcome.BUSY
    assert proven_at([report(good_node(1))]) == {}


def test_the_moment_of_the_verdict_survives_the_reports_json() -> None:
    one = proof(1)
    assert PoolReport.from_json(one.to_json()) == one


# --- with an account -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", found.connection)
        yield KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()


def test_ec2_tells_when_it_launched_an_instance_and_nothing_of_one_that_it_does_not_know(cloud: KubeClient) -> None:
    from gpu_fleet.hooks.aws import aws_session

    spec = demo_spec()
    ec2 = aws_session(spec.aws.connection, spec.region).client("ec2")
    image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])["Images"][0]["ImageId"]
    launched = ec2.run_instances(ImageId=image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1)["Instances"][0]
    found = launches.launch_times(spec, [launched["InstanceId"], "i-0123456789abcdef0", ""])
    assert found == {launched["InstanceId"]: launched["LaunchTime"].timestamp()}


def test_the_task_that_chooses_nodes_notes_them(cloud: KubeClient) -> None:
    made = {"apiVersion": "v1", "kind": "Node", "spec": {}}
    labels = {LABEL_NODE_POOL: POOL, "karpenter.sh/initialized": "true"}
    cloud.create({**made, "metadata": {"name": "n1", "labels": labels}})
    cloud.create({**made, "metadata": {"name": "n2", "labels": {**labels, "karpenter.sh/initialized": "false"}}})
    run = context(TaskInstance(spec=demo_spec()))
    ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL).execute(run)
    assert [each["node"] for each in run["ti"].xcoms[ARRIVALS]["nodes"]] == ["n1"]
