"""Nodes that failed their first proof: how many are quarantined over all runs of the DAG, and none is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.pools.quarantine import Quarantine
from gpu_fleet.core.pools.remediation import Policy
from gpu_fleet.operators.admission.remedy import RemediateUnprovenOperator
from gpu_fleet.operators.validation.remediation import RemediateNodesOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec

POOL = "shared-a10g"


def operator(kind: type[RemediateNodesOperator], policy: str) -> Any:
    found = kind(task_id="remediate", node_pool=POOL)
    found.spec = demo_spec(validation__onFailure={"policy": policy, "budget": 1})
    return found


def quarantine(run: str) -> Quarantine:
    return Quarantine("XidError", "XID 79", "sharing", run, "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("policy", "becomes"),
    [("alert", Policy.ALERT), ("quarantine", Policy.QUARANTINE), ("replace", Policy.QUARANTINE)],
)
def test_nothing_is_replaced_by_an_event(policy: str, becomes: Policy) -> None:
    """Else a pool whose new nodes all fail would be replaced node by node, for ever."""
    assert operator(RemediateUnprovenOperator, policy).policy() is becomes
    assert operator(RemediateNodesOperator, policy).policy() is Policy(policy)


def test_the_budget_is_one_for_all_runs_of_the_dag() -> None:
    ti = TaskInstance(dag_id="gpu_admit.demo", run_id="r9")
    found = {
        "n1": quarantine("gpu_admit.demo/r1"),
        "n2": quarantine("gpu_revalidate.demo/r1"),
        "n3": quarantine("gpu_admit.demo/r9"),
    }
    assert operator(RemediateUnprovenOperator, "quarantine").spent(context(ti), found) == {"n1", "n3"}
    assert operator(RemediateNodesOperator, "quarantine").spent(context(ti), found) == {"n3"}
