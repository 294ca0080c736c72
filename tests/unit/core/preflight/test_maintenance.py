"""Whether the maintenance window can be kept for Karpenter's nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.preflight.facts import Facts, State, Unseen
from gpu_fleet.core.preflight.maintenance import concerns, controller_role, maintenance
from gpu_fleet.core.preflight.prerequisites import judge
from tests.unit.core.specs import demo_spec

WINDOW: dict[str, Any] = {
    "interruptions__maintenance": {"schedule": "0 2 * * 6", "duration": "4h"},
    "karpenter__interruptionQueue": None,
}
ROLE = "arn:aws:iam::123456789012:role/KarpenterControllerRole-demo-gpu"


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        (WINDOW, True),
        ({**WINDOW, "karpenter__manage": False}, True),
        ({**WINDOW, "karpenter__chart": {"version": "1.11.1"}}, False),
        ({**WINDOW, "karpenter__interruptionQueue": "demo-gpu"}, False),
        ({**WINDOW, "interruptions__maintenance": None}, False),
    ],
)
def test_it_is_looked_at_only_where_a_window_is_to_be_kept(changes: dict[str, Any], concerned: bool) -> None:
    spec = demo_spec(**changes)
    assert concerns(spec) is concerned
    names = [each.name for each in judge(spec, Facts())]
    assert ("maintenance window of Karpenter's nodes" in names) is concerned


@pytest.mark.parametrize(
    ("polls", "state", "message", "remedy"),
    [
        (True, State.LIMITED, "it cannot be kept", "take ec2:DescribeInstanceStatus from the role"),
        (False, State.MET, "may not call ec2:DescribeInstanceStatus", ""),
        (None, State.UNKNOWN, "the role of Karpenter's controller is unknown", "interruptions.maintenance: null"),
        (Unseen("no", "iam:SimulatePrincipalPolicy"), State.UNKNOWN, "no", "grant iam:SimulatePrincipalPolicy"),
    ],
)
def test_what_the_role_may_do_decides(polls: Any, state: State, message: str, remedy: str) -> None:
    found = maintenance(demo_spec(**WINDOW), Facts(polls_ec2=polls))
    assert found.state is state
    assert message in found.message
    assert remedy in found.remedy


def test_of_a_karpenter_of_others_nothing_is_known() -> None:
    found = maintenance(demo_spec(**WINDOW, karpenter__manage=False), Facts(polls_ec2=True))
    assert found.state is State.UNKNOWN
    assert "1.12.0" in found.message


def test_the_role_is_that_of_irsa_or_of_the_association() -> None:
    spec, seen = demo_spec(**WINDOW), Facts(associations=[{"associationId": "a-1", "roleArn": ROLE}])
    assert controller_role(spec, seen) == ROLE
    annotated = {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:irsa"}}}
    assert controller_role(demo_spec(**WINDOW, karpenter__values=annotated), seen) == "arn:irsa"
    assert controller_role(spec, replace(seen, associations=[])) is None
    hidden = Unseen("no", "eks:ListPodIdentityAssociations")
    assert controller_role(spec, replace(seen, associations=hidden)) is hidden
