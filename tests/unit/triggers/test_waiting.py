"""How a wait ends in the worker: with what was seen, or with the word of a trigger that could not look."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.errors import DeadlinePassed, GateBlind, GpuFleetError
from gpu_fleet.core.verdict import Verdict, progressing, unseen
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess
from gpu_fleet.operators.helm.releases import SEEN_UNHEALTHY, ProveReleaseOperator
from gpu_fleet.triggers import waiting
from gpu_fleet.triggers.waiting import await_gate, conclude, reconsider
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec

ACCESS = ClusterAccess("kubeconfig", None, None, None, path="/nowhere")
GATE = "release_workloads"
OUTAGE = unseen("ApiUnavailable", "503", permanent=False)
SLOW = progressing("RollingOut", "0 of 1 ready")


def late(verdict: Verdict) -> dict[str, Any]:
    return {"type": "deadline", "gate": GATE, "verdict": verdict.to_json()}


def end_of(verdict: Verdict) -> GpuFleetError:
    with pytest.raises(GpuFleetError) as caught:
        conclude(late(verdict))
    return caught.value


def sees(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    monkeypatch.setattr(waiting, "look", lambda *args, **kwargs: verdict)


def test_a_deadline_that_nobody_saw_pass_says_nothing_about_the_objects() -> None:
    """An outage of the API at the end of a wait is not a release that does not work."""
    error = end_of(OUTAGE)
    assert isinstance(error, GateBlind)
    assert (error.reason, error.message) == (
        "ApiUnavailable",
        "still waiting for release_workloads at its deadline: ApiUnavailable: 503",
    )
    assert type(end_of(SLOW)) is DeadlinePassed


@pytest.mark.parametrize(("verdict", "kind"), [(OUTAGE, GateBlind), (SLOW, DeadlinePassed)])
def test_so_it_is_when_the_worker_itself_looks_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, verdict: Verdict, kind: type[GpuFleetError]
) -> None:
    sees(monkeypatch, verdict)
    with pytest.raises(GpuFleetError, match=verdict.message) as caught:
        await_gate(None, {}, GATE, {}, 0.0, access=ACCESS, deadline=1.0)
    assert type(caught.value) is kind


@pytest.mark.parametrize(("verdict", "told"), [(OUTAGE, False), (SLOW, True)])
def test_a_proof_tells_the_remedy_only_what_was_seen(verdict: Verdict, told: bool) -> None:
    ti = TaskInstance(spec=demo_spec())
    prove = ProveReleaseOperator(task_id="prove", component="karpenter")
    with pytest.raises(GpuFleetError):
        prove.proven(context(ti), late(verdict))
    assert (SEEN_UNHEALTHY in ti.xcoms) is told


@pytest.mark.parametrize(("verdict", "kind"), [(OUTAGE, GateBlind), (SLOW, DeadlinePassed)])
def test_what_is_not_ready_yet_is_undone_only_if_it_was_seen_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, verdict: Verdict, kind: type[GpuFleetError]
) -> None:
    sees(monkeypatch, SLOW)
    with pytest.raises(GpuFleetError, match="0 of 1 ready") as caught:
        reconsider(end_of(verdict), GATE, {}, ACCESS)
    assert type(caught.value) is kind
