"""A gated pool buys nothing while its nodes are being proven, and gets back what it had."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from gpu_fleet.core.admission.hold import held, held_by, released
from gpu_fleet.core.kubernetes.names import ANNOTATION_FROZEN_BY, ANNOTATION_FROZEN_LIMITS, ANNOTATION_HELD

RUN, OTHER = "gpu_admit.demo/r1", "gpu_lifecycle.demo/r7"


def pool(nodes: str | None = "4", annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """A NodePool as the package has applied it."""
    limits = {"cpu": "16", **({"nodes": nodes} if nodes is not None else {})}
    fields = {"f:limits": {f"f:{name}": {} for name in limits}, "f:weight": {}}
    marks = {f"f:{name}": {} for name in annotations or {}}
    managed = {"f:spec": fields, "f:metadata": {"f:annotations": marks, "f:labels": {"f:a": {}}}}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {
            "name": "p",
            "labels": {"a": "b", "team": "theirs"},
            "annotations": annotations or {},
            "managedFields": [{"manager": "gpu-fleet", "operation": "Apply", "fieldsV1": managed}],
        },
        "spec": {"limits": limits, "weight": 10, "replicas": 3},
    }


def after(before: dict[str, Any], manifest: dict[str, Any] | None) -> dict[str, Any]:
    """The pool once the manifest is applied: what is ours is as it says, and what it leaves out is gone."""
    assert manifest is not None
    found = pool(manifest["spec"]["limits"].get("nodes"), manifest["metadata"].get("annotations") or {})
    assert manifest["spec"]["weight"] == before["spec"]["weight"]
    assert manifest["metadata"]["labels"] == {"a": "b"}
    return found


def test_a_held_pool_has_no_more_nodes_than_it_has_and_the_rest_of_our_fields() -> None:
    manifest = held(pool(), 2, RUN)
    assert manifest is not None
    assert manifest["spec"] == {"limits": {"cpu": "16", "nodes": "2"}, "weight": 10}, "replicas are somebody else's"
    assert held_by(after(pool(), manifest)) == RUN


@pytest.mark.parametrize("nodes", ["4", None])
def test_it_gets_back_what_it_had(nodes: str | None) -> None:
    before = pool(nodes)
    back = after(before, released(after(before, held(before, 2, RUN))))
    assert back["spec"]["limits"] == before["spec"]["limits"]
    assert back["metadata"]["annotations"] == {}
    assert released(back) is None


def test_a_second_hold_of_the_same_run_changes_nothing() -> None:
    once = after(pool(), held(pool(), 2, RUN))
    assert held(once, 2, RUN) is None


def test_what_a_dead_run_held_is_taken_over_with_the_limit_from_before_it() -> None:
    dead = after(pool(), held(pool(), 1, OTHER))
    mine = after(dead, held(dead, 2, RUN))
    assert held_by(mine) == RUN
    assert after(mine, released(mine))["spec"]["limits"]["nodes"] == "4"


@pytest.mark.parametrize(
    "given",
    [
        pool("2"),
        pool("1"),
        {
            **pool("0"),
            "metadata": {
                **pool("0")["metadata"],
                "annotations": {ANNOTATION_FROZEN_LIMITS: "{}", ANNOTATION_FROZEN_BY: "x"},
            },
        },
        {**pool(), "metadata": {**pool()["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}},
    ],
    ids=["at its limit", "above its limit", "frozen by a teardown", "being removed"],
)
def test_where_nothing_can_be_bought_nothing_is_written(given: dict[str, Any]) -> None:
    assert held(given, 2, RUN) is None


def test_a_limit_that_a_person_has_changed_meanwhile_stays() -> None:
    found = copy.deepcopy(after(pool(), held(pool(), 2, RUN)))
    found["spec"]["limits"]["nodes"] = "9"
    assert after(found, released(found))["spec"]["limits"]["nodes"] == "9"


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"run": RUN})])
def test_of_a_damaged_record_the_annotation_goes_and_the_limit_stays(text: str) -> None:
    found = pool("2", {ANNOTATION_HELD: text})
    back = after(found, released(found))
    assert (back["spec"]["limits"]["nodes"], back["metadata"]["annotations"]) == ("2", {})


def test_a_pool_that_nobody_holds_has_nothing_to_release() -> None:
    assert (held_by(pool()), released(pool())) == (None, None)
