"""The fields of admission: what they mean for a pool, what is refused, and what is noted."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.kubernetes.names import TAINT_UNPROVEN
from gpu_fleet.core.spec.notes import notes_of
from gpu_fleet.core.spec.problems import SpecErrors
from tests.unit.core.specs import demo_spec


@pytest.mark.parametrize(
    ("changes", "gated"),
    [
        ({}, [False, False]),
        ({"validation__admission": "gated"}, [True, True]),
        ({"validation__admission": "gated", "nodePools__0__admission": "open"}, [False, True]),
        ({"nodePools__1__admission": "gated"}, [False, True]),
        # The template of a NodePool of others is not ours to change.
        (
            {
                "validation__admission": "gated",
                "nodePools__0__manage": False,
                "teardown__uninstallKarpenter": False,
            },
            [False, True],
        ),
    ],
)
def test_a_pool_overrides_the_cluster(changes: dict[str, Any], gated: list[bool]) -> None:
    spec = demo_spec(**changes)
    assert [spec.gated(pool) for pool in spec.node_pools] == gated


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"validation__admission": "closed"}, "validation.admission", "open"),
        ({"nodePools__0__admission": "shut"}, "nodePools[0].admission", "gated"),
        ({"validation__admitWithin": "0s"}, "validation.admitWithin", "20m"),
        ({"validation__admitUnproven": "admit"}, "validation.admitUnproven", "keepAway"),
        ({"nodePools__0__admission": "gated", "nodePools__0__manage": False}, "nodePools[0].admission", "manage: true"),
        (
            {"nodePools__0__taints": [{"key": TAINT_UNPROVEN, "effect": "NoSchedule"}]},
            "nodePools[0].taints",
            "admission: gated",
        ),
    ],
)
def test_what_is_refused_names_the_field_and_the_remedy(changes: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**changes)
    (problem,) = [each for each in caught.value.problems if each.field == field]
    assert remedy in f"{problem.message} {problem.remedy}"


def noted(**changes: Any) -> dict[str, str]:
    return {note.field: note.message for note in notes_of(demo_spec(**changes))}


def test_gated_pools_are_told_what_keeps_their_nodes_closed() -> None:
    before, found = noted(), noted(nodePools__0__admission="gated")
    assert set(found) - set(before) == {"validation.admission", "validation.onFailure.policy"}
    assert "shared-a10g" in found["validation.admission"]
    assert "kubectl taint node" in found["validation.admission"]


def test_with_a_policy_that_acts_pods_do_not_wait_for_a_closed_node() -> None:
    found = noted(nodePools__0__admission="gated", validation__onFailure={"policy": "quarantine"})
    assert "validation.onFailure.policy" not in found
