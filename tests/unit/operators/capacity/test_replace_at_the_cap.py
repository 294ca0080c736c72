"""A pool at its cap with nodes of an older sharing, some busy and some idle, and a run that is to replace them.

Each remedy that the refusal names is followed to the letter, with a real helm against the whole sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import ReleasePlaceholdersOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import REPORT, RunProbesOperator
from gpu_fleet.operators.validation.replacement import ReplaceDriftedOperator
from tests.unit.airflow_context import TaskInstance
from tests.unit.operators.whole_fleet import (
    EIGHT,
    FOUR,
    POOL,
    QUIET,
    fleet,
    job,
    lifecycle,
    nodes,
    pool_of,
    provide,
    run,
    running,
    until,
    whole_fleet,
)

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(300)]

WANTED = 2


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeClient]:
    with whole_fleet(tmp_path) as client:
        yield client


def spec(sharing: dict[str, Any], cap: int = WANTED, **disruption: Any) -> ClusterSpec:
    """Drifted nodes stay unless ``disruption`` lets Karpenter remove idle ones soon."""
    more = {"wantedNodes": WANTED, "limits": {"nodes": cap}, "disruption": QUIET | disruption}
    return fleet(pool_of(POOL, sharing, **more))


class Replacing:
    """One run with ``replaceDrifted: idle``, from its request for capacity to the removal of what it has replaced."""

    def __init__(self, found: ClusterSpec) -> None:
        self.spec, self.ti = found, TaskInstance(spec=found)
        with DAG("gpu_lifecycle.demo", schedule=None):
            self.request = RequestCapacityOperator(task_id="request", node_pool=POOL)
            self.wait = AwaitCapacityOperator(task_id="await", node_pool=POOL)
            protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
            probes = RunProbesOperator(task_id="sharing", node_pool=POOL, probe="sharing")
            self.replace = ReplaceDriftedOperator(task_id="replace", node_pool=POOL)
            self.request >> self.wait >> protect >> probes >> self.replace

    def act(self, operator: Any) -> Any:
        return run(operator, self.spec, self.ti, replaceDrifted="idle")

    def __call__(self, kube: KubeClient) -> dict[str, Any]:
        """What became of the drifted nodes; the probes' verdict on the others is given here."""
        provide(kube, self.spec)
        self.act(self.request)
        try:
            self.act(self.wait)
            # Outside a DAG it does not ask for the pool's asset events, which Airflow has.
            chosen = self.act(ProtectNodesOperator(task_id="protect", node_pool=POOL, all_wanted=True))
            self.ti.xcoms |= {"return_value": chosen, REPORT: passed(chosen["nodes"])}
            self.act(ReleasePlaceholdersOperator(task_id="release", node_pool=POOL))
            return self.act(self.replace)  # type: ignore[no-any-return]
        finally:
            self.act(CleanUpValidationOperator(task_id="clean_up", node_pool=POOL))


def passed(names: list[str]) -> dict[str, Any]:
    check = Check("sharing", Outcome.PASSED, "Shared", "all run at once")
    reports = tuple(NodeReport(name, {}, (check,)) for name in names)
    return PoolReport("demo", POOL, "sharing", "manual__1", 1, 8, 0.0, 1.0, reports).to_json()


def refusal(kube: KubeClient, found: ClusterSpec) -> str:
    """What a run says that has no room, and buys nothing."""
    before, attempt = set(nodes(kube)), Replacing(found)
    provide(kube, found)
    with pytest.raises(GateRefused) as refused:
        attempt.act(attempt.request)
    assert refused.value.reason == attempt.ti.xcoms["failure"]["reason"] == "DriftedNodesHoldTheCap"
    # A node for which nothing can come first is none that the run means to replace.
    assert attempt.ti.xcoms["replacement"]["chosen"] == []
    assert kube.list(POD, "gpu-fleet-system") == []
    assert set(nodes(kube)) == before
    return str(refused.value.message)


