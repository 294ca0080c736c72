"""Which disruption budgets a pool is given: Karpenter takes the least of those that match the reason."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.manifests.build import build
from tests.unit.core.specs import demo_spec

HELD = {"nodes": "0", "reasons": ["Drifted"]}


@pytest.mark.parametrize(
    ("mine", "written"),
    [
        ([], [{"nodes": "10%"}, HELD]),
        ([{"nodes": "1"}], [{"nodes": "1"}, HELD]),
        ([{"nodes": "5", "reasons": ["Empty"]}], [{"nodes": "5", "reasons": ["Empty"]}, HELD]),
        ([{"nodes": "1", "reasons": ["Drifted"]}], [{"nodes": "1", "reasons": ["Drifted"]}]),
        (
            [{"nodes": "0", "reasons": ["Empty", "Drifted"], "schedule": "0 6 * * *", "duration": "20h"}],
            [{"nodes": "0", "reasons": ["Empty", "Drifted"], "schedule": "0 6 * * *", "duration": "20h"}],
        ),
    ],
    ids=["none", "one for every reason", "one for Empty", "one for Drifted", "one that holds drift by day"],
)
def test_drift_is_held_unless_a_budget_of_the_spec_decides_about_it(
    mine: list[dict[str, Any]], written: list[dict[str, Any]]
) -> None:
    spec = demo_spec(nodePools__0__disruption__budgets=mine)
    pool = build("node_pool", spec, pool="shared-a10g")[0]["spec"]
    assert pool["disruption"]["budgets"] == written
