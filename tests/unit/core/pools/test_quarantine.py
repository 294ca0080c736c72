"""The quarantine of a node: the patches that put it on and take it off, and who keeps a node from being replaced."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_fleet.core.pools.quarantine import (
    Judgement,
    Quarantine,
    claim_of,
    quarantined,
    released,
    taint_value,
    users_of,
)
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core.cluster_objects import claim, node, user_pod

XID = Judgement(Outcome.FAILED, "XidError", "XID 79", "sharing")
STARVED = Judgement(Outcome.FAILED, "SharerStarved", "share 3", "throughput")
NO_CLASS = Judgement(Outcome.FAILED, "RuntimeClassMissing", "no RuntimeClass", "sharing")
GOOD = Judgement(Outcome.PASSED, passed=frozenset({"sharing", "throughput"}))
BUSY = Judgement(Outcome.BUSY, "Busy", "all GPUs in use", "sharing")
DOUBT = Judgement(Outcome.INCONCLUSIVE, "ReportsMissing", "3 of 4", "sharing")
OURS = Quarantine("XidError", "XID 79", "sharing", "gpu_revalidate.demo/earlier", "2026-01-01T00:00:00+00:00")


# --- patches ---
RUN, AT = "gpu_revalidate.demo/r1", "2026-01-02T00:00:00+00:00"


def patched(item: dict[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
    """What a merge patch makes of a node."""
    assert body is not None

    def merge(base: Any, over: Any) -> Any:
        if not isinstance(over, dict):
            return over
        base = dict(base) if isinstance(base, dict) else {}
        for key, value in over.items():
            if value is None:
                base.pop(key, None)
            else:
                base[key] = merge(base.get(key), value)
        return base

    merged: dict[str, Any] = merge(item, body)
    return merged


def quarantine_of(item: dict[str, Any]) -> dict[str, Any]:
    return patched(item, quarantined(item, XID, run=RUN, at=AT))


def test_a_quarantine_is_a_cordon_a_taint_and_an_annotation_in_one_write() -> None:
    before = node("n1")
    after = quarantine_of(before)
    assert after["spec"]["unschedulable"] is True
    assert after["spec"]["taints"] == [
        *before["spec"]["taints"],
        {"key": "gpu-fleet.io/quarantined", "value": "XidError", "effect": "NoSchedule"},
    ]
    assert json.loads(after["metadata"]["annotations"]["gpu-fleet.io/quarantined"]) == {
        "reason": "XidError",
        "message": "XID 79",
        "probe": "sharing",
        "run": RUN,
        "at": AT,
        "cordoned": True,
    }


def test_a_second_write_is_not_needed() -> None:
    assert quarantined(quarantine_of(node("n1")), XID, run="other", at="later") is None


@pytest.mark.parametrize("part", ["unschedulable", "taints"])
def test_a_part_that_was_taken_away_is_put_back_in_the_first_runs_name(part: str) -> None:
    item = quarantine_of(node("n1"))
    item["spec"].pop(part)
    again = patched(item, quarantined(item, XID, run="other", at="later"))
    found = Quarantine.of(again)
    assert found is not None
    assert (found.run, found.cordoned) == (RUN, True)
    assert again["spec"]["unschedulable"] is True
    assert any(taint["key"] == "gpu-fleet.io/quarantined" for taint in again["spec"]["taints"])


def test_a_release_leaves_the_node_as_it_was() -> None:
    before = node("n1")
    after = patched(quarantine_of(before), released(quarantine_of(before)))
    assert after["spec"]["taints"] == before["spec"]["taints"]
    assert "unschedulable" not in after["spec"]
    assert after["metadata"]["annotations"] == {}


def test_a_cordon_that_was_there_before_stays() -> None:
    item = quarantine_of(node("n1", cordoned=True))
    assert patched(item, released(item))["spec"]["unschedulable"] is True


def test_the_cordon_of_a_drain_stays() -> None:
    item = quarantine_of(node("n1"))
    item["metadata"]["annotations"]["gpu-fleet.io/cordoned-by"] = "gpu_teardown.demo/1"
    assert patched(item, released(item))["spec"]["unschedulable"] is True


def test_what_is_not_quarantined_is_not_released() -> None:
    assert released(node("n1", cordoned=True)) is None


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", '"x"', '{"reason": 7}'])
def test_a_damaged_annotation_is_still_a_quarantine_of_ours(text: str) -> None:
    item = node("n1", cordoned=True, annotations={"gpu-fleet.io/quarantined": text})
    found = Quarantine.of(item)
    assert found is not None
    assert found.cordoned
    assert "unschedulable" not in patched(item, released(item))["spec"]


def test_a_write_carries_the_version_that_was_read() -> None:
    item = node("n1")
    item["metadata"]["resourceVersion"] = "41"
    for body in (quarantined(item, XID, run=RUN, at=AT), released(quarantine_of(item))):
        assert body is not None
        assert body["metadata"]["resourceVersion"] == "41"


@pytest.mark.parametrize(
    ("reason", "value"), [("XidError", "XidError"), ("a b/c:d", "abcd"), ("x" * 99, "x" * 63), ("", ""), ("-_x.", "x")]
)
def test_a_reason_is_a_valid_taint_value(reason: str, value: str) -> None:
    assert taint_value(reason) == value


def test_a_long_message_does_not_fill_the_annotation() -> None:
    item = quarantined(node("n1"), Judgement(Outcome.FAILED, "R", "x" * 100_000, "p"), run=RUN, at=AT)
    assert item is not None
    assert len(item["metadata"]["annotations"]["gpu-fleet.io/quarantined"]) < 1000


# --- who keeps a node from being replaced ---
def pod(name: str = "training", **changes: Any) -> dict[str, Any]:
    found = user_pod(name, node_name="n1", gpus=changes.pop("gpus", 1), phase=changes.pop("phase", "Running"))
    found["metadata"] |= changes
    return found


@pytest.mark.parametrize(
    ("found", "stays"),
    [
        (pod(), True),
        (pod(phase="Succeeded"), False),
        (pod(gpus=0), False),
        (pod(gpus=0, annotations={"karpenter.sh/do-not-disrupt": "true"}), True),
        (pod(gpus=0, annotations={"karpenter.sh/do-not-disrupt": "72h"}), True),
        (pod(gpus=0, annotations={"karpenter.sh/do-not-disrupt": "tomorrow"}), False),
        (pod(labels={"gpu-fleet.io/component": "probe"}), False),
        (pod(labels={"gpu-fleet.io/component": "hold"}), False),
        (pod(ownerReferences=[{"kind": "DaemonSet", "name": "d", "controller": True}]), False),
        (pod(ownerReferences=[{"kind": "Job", "name": "j", "controller": True}]), True),
    ],
    ids=[
        "GPU",
        "ended",
        "no GPU",
        "not to be disrupted",
        "not for a time",
        "no time",
        "probe",
        "hold",
        "DaemonSet",
        "Job",
    ],
)
def test_a_node_is_not_replaced_under_a_users_job(found: dict[str, Any], stays: bool) -> None:
    assert users_of([found], "n1") == (["team-a/training"] if stays else [])
    assert users_of([found], "n2") == []


def test_the_claim_of_a_node_is_found_also_while_it_goes() -> None:
    going, other = claim("going", node_name="n1", deleting=True), claim("other", node_name="n2")
    assert claim_of([other, going], "n1") is going
    assert claim_of([other], "n1") is None
