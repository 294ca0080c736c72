"""How many nodes come before a drain, and when there is no room for them."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.interruptions.replaced_first import replaced_first
from gpu_fleet.core.interruptions.ways import Owner
from tests.unit.core.node_objects import POOL, live, made_of
from tests.unit.core.specs import demo_spec

OWNERS = live()


def node(name: str, *, cordoned: bool = False) -> dict[str, Any]:
    claim = made_of(OWNERS, name)
    spec: dict[str, Any] = {"unschedulable": True} if cordoned else {}
    return {"metadata": {"name": f"node-{name}", "uid": name, "labels": claim["metadata"]["labels"]}, "spec": spec}


def our(name: str, owner: Owner = Owner.KARPENTER) -> OurNode:
    return OurNode(f"node-{name}", name, f"i-{name}", owner, POOL if owner is Owner.KARPENTER else "group")


def plan(drained: str, standing: str, *, cordoned: str = "", coming: str = "", **changes: Any) -> Any:
    """Names of nodes are letters."""
    spec = demo_spec(**{"nodePools__0__wantedNodes": 2, "nodePools__0__limits": {"nodes": 10}, **changes})
    nodes = [node(each, cordoned=each in cordoned) for each in standing]
    claims = [made_of(OWNERS, each) for each in standing + coming]
    return replaced_first(spec, [our(each) for each in drained], nodes, claims)[POOL]


@pytest.mark.parametrize(
    ("drained", "standing", "cordoned", "total"),
    [
        ("a", "ab", "", 2),  # b stays, one comes
        ("ab", "ab", "", 2),
        ("a", "abc", "", 3),  # a node for a node, also beyond the wanted ones
        ("a", "abcd", "d", 3),  # d takes no job anyway
        ("a", "abc", "a", 3),  # a node that was cordoned before is replaced, too
        ("a", "a", "", 2),  # the wanted nodes come in any case
    ],
)
def test_as_many_nodes_come_as_are_drained(drained: str, standing: str, cordoned: str, total: int) -> None:
    found = plan(drained, standing, cordoned=cordoned)
    assert found.nodes == tuple(f"node-{each}" for each in drained)
    assert (found.surge, found.problem) == (total - 2, "")


def test_nodes_that_are_launching_come_first_without_being_requested_again() -> None:
    room: dict[str, Any] = {"nodePools__0__limits": {"nodes": 3}}
    assert plan("a", "ab", coming="c", **room).problem == ""
    assert "limits.nodes is 3" in plan("ab", "abc", **room).problem


def test_without_room_the_limit_is_named() -> None:
    found = plan("a", "ab", nodePools__0__limits={"nodes": 2})
    assert found.problem == f"pool {POOL} has 2 node(s) and needs 1 more first, and limits.nodes is 2"


def test_a_pool_that_wants_no_node_is_replaced_node_for_node() -> None:
    assert plan("a", "ab", nodePools__0__wantedNodes=0).surge == 2


def test_nodes_of_node_groups_are_left_out() -> None:
    assert replaced_first(demo_spec(), [our("a", Owner.NODE_GROUP)], [], []) == {}
