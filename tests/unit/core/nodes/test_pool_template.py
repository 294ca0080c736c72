"""Which nodes are of the pool's present template, and what the others do to capacity."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.capacity.placeholders import plan_placeholders
from gpu_fleet.core.manifests.build import pool_labels, pool_taints
from gpu_fleet.core.nodes.pool_template import (
    PoolTemplate,
    claim_differs,
    older_nodes,
    sentence,
)
from tests.unit.core.cluster_objects import POOL, claim, node, placeholder
from tests.unit.core.specs import demo_spec

N1, N2, N3 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2, 3))
EIGHT = {"mode": "timeSlicing", "replicas": 8}
NEW = demo_spec(nodePools__0__sharing=EIGHT)
TEMPLATE = PoolTemplate.of(NEW.pool(POOL))


def of(spec: Any, item: dict[str, Any], **labels: str) -> dict[str, Any]:
    """A claim as Karpenter makes it of the pool's template in that spec."""
    pool = spec.pool(POOL)
    known = {**pool_labels(pool), "node.kubernetes.io/instance-type": "g5.xlarge", **labels}
    item["metadata"]["labels"] |= known
    return {**item, "spec": {"taints": pool_taints(pool)}}


def old(name: str, node_name: str) -> dict[str, Any]:
    return of(demo_spec(), claim(name, node_name=node_name))


def new(name: str, node_name: str) -> dict[str, Any]:
    return of(NEW, claim(name, node_name=node_name))


@pytest.mark.parametrize(
    ("launched_with", "why"),
    [
        ({}, ("sharing time-slicing-4 -> time-slicing-8",)),
        ({"nodePools__0__sharing": EIGHT}, ()),
        (
            {"nodePools__0__sharing": EIGHT, "nodePools__0__taints": []},
            ("taints none -> nvidia.com/gpu=true:NoSchedule",),
        ),
        ({"nodePools__0__sharing": EIGHT, "nodePools__0__labels": {"team": "a"}}, ()),
        ({"nodePools__0__sharing": EIGHT, "nodePools__0__amiAlias": "al2023@v20250101"}, ()),
        ({"nodePools__0__sharing": EIGHT, "nodePools__0__expireAfter": "100h"}, ()),
        ({"nodePools__0__sharing": EIGHT, "nodePools__0__terminationGracePeriod": "48h"}, ()),
        ({"nodePools__0__sharing": EIGHT, "nodePools__0__capacityTypes": ["on-demand"]}, ()),
    ],
    ids=[
        "other sharing", "the same", "another taint", "a label more than promised", "another AMI", "another age",
        "another grace period", "another capacity type",
    ],
)  # fmt: skip
def test_a_node_drifts_by_what_jobs_see(launched_with: dict[str, Any], why: tuple[str, ...]) -> None:
    made = of(demo_spec(**launched_with), claim("c", node_name=N1))
    assert claim_differs(TEMPLATE, made) == why
    assert older_nodes(TEMPLATE, POOL, [node(N1)], [made]) == ({N1: why} if why else {})


def test_labels_and_instance_types_are_the_pools() -> None:
    spec = demo_spec(nodePools__0__labels={"team": "a"}, nodePools__0__instanceTypes=["g5.2xlarge"])
    made = of(demo_spec(), claim("c", node_name=N1))
    assert claim_differs(PoolTemplate.of(spec.pool(POOL)), made) == (
        "label team none -> a",
        "instance type g5.xlarge -> g5.2xlarge",
    )


def test_a_label_that_somebody_took_off_the_node_is_no_other_template() -> None:
    item = node(N1)
    item["metadata"]["labels"]["nvidia.com/device-plugin.config"] = "time-slicing-4"
    assert older_nodes(TEMPLATE, POOL, [item], [new("c", N1)]) == {}
    # Without its claim only the label can tell, and only if it is one of ours.
    assert older_nodes(TEMPLATE, POOL, [item], []) == {N1: ("sharing time-slicing-4 -> time-slicing-8",)}
    item["metadata"]["labels"]["nvidia.com/device-plugin.config"] = "theirs"
    assert older_nodes(TEMPLATE, POOL, [item], []) == {}


def test_a_label_that_a_living_node_was_given_since_makes_up_for_its_claims() -> None:
    item = node(N1)
    item["metadata"]["labels"]["nvidia.com/device-plugin.config"] = "time-slicing-8"
    assert older_nodes(TEMPLATE, POOL, [item], [old("c", N1)]) == {}


def test_a_node_that_is_being_removed_is_named_no_more() -> None:
    assert older_nodes(TEMPLATE, POOL, [node(N1, deleting=True)], [old("c", N1)]) == {}


def test_the_template_of_somebody_elses_pool_is_theirs() -> None:
    assert (
        PoolTemplate.of(demo_spec(nodePools__0__manage=False, teardown={"uninstallKarpenter": False}).pool(POOL))
        is None
    )
    assert older_nodes(None, POOL, [node(N1)], [old("c", N1)]) == {}


def test_the_template_survives_an_xcom() -> None:
    assert TEMPLATE is not None
    assert PoolTemplate.from_json(TEMPLATE.to_json()) == TEMPLATE
    assert PoolTemplate.from_json(None) is None


# --- placeholders ----------------------------------------------------------------------------------------------------
def test_nodes_of_the_old_template_do_not_count_and_new_ones_are_asked_for() -> None:
    claims, nodes = [old("a", N1), old("b", N2)], [node(N1), node(N2)]
    assert plan_placeholders(POOL, 2, claims, nodes, []).create == ()
    plan = plan_placeholders(POOL, 2, claims, nodes, [], TEMPLATE)
    assert (plan.existing, plan.asked, plan.create) == (0, 0, (0, 1))
    assert set(plan.drifted) == {N1, N2}
    # Idle, they would take the placeholders.
    assert plan.mark == (N1, N2)


def test_a_claim_of_the_old_template_on_its_way_serves_nobody() -> None:
    plan = plan_placeholders(POOL, 1, [old("a", "")], [], [], TEMPLATE)
    assert (plan.asked, plan.create) == (0, (0,))
    assert plan_placeholders(POOL, 1, [new("a", "")], [], [], TEMPLATE).create == ()


def test_a_node_of_the_old_template_that_joins_while_a_placeholder_waits_is_marked() -> None:
    claims, nodes = [old("a", N1), new("b", "")], [node(N1)]
    plan = plan_placeholders(POOL, 1, claims, nodes, [placeholder(0)], TEMPLATE)
    assert (plan.create, plan.mark) == ((), (N1,))


def test_a_placeholder_on_a_drifted_node_holds_nothing() -> None:
    plan = plan_placeholders(POOL, 1, [old("a", N1)], [node(N1)], [placeholder(0, node_name=N1)], TEMPLATE)
    assert (plan.remove, plan.create) == ((f"placeholder-{POOL}-0",), (0,))


# --- words ------------------------------------------------------------------------------------------------------------
def test_a_node_without_pods_is_named_without_them() -> None:
    assert sentence("n1", ["sharing a -> b"]) == "node n1 drifted: sharing a -> b"
    assert sentence("n1", ["x"], ["t/p"]).endswith("holds 1 GPU pod (t/p)")
