"""Karpenter is away for a moment, or somebody else needs it by now: what the teardown's tasks do about it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import ApiUnavailable, PermanentError
from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.verdict import unseen
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.helm.releases import UninstallReleaseOperator
from gpu_fleet.operators.teardown import karpenter_wait
from gpu_fleet.operators.teardown.node_pools import DeleteNodePoolsOperator
from gpu_fleet.operators.teardown.plan import PlanTeardownOperator
from gpu_fleet.triggers import waiting
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.operators.teardown.test_plan import (  # noqa: F401  (fixtures)
    POOL,
    deleting,
    foreign_pool,
    karpenter,
    kube,
    pool,
    world,
)

CONTROLLER = ObjectRef(POD, "karpenter-0", "kube-system")


def restarting(kube: KubeClient) -> None:  # noqa: F811
    """A Deployment whose one pod is not Ready."""
    labels = {"app.kubernetes.io/name": "karpenter"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "controller", "image": "x"}]}}
    kube.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "karpenter",
                "namespace": "kube-system",
                "labels": {**labels, "app.kubernetes.io/version": "1.14.1"},
            },
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        }
    )
    karpenter(kube, ready=False)


def back(kube: KubeClient) -> None:  # noqa: F811
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    kube.patch(CONTROLLER, {"status": status}, subresource="status")


def verdict(kind: str, phase: str) -> dict[str, Any]:
    said = {"phase": phase, "reason": "KarpenterRestarting", "message": "no pod is Ready", "permanent": False}
    return {"type": kind, "gate": "karpenter_serves", "verdict": said}


@pytest.mark.parametrize("operator_class", [PlanTeardownOperator, DeleteNodePoolsOperator])
def test_a_controller_that_restarts_is_waited_for_and_then_serves(
    kube: KubeClient,  # noqa: F811
    operator_class: Any,
) -> None:
    pool(kube)
    restarting(kube)
    operator = operator_class(task_id="task")
    asked = context(TaskInstance(spec=demo_spec()))
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(asked)
    assert deferred.value.method_name == "karpenter_awaited"
    assert not deleting(kube, NODE_POOL, POOL)
    back(kube)
    result = operator.karpenter_awaited(asked, verdict("verdict", "Ready"))
    assert (result.get("plan") or result)["way"] == "ByKarpenter"


@pytest.mark.parametrize("operator_class", [PlanTeardownOperator, DeleteNodePoolsOperator])
def test_a_controller_that_does_not_come_back_in_time_is_dead(
    kube: KubeClient,  # noqa: F811
    operator_class: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool(kube)
    restarting(kube)
    monkeypatch.setattr(karpenter_wait, "KARPENTER_PATIENCE_S", 0.0)
    with pytest.raises(PermanentError) as refused:
        operator_class(task_id="task").karpenter_awaited(
            context(TaskInstance(spec=demo_spec())), verdict("deadline", "Progressing")
        )
    assert refused.value.reason == "KarpenterDead"
    assert not deleting(kube, NODE_POOL, POOL)


@pytest.mark.parametrize("operator_class", [PlanTeardownOperator, DeleteNodePoolsOperator])
@pytest.mark.parametrize("resumed", [False, True], ids=["at the first look", "by the triggerer's word"])
def test_a_karpenter_that_nobody_could_see_is_not_taken_for_dead(
    kube: KubeClient,  # noqa: F811
    operator_class: Any,
    resumed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API was away until the wait's deadline, and is back for the look that follows."""
    pool(kube)
    karpenter(kube, ready=False)
    blind = unseen("ApiUnavailable", "list pods: connection refused", permanent=False)
    monkeypatch.setattr(karpenter_wait, "KARPENTER_PATIENCE_S", 0.0)
    monkeypatch.setattr(waiting, "look", lambda *_, **__: blind)
    operator = operator_class(task_id="task")
    asked = context(TaskInstance(spec=demo_spec(teardown__whenKarpenterIsDead="emergency")))
    event = {"type": "deadline", "gate": "karpenter_serves", "verdict": blind.to_json()}
    go_on = partial(operator.karpenter_awaited, asked, event) if resumed else partial(operator.execute, asked)
    with pytest.raises(ApiUnavailable, match=r"it is unknown whether Karpenter serves.*connection refused") as away:
        go_on()
    assert away.value.reason == "ApiUnavailable"
    assert not deleting(kube, NODE_POOL, POOL)


@pytest.mark.parametrize("component", ["karpenter", "karpenter-crd"])
def test_a_pool_of_another_team_that_has_come_meanwhile_keeps_karpenter(
    kube: KubeClient,  # noqa: F811
    component: str,
) -> None:
    foreign_pool(kube)
    with pytest.raises(PermanentError, match="NodePools cpu") as refused:
        UninstallReleaseOperator(task_id="task", component=component).execute(context(TaskInstance(spec=demo_spec())))
    assert refused.value.reason == "KarpenterStillNeeded"
    assert kube.get(ObjectRef(NODE_POOL, "cpu")) is not None
    assert kube.get(ObjectRef(DEPLOYMENT, "karpenter", "kube-system")) is None
