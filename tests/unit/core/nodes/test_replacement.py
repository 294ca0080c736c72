"""Which drifted nodes a run replaces, what has to come first, and when they may go."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.capacity.placeholders import counts_as_capacity
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.nodes.drifted import DriftedNode
from gpu_fleet.core.nodes.replacement import Mode, Replacement, Why, choose, cordon, cordoned_by, removable, uncordon
from tests.unit.core.cluster_objects import node

POOL = "shared-a10g"


def nodes(*names: str, cordoned: tuple[str, ...] = ()) -> list[PoolNode]:
    return [PoolNode.of(node(name, cordoned=name in cordoned)) for name in names]


def drifted(name: str, pods: tuple[str, ...] = (), since: str = "", protected: tuple[str, ...] = ()) -> DriftedNode:
    return DriftedNode(name, f"claim-{name}", POOL, since=since, pods=pods, protected=protected)


def chosen(found: list[DriftedNode], here: list[PoolNode], **limits: Any) -> Replacement:
    known = {"wanted": len(here), "at_once": 1, "cap": len(here) + 1, "present": len(here), **limits}
    return choose(Mode.IDLE, found, here, counts=counts_as_capacity, **known)


def test_an_idle_node_is_chosen_and_its_replacement_comes_first() -> None:
    plan = chosen([drifted("a")], nodes("a", "b"))
    assert (plan.chosen, plan.surge, plan.left) == (("a",), 1, ())


def test_nothing_is_chosen_unless_it_was_asked_for() -> None:
    plan = choose(
        Mode.NONE, [drifted("a")], nodes("a"), wanted=1, at_once=9, cap=9, present=1, counts=counts_as_capacity
    )
    assert (plan.chosen, plan.surge) == ((), 0)


@pytest.mark.parametrize(
    ("busy", "words"),
    [
        (drifted("a", pods=("ml/train",)), "holds 1 GPU pod (ml/train)"),
        (drifted("a", protected=("ml/logs",)), "pods there ask not to be disrupted: ml/logs"),
    ],
)
def test_a_busy_node_is_named_and_left(busy: DriftedNode, words: str) -> None:
    plan = chosen([busy], nodes("a", "b"))
    assert (plan.chosen, plan.surge) == ((), 0)
    assert [(item.node, item.reason, item.message) for item in plan.left] == [("a", Why.IN_USE, words)]


def test_a_pool_at_its_limit_is_not_taken_beyond_it() -> None:
    plan = chosen([drifted("a")], nodes("a", "b"), cap=2)
    assert (plan.chosen, plan.surge) == ((), 0)
    (left,) = plan.left
    assert left.reason is Why.NO_ROOM
    assert "limits.nodes 2 leaves no place" in left.message
    assert "raise it to 3" in left.message


def test_a_node_that_is_leaving_still_takes_a_place() -> None:
    assert chosen([drifted("a")], nodes("a", "b"), cap=3, present=3).chosen == ()


def test_a_node_too_many_needs_no_replacement() -> None:
    plan = chosen([drifted("a")], nodes("a", "b", "c"), wanted=2, cap=3)
    assert (plan.chosen, plan.surge) == (("a",), 0)


def test_places_that_missing_nodes_need_are_not_given_away() -> None:
    plan = chosen([drifted("a")], nodes("a"), wanted=2, cap=2)
    assert plan.chosen == ()
    assert plan.left[0].reason is Why.NO_ROOM


def test_one_run_replaces_so_many_and_those_that_drifted_first() -> None:
    found = [drifted("a", since="2026-10-02T00:00:00Z"), drifted("b", since="2026-10-01T00:00:00Z"), drifted("c")]
    plan = chosen(found, nodes("a", "b", "c"), at_once=2, cap=5)
    assert (plan.chosen, plan.surge) == (("b", "a"), 2)
    assert [(item.node, item.reason) for item in plan.left] == [("c", Why.TURN_LATER)]


def test_a_cordoned_node_belongs_to_whoever_cordoned_it() -> None:
    plan = chosen([drifted("a")], nodes("a", "b", cordoned=("a",)))
    assert [(item.node, item.reason) for item in plan.left] == [("a", Why.OUT_OF_SERVICE)]


def test_a_node_of_another_template_is_no_capacity_and_needs_no_node_beyond_the_wanted_ones() -> None:
    plan = choose(
        Mode.IDLE,
        [drifted("a")],
        nodes("a", "b"),
        wanted=2,
        at_once=1,
        cap=3,
        present=2,
        counts=lambda found: found.name != "a",
    )
    assert (plan.chosen, plan.surge) == (("a",), 0)  # one node is asked for anyway


def of_another_sharing(**limits: Any) -> Replacement:
    """Two wanted nodes; ``a`` and ``b`` count as none of them."""
    known = {"wanted": 2, "at_once": 9, "cap": 2, "present": 2, **limits}
    found = [drifted("a"), drifted("b", pods=("ml/train",))]
    return choose(Mode.IDLE, found, nodes("a", "b"), counts=lambda found: found.name not in ("a", "b"), **known)


def test_where_not_even_the_wanted_nodes_have_a_place_none_is_said_to_be_replaced() -> None:
    plan = of_another_sharing()
    assert (plan.chosen, plan.surge) == ((), 0)
    assert [(item.node, item.reason) for item in plan.left] == [("b", Why.IN_USE), ("a", Why.NO_ROOM)]
    assert "limits.nodes 2 leaves no place for the 2 wanted node(s)" in plan.left[1].message
    assert of_another_sharing(cap=3).chosen == ()
    assert of_another_sharing(cap=4).chosen == ("a",)


def test_wanted_nodes_that_are_on_their_way_have_their_place_already() -> None:
    assert of_another_sharing(cap=4, present=4, coming=2).chosen == ("a",)
    assert of_another_sharing(cap=4, present=4, coming=1).chosen == ()


def test_pool_above_a_limit_that_was_put_back_lets_go_of_what_it_has_too_many() -> None:
    plan = chosen([drifted("a")], nodes("a", "b", "c"), wanted=2, cap=2, present=3)
    assert (plan.chosen, plan.surge) == (("a",), 0)


def test_a_plan_survives_an_xcom() -> None:
    plan = chosen([drifted("a"), drifted("b", pods=("ml/x",))], nodes("a", "b"))
    assert Replacement.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("wanted", "serving", "go"),
    [
        (2, {"a", "b", "new"}, ["a"]),
        (2, {"a", "b"}, []),
        (2, {"b", "new"}, ["a"]),
        (2, {"a", "new"}, []),
        (0, set(), ["a"]),
    ],
)
def test_a_node_goes_only_if_enough_proven_ones_stay(wanted: int, serving: set[str], go: list[str]) -> None:
    found, left = removable(["a"], serving, wanted)
    assert found == go
    assert [item.reason for item in left] == ([] if go else [Why.NOT_PROVEN])


def test_several_go_until_no_more_than_the_wanted_ones_stay() -> None:
    found, left = removable(["a", "b"], {"a", "b", "c"}, 2)
    assert found == ["a"]
    assert [item.node for item in left] == ["b"]


def test_only_our_own_cordon_is_taken_for_ours() -> None:
    bare = node("a")
    body = cordon(bare, "dag/run")
    assert body is not None
    mine = bare | {
        "metadata": bare["metadata"] | {"annotations": body["metadata"]["annotations"]},
        "spec": body["spec"],
    }
    assert cordoned_by(mine, "dag/run")
    assert not cordoned_by(mine, "dag/other")
    assert cordon(mine, "dag/run") is None
    assert uncordon()["spec"] == {"unschedulable": None}
