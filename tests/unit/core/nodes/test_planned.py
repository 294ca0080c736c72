"""What applying a changed spec does to the nodes there are, and to the pods on them."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.markup.markdown import escape
from gpu_fleet.core.nodes.planned import PoolChange, drift_allowance, plan_pool, to_markdown
from gpu_fleet.core.nodes.records import Record
from tests.unit.core.node_objects import POOL, job, live, made_of

LABEL = {"nodePools__0__labels": {"team": "ml"}}
LET_GO = {"nodePools__0__disruption__budgets": [{"nodes": "1", "reasons": ["Drifted"]}]}


def plan(before: Any, after: Any, claims: Any = (), pods: Any = (), **versions: Any) -> PoolChange | None:
    known = {"kubelets": {}, "control_plane": "1.35", **versions}
    return plan_pool(live("1", **before), live("1", **after), claims, pods, Record(), **known)


def test_a_spec_that_changes_nothing_has_no_plan() -> None:
    assert plan({}, {}, [made_of(live("1"))]) is None


def test_limits_and_budgets_make_nothing_drift() -> None:
    after = {"nodePools__0__limits": {"nodes": 9}, "nodePools__0__disruption": {"consolidateAfter": "1h"}}
    assert plan({}, after, [made_of(live("1"))]) is None


def test_a_change_names_the_nodes_that_drift_and_the_pods_that_hold_gpus_there() -> None:
    claims = [made_of(live("1"), name) for name in ("one", "two", "three")]
    found = plan({}, LABEL, claims, [job("train", "node-two")])
    assert found is not None
    assert found.headline == (
        f"this changes the template of pool {POOL} (labels.team changed (none -> ml)): 3 nodes will drift, 1 of them "
        "holds pods with GPUs (ml/train)"
    )
    assert "Karpenter replaces none of them by itself" in found.consequence
    assert found.ends_pods == ()


@pytest.mark.parametrize(
    ("after", "field"),
    [
        ({"nodeClass__amiAlias": "al2023@v20260601"}, "amiAlias changed (al2023@v20260714 -> al2023@v20260601)"),
        ({"nodeClass__tags": {"a": "b"}}, "tags.a changed (none -> b)"),
        ({"nodeClass__volumeSize": 200}, "volumeSize changed (100Gi -> 200Gi)"),
        ({"nodePools__0__expireAfter": "1h"}, "expireAfter changed (Never -> 1h)"),
        ({"nodePools__0__terminationGracePeriod": "1h"}, "terminationGracePeriod changed (none -> 1h)"),
    ],
)
def test_each_field_that_karpenter_looks_at_is_announced(after: Any, field: str) -> None:
    found = plan({}, after, [made_of(live("1"))])
    assert found is not None
    assert field in found.headline
    assert [node.node for node in found.drifting] == ["node-one"]


def test_requirements_drift_only_the_nodes_that_no_longer_meet_them() -> None:
    spot, demand = made_of(live("1"), "spot"), made_of(live("1"), "demand")
    demand["metadata"]["labels"]["karpenter.sh/capacity-type"] = "on-demand"
    found = plan({}, {"nodePools__0__capacityTypes": ["on-demand"]}, [spot, demand])
    assert found is not None
    assert [node.node for node in found.drifting] == ["node-spot"]


def test_a_change_that_is_taken_back_makes_nodes_right_again() -> None:
    claim = made_of(live("0"), drifted="NodePoolDrifted")
    found = plan(LABEL, {}, [claim])
    assert found is not None
    assert found.drifting == ()
    assert found.again == ("node-one",)
    assert "as the spec says again: node-one" in " ".join(found.sentences())


def test_nodes_that_have_drifted_before_are_not_counted_twice() -> None:
    claim = made_of(live("0"), drifted="NodePoolDrifted")
    found = plan(LABEL, {"nodePools__0__labels": {"team": "ops"}}, [claim])
    assert found is not None
    assert (found.drifting, found.before) == ((), 1)


def test_an_upgraded_control_plane_drifts_nodes_of_an_alias() -> None:
    found = plan({}, {}, [made_of(live("1"))], kubelets={"node-one": "1.35"}, control_plane="1.36")
    assert found is not None
    assert found.headline.startswith(f"the control plane was upgraded (1.35 -> 1.36), so pool {POOL} gets another AMI")
    assert [node.node for node in found.drifting] == ["node-one"]


def test_without_a_period_pods_that_ask_to_stay_keep_their_node_and_others_are_evicted() -> None:
    claims = [made_of(live("1"), name) for name in ("one", "two", "three")]
    pods = [job("stays", "node-one", stay="true"), job("goes", "node-two")]
    found = plan({}, {**LABEL, **LET_GO}, claims, pods)
    assert found is not None
    assert "at most 1 at a time" in found.consequence
    assert "idle ones go (node-three)" in found.consequence
    assert "evicted from node-two unless a PodDisruptionBudget keeps them" in found.consequence
    assert "node-one stay until their pods with karpenter.sh/do-not-disrupt end" in found.consequence
    assert found.ends_pods == ("ml/goes",)


def test_the_period_that_the_living_nodes_were_made_with_ends_protected_pods() -> None:
    before = {"nodePools__0__terminationGracePeriod": "10m", **LET_GO}
    claim = made_of(live("1", **before))
    found = plan(before, {**before, **LABEL}, [claim], [job("stays", stay="true")])
    assert found is not None
    assert "running pods on node-one are deleted 10m after their node is taken" in found.consequence
    assert found.ends_pods == ("ml/stays",)


@pytest.mark.parametrize(
    ("budgets", "allowed"),
    [
        ([], (None, False)),
        ([{"nodes": "10%"}], (1, False)),
        ([{"nodes": "10%"}, {"nodes": "0", "reasons": ["Drifted"]}], (0, False)),
        ([{"nodes": "5"}, {"nodes": "0", "reasons": ["Empty"]}], (5, False)),
        ([{"nodes": "0", "schedule": "0 9 * * *", "duration": "8h"}], (None, True)),
        ([{"nodes": "30%"}, {"nodes": "2"}], (2, False)),
    ],
)
def test_how_many_drifted_nodes_go_at_a_time(budgets: Any, allowed: Any) -> None:
    assert drift_allowance({"spec": {"disruption": {"budgets": budgets}}}, 10) == allowed


def test_the_markdown_says_all_of_it() -> None:
    found = plan({}, LABEL, [made_of(live("1"))])
    assert found is not None
    text = to_markdown("demo", [found], list(found.drifting))
    assert escape(found.headline) in text
    assert "Nodes that have drifted already:" in text
    assert "no node drift" in to_markdown("demo", [], [])