def busy_and_idle(kube: KubeClient) -> tuple[str, str]:
    """Two nodes with four shares per GPU, of which a user's job holds one."""
    _, capacity = lifecycle(kube, spec(FOUR))[POOL]
    busy, idle = sorted(capacity["nodes"])
    job(kube, "train", busy)
    return busy, idle


def end_job(kube: KubeClient) -> None:
    kube.delete(ObjectRef(POD, "train", "default"), grace_seconds=0)
    until("the job's end", lambda: kube.get(ObjectRef(POD, "train", "default")) is None)


def of_eight(kube: KubeClient) -> set[str]:
    return {name for name, seen in nodes(kube).items() if seen == ("time-slicing-8", 8)}


def claim_of(kube: KubeClient, node: str) -> str:
    (name,) = [c["metadata"]["name"] for c in kube.list(NODE_CLAIM) if (c.get("status") or {}).get("nodeName") == node]
    return str(name)


def test_raising_the_cap_as_the_refusal_says_lets_idle_nodes_go_and_it_can_be_put_back(kube: KubeClient) -> None:
    busy, idle = busy_and_idle(kube)
    told = refusal(kube, spec(EIGHT))
    for named in (busy, idle, "default/train"):
        assert named in told
    cap = int(re.findall(r"limits\.nodes of pool shared-a10g to (\d+)", told)[0])
    assert cap == 4

    outcome = Replacing(spec(EIGHT, cap))(kube)
    assert outcome["replaced"] == [idle]
    assert [(each["node"], each["reason"]) for each in outcome["left"]] == [(busy, "InUse")]
    until(f"the end of {idle}", lambda: idle not in nodes(kube))
    assert (len(of_eight(kube)), running(kube, "train") is not None) == (WANTED, True)

    # Put back while the job still runs: the wanted nodes are there, so nothing is refused and nothing is bought.
    before = set(nodes(kube))
    assert [each["reason"] for each in Replacing(spec(EIGHT))(kube)["left"]] == ["InUse"]
    assert set(nodes(kube)) == before

    # With the job's end the last old node goes, and nothing has to come for it.
    end_job(kube)
    assert Replacing(spec(EIGHT))(kube)["replaced"] == [busy]
    until(f"the end of {busy}", lambda: set(nodes(kube)) == of_eight(kube))
    assert len(of_eight(kube)) == WANTED


def test_waiting_for_the_job_and_deleting_the_claims_that_the_refusal_names_makes_room(kube: KubeClient) -> None:
    busy, idle = busy_and_idle(kube)
    told = refusal(kube, spec(EIGHT))
    # One place is not enough: to delete the idle node alone would not help, and is not said to.
    assert "wait until the jobs on 1 of the nodes in use have ended" in told
    assert "kubectl delete nodeclaim" not in told

    end_job(kube)
    told = refusal(kube, spec(EIGHT))
    assert "jobs" not in told
    (command,) = re.findall(r"kubectl delete nodeclaim ([a-z0-9 -]+)", told)
    assert sorted(command.split()) == sorted([claim_of(kube, busy), claim_of(kube, idle)])
    for name in command.split():
        kube.delete(ObjectRef(NODE_CLAIM, name))
    outcome = Replacing(spec(EIGHT))(kube)
    assert (outcome["replaced"], outcome["left"]) == ([], [])
    until("the new nodes alone", lambda: set(nodes(kube)) == of_eight(kube))
    assert len(of_eight(kube)) == WANTED


def test_where_idle_nodes_go_soon_the_end_of_the_job_is_all_that_is_waited_for(kube: KubeClient) -> None:
    busy, _ = busy_and_idle(kube)
    told = refusal(kube, spec(EIGHT, consolidateAfter="30s"))
    assert f"node {busy} drifted" in told
    assert "wait until the jobs on 1 of the nodes in use have ended" in told
    end_job(kube)
    Replacing(spec(EIGHT, consolidateAfter="30s"))(kube)
    until("the new nodes alone", lambda: set(nodes(kube)) == of_eight(kube))
    assert len(of_eight(kube)) == WANTED
