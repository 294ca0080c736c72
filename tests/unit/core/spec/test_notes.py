"""What a valid spec says about itself: nothing by default, a sentence for everything that reaches running jobs."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec.notes import notes_of
from tests.unit.core.specs import demo_spec

#: The demo's first pool without any field that says how nodes go.
PLAIN: dict[str, Any] = {
    "nodePools__0__terminationGracePeriod": None,
    "nodePools__1__terminationGracePeriod": None,
    "nodePools__0__expireAfter": "Never",
    "nodePools__1__expireAfter": "Never",
    "nodePools__0__disruption": {},
}
JOBS = ("terminationGracePeriod", "budgets", "expireAfter", "consolidationPolicy", "nodeRepair")


def notes(**changes: Any) -> dict[str, str]:
    """The notes about running jobs, by field."""
    return {n.field: n.message for n in notes_of(demo_spec(**{**PLAIN, **changes})) if n.field.endswith(JOBS)}


def test_a_spec_under_which_only_empty_nodes_go_has_nothing_to_note() -> None:
    assert notes() == {}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"nodePools__0__terminationGracePeriod": "10m"}, "nodePools[0].terminationGracePeriod", "do-not-disrupt"),
        ({"nodePools__0__expireAfter": "720h"}, "nodePools[0].expireAfter", "until they end"),
        (
            {"nodePools__0__disruption": {"budgets": [{"nodes": "1", "reasons": ["Drifted"]}]}},
            "nodePools[0].disruption.budgets",
            "evicts their pods",
        ),
        (
            {"nodePools__0__disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized"}},
            "nodePools[0].disruption.consolidationPolicy",
            "to save a node",
        ),
        (
            {"karpenter__settings": {"featureGates": {"nodeRepair": True}}},
            "karpenter.settings.featureGates.nodeRepair",
            "at once",
        ),
    ],
)
def test_each_way_in_which_running_jobs_end_is_noted_at_its_field(
    changes: dict[str, Any], field: str, says: str
) -> None:
    found = notes(**changes)
    assert list(found) == [field]
    assert says in found[field]


def test_the_period_names_what_starts_it() -> None:
    held = notes(nodePools__0__terminationGracePeriod="10m")["nodePools[0].terminationGracePeriod"]
    assert "drifts" not in held
    assert "expireAfter" not in held
    both = notes(
        nodePools__0__terminationGracePeriod="10m",
        nodePools__0__expireAfter="720h",
        nodePools__0__disruption={"budgets": [{"nodes": "1", "reasons": ["Drifted"]}]},
    )
    assert "drifts" in both["nodePools[0].terminationGracePeriod"]
    assert "reaches expireAfter 720h" in both["nodePools[0].terminationGracePeriod"]
    assert "10m later every pod is deleted" in both["nodePools[0].expireAfter"]
    assert "longer than 10m" in both["nodePools[0].disruption.budgets"]


def test_a_budget_that_blocks_drift_only_at_times_is_noted() -> None:
    night = {"nodes": "0", "reasons": ["Drifted"], "schedule": "0 6 * * *", "duration": "20h"}
    assert "nodePools[0].disruption.budgets" in notes(nodePools__0__disruption={"budgets": [night]})
    assert notes(nodePools__0__disruption={"budgets": [{**night, "schedule": None, "duration": None}]}) == {}


def test_pools_of_others_are_not_judged() -> None:
    found = notes(nodePools__0__manage=False, nodePools__0__expireAfter="1h", teardown__uninstallKarpenter=False)
    assert found == {}
