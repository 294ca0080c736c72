"""Gates on a pool's EC2NodeClass and NodePool; what its NodeOverlay adds is in ``test_overlays.py``."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase, Verdict

CREATED = "2026-09-01T10:00:00Z"
CREATED_AT = 1788256800.0


def condition(
    kind: str, status: str, reason: str = "", message: str = "", generation: int | None = 1
) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "status": status, "reason": reason, "message": message}
    if generation is not None:
        found["observedGeneration"] = generation
    return found


def thing(kind: str, *conditions: dict[str, Any], deleting: bool = False, generation: int = 1) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "pool", "generation": generation, "creationTimestamp": CREATED}
    if deleting:
        metadata["deletionTimestamp"] = CREATED
    return {"kind": kind, "metadata": metadata, "status": {"conditions": list(conditions)} if conditions else {}}


def judge(gate: str, *objects: dict[str, Any], now: float = CREATED_AT + 1) -> Verdict:
    return gate_named(gate).judge({"objects": list(objects)}, {"name": "pool", "now": now, "started": CREATED_AT})


READY = condition("Ready", "True", "Ready")

#: Reasons of aws/karpenter-provider-aws v1.14.1 pkg/controllers/nodeclass, and one of a version to come -> the remedy.
STANDING = {
    "CreateFleetAuthCheckFailed": "service control policy",
    "RunInstancesAuthCheckFailed": "missing grant",
    "TagValidationFailed": "correct nodeClass",
    "UnsupportedAlias": "correct nodeClass",
    "InstanceProfileNotFound": "correct nodeClass",
    "SomethingNew": "Karpenter's log",
}


def refused(reason: str) -> dict[str, Any]:
    cause = condition("ValidationSucceeded", "False", reason, "Controller isn't authorized to call ec2:RunInstances")
    waits = condition("AMIsReady", "False", "DependenciesNotReady", "Awaiting others")
    summary = condition("Ready", "False", "UnhealthyDependents", "ValidationSucceeded=False")
    return thing("EC2NodeClass", *(each | {"lastTransitionTime": CREATED} for each in (waits, cause, summary)))


@pytest.mark.parametrize("reason", STANDING)
def test_a_class_that_stays_refused_fails_with_karpenters_reason(reason: str) -> None:
    verdict = judge("node_class_ready", refused(reason), now=CREATED_AT + 61)
    assert (verdict.phase, verdict.reason, verdict.permanent) == (Phase.FAILED, reason, False)
    assert "isn't authorized" in verdict.message
    assert STANDING[reason] in verdict.message


@pytest.mark.parametrize("reason", STANDING)
def test_a_class_that_was_just_refused_is_looked_at_again_by_karpenter(reason: str) -> None:
    assert judge("node_class_ready", refused(reason)).phase is Phase.PROGRESSING


def test_a_class_that_was_refused_before_this_wait_may_be_cured() -> None:
    args = {"name": "pool", "now": CREATED_AT + 3600, "started": CREATED_AT + 3590}
    verdict = gate_named("node_class_ready").judge({"objects": [refused("TagValidationFailed")]}, args)
    assert verdict.phase is Phase.PROGRESSING


def test_a_summary_alone_fails_nothing() -> None:
    verdict = judge("node_class_ready", refused("DependenciesNotReady"), now=CREATED_AT + 600)
    assert verdict.phase is Phase.PROGRESSING


@pytest.mark.parametrize(
    ("obj", "phase", "reason", "permanent"),
    [
        (None, Phase.PROGRESSING, "NotFound", False),
        (thing("EC2NodeClass"), Phase.PROGRESSING, "NoConditions", False),
        (thing("EC2NodeClass", READY), Phase.READY, "NodeClassReady", False),
        (thing("EC2NodeClass", READY, generation=2), Phase.PROGRESSING, "StatusOutdated", False),
        (thing("EC2NodeClass", READY, deleting=True), Phase.FAILED, "NodeClassTerminating", True),
        (
            thing(
                "EC2NodeClass",
                condition("AMIsReady", "False", "AMINotFound", "AMISelector did not match any AMIs"),
                condition("Ready", "False", "UnhealthyDependents", "AMIsReady=False"),
            ),
            Phase.FAILED,
            "AMINotFound",
            True,
        ),
        (
            thing("EC2NodeClass", condition("SubnetsReady", "False", "SubnetsNotFound", "no subnets")),
            Phase.FAILED,
            "SubnetsNotFound",
            True,
        ),
        (
            thing("EC2NodeClass", condition("SecurityGroupsReady", "False", "SecurityGroupsNotFound", "none")),
            Phase.FAILED,
            "SecurityGroupsNotFound",
            True,
        ),
        (
            # the failure is about the spec before the correction
            thing(
                "EC2NodeClass",
                condition("AMIsReady", "False", "AMINotFound", "none"),
                condition("Ready", "False", "UnhealthyDependents", "AMIsReady=False"),
                generation=2,
            ),
            Phase.PROGRESSING,
            "StatusOutdated",
            False,
        ),
        (
            thing(
                "EC2NodeClass",
                condition("ValidationSucceeded", "False", "CreateFleetAuthCheckFailed", "not authorized"),
                condition("Ready", "False", "UnhealthyDependents", "ValidationSucceeded=False"),
            ),
            Phase.PROGRESSING,
            "CreateFleetAuthCheckFailed",
            False,
        ),
        (
            thing("EC2NodeClass", condition("Ready", "Unknown", "AwaitingReconciliation", "object is awaiting")),
            Phase.PROGRESSING,
            "AwaitingReconciliation",
            False,
        ),
        (thing("EC2NodeClass", condition("Ready", "True", generation=None)), Phase.READY, "NodeClassReady", False),
    ],
)
def test_node_class(obj: dict[str, Any] | None, phase: Phase, reason: str, permanent: bool) -> None:
    verdict = judge("node_class_ready", *([obj] if obj else []))
    assert (verdict.phase, verdict.reason, verdict.permanent) == (phase, reason, permanent)
    assert "pool" in verdict.message


def test_node_class_tells_the_part_that_is_not_ready_rather_than_the_summary() -> None:
    obj = thing(
        "EC2NodeClass",
        condition("ValidationSucceeded", "False", "CreateFleetAuthCheckFailed", "not authorized"),
        condition("Ready", "False", "UnhealthyDependents", "ValidationSucceeded=False"),
    )
    assert "not authorized" in judge("node_class_ready", obj).message


@pytest.mark.parametrize(
    ("obj", "now", "phase", "reason", "permanent"),
    [
        (None, 1, Phase.PROGRESSING, "NotFound", False),
        (thing("NodePool"), 9, Phase.PROGRESSING, "NoConditions", False),
        (thing("NodePool"), 10, Phase.FAILED, "NoConditions", False),
        (thing("NodePool", READY), 1, Phase.READY, "NodePoolReady", False),
        (thing("NodePool", READY, generation=3), 1, Phase.PROGRESSING, "StatusOutdated", False),
        (thing("NodePool", READY, deleting=True), 1, Phase.FAILED, "NodePoolTerminating", True),
        (
            thing(
                "NodePool",
                condition(
                    "ValidationSucceeded", "False", "NodePoolValidationFailed", "duplicate taint Key/Effect pair"
                ),
                condition("Ready", "False", "UnhealthyDependents"),
            ),
            1,
            Phase.FAILED,
            "NodePoolValidationFailed",
            True,
        ),
        (
            thing(
                "NodePool", condition("NodeClassReady", "False", "NodeClassNotFound", "NodeClass not found on cluster")
            ),
            1,
            Phase.FAILED,
            "NodeClassNotFound",
            False,
        ),
        (
            thing("NodePool", condition("NodeClassReady", "False", "NodeClassTerminating", "NodeClass is Terminating")),
            1,
            Phase.FAILED,
            "NodeClassTerminating",
            True,
        ),
        (
            thing(
                "NodePool",
                condition("NodeClassReady", "False", "AMINotFound", "copied from the class"),
                condition("Ready", "False", "UnhealthyDependents", "NodeClassReady=False"),
            ),
            1,
            Phase.PROGRESSING,
            "AMINotFound",
            False,
        ),
        (thing("NodePool", condition("ValidationSucceeded", "True")), 1, Phase.PROGRESSING, "NotReady", False),
    ],
)
def test_node_pool(obj: dict[str, Any] | None, now: float, phase: Phase, reason: str, permanent: bool) -> None:
    verdict = judge("node_pool_ready", *([obj] if obj else []), now=CREATED_AT + now)
    assert (verdict.phase, verdict.reason, verdict.permanent) == (phase, reason, permanent)
    assert "pool" in verdict.message
