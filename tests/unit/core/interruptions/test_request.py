"""What a drain by hand is asked for, and which nodes that chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.interruptions.request import DrainRequest, select
from gpu_fleet.core.interruptions.ways import Owner
from tests.unit.core.specs import demo_spec


def our(name: str, *, pool: str = "a10g", zone: str = "us-west-2a", leaving: bool = False) -> OurNode:
    return OurNode(name, f"uid-{name}", f"i-{name}", Owner.KARPENTER, pool, leaving=leaving, zone=zone)


NODES = (our("n1"), our("n2", zone="us-west-2b"), our("n3", pool="a100"), our("n4", leaving=True))


def chosen(**params: Any) -> list[str]:
    return [node.name for node in select(DrainRequest.of(params), NODES).chosen]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"nodes": ["n2"]}, ["n2"]),
        ({"nodes": ["i-n2", "n1"]}, ["n1", "n2"]),
        ({"pools": ["a10g"]}, ["n1", "n2"]),
        ({"zone": "us-west-2a"}, ["n1", "n3"]),
        ({"pools": ["a10g"], "zone": "us-west-2a"}, ["n1"]),
        ({"nodes": ["n1", "n3"], "pools": ["a100"]}, ["n3"]),
        ({"zone": "eu-west-1a"}, []),
    ],
)
def test_the_nodes_that_are_in_all_parts_are_chosen(params: dict[str, Any], names: list[str]) -> None:
    assert chosen(**params) == names


def test_what_was_named_and_is_not_drained_is_said_with_the_cause() -> None:
    params = {"nodes": ["n1", "n3", "n4", "i-0gone"], "pools": ["a10g"]}
    found = select(DrainRequest.of(params), NODES)
    assert [node.name for node in found.chosen] == ["n1"]
    assert set(found.passed_over) == {"n3", "n4", "i-0gone"}
    assert "pool a100" in found.passed_over["n3"]


def test_a_name_that_is_no_node_is_refused() -> None:
    with pytest.raises(SpecError, match="n9: no such node") as error:
        select(DrainRequest.of({"nodes": ["n1", "n9"]}), NODES)
    assert error.value.reason == "UnknownNode"


@pytest.mark.parametrize("params", [{}, {"nodes": [], "pools": [], "zone": " "}, {"deadline": 5}])
def test_a_run_that_chooses_nothing_drains_nothing(params: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="no nodes are chosen"):
        DrainRequest.of(params)


def test_without_a_deadline_the_cluster_files_policy_decides() -> None:
    spec = demo_spec(drain__timeout="4m", drain__whenTimeExpires="delete", deadlines__drain="9m")
    limits = DrainRequest.of({"pools": ["a10g"]}).limits(spec, 1000.0)
    assert (limits.deadline, limits.evict_until, limits.then_delete, limits.end) == (None, 1240.0, True, 1540.0)


def test_with_a_deadline_pods_are_forced_in_time_for_their_grace() -> None:
    limits = DrainRequest.of({"pools": ["a10g"], "deadline": 5}).limits(demo_spec(), 1000.0)
    assert (limits.deadline, limits.margin) == (1300.0, 10.0)
    assert limits.latest_start(30.0) == 1260.0


UNTIL = "1970-01-01T00:20:00Z"


def test_a_moment_is_a_deadline_too() -> None:
    found = DrainRequest.of({"pools": ["a10g"], "until": UNTIL})
    assert (found.has_deadline, found.ends_a_block) == (True, False)
    assert found.limits(demo_spec(), 1000.0).deadline == 1200.0


@pytest.mark.parametrize("text", ["tomorrow", "2026-11-30T12:00:00"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no moment"):
        DrainRequest.of({"pools": ["a10g"], "until": text})


def test_there_is_one_deadline() -> None:
    with pytest.raises(SpecError, match="both say"):
        DrainRequest.of({"pools": ["a10g"], "until": UNTIL, "deadline": 5})


def test_the_nodes_of_a_reservation() -> None:
    nodes = [replace(our("n1"), reservation="cr-1"), replace(our("n2"), reservation="cr-2"), our("n3")]
    request = DrainRequest.of({"reservation": "cr-1", "until": UNTIL})
    assert request.ends_a_block
    assert [node.name for node in select(request, nodes).chosen] == ["n1"]
    named = select(DrainRequest.of({"reservation": "cr-1", "nodes": ["n3"]}), nodes)
    assert named.chosen == ()
    assert "capacity reservation none" in named.passed_over["n3"]


def test_the_params_have_their_defaults_without_a_form() -> None:
    found = DrainRequest.of({"zone": "us-west-2a"})
    assert (found.remove, found.ask_first, found.dry_run, found.replace_first) == (True, True, False, False)
