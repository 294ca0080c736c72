"""What a ladder may not say, with the field and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import SpecErrors
from tests.unit.core.specs import demo_spec

SPOT = {"capacityTypes": ["spot"], "for": "5m"}
ON_DEMAND = {"capacityTypes": ["on-demand"]}
FIELD = "nodePools[0].capacity.ladder"


def refused(*ladder: dict[str, Any], **capacity: Any) -> dict[str, tuple[str, str]]:
    """Field -> message and remedy."""
    with pytest.raises(SpecErrors) as caught:
        demo_spec(nodePools__0__capacity={"ladder": list(ladder), **capacity})
    return {problem.field: (str(problem), problem.remedy) for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("ladder", "field", "message", "remedy"),
    [
        ([{"instanceTypes": ["p5.48xlarge"]}], "[0].instanceTypes", "does not allow p5.48xlarge", "use g5.xlarge"),
        ([{"capacityTypes": ["reserved"]}], "[0].capacityTypes", "does not allow reserved", "use spot, on-demand"),
        ([{"zones": ["eu-west-1a"]}], "[0].zones", "is not in us-west-2", "us-west-2a"),
        ([{"zones": ["us-west-2a", "us-west-2a"]}], "[0].zones", "duplicate entry 'us-west-2a'", "remove one"),
        ([{"capacityTypes": ["spot", "spot"]}], "[0].capacityTypes", "duplicate entry 'spot'", "remove one"),
        ([{"zones": ["a zone"]}], "[0].zones[0]", "not the name of an availability zone", "us-west-2a"),
        ([{"for": "0s"}], "[0].for", "longer than 0s", "5m"),
        ([{"for": 300}], "[0].for", "must be text", ""),
        ([{"timeBox": "5m"}], "[0].timeBox", "not a key", "remove it"),
        ([{"capacityTypes": ["spot"]}, ON_DEMAND], "[0].for", "never be tried", "only the last rung"),
        ([SPOT, {"instanceTypes": ["g5.xlarge"], **SPOT}], "[1]", "the same as the rung before", "lengthen"),
        (
            [{**SPOT, "for": "12m"}, {**ON_DEMAND, "for": "8m"}],
            "",
            "add up to 20m, and deadlines.capacity is",
            "raise",
        ),
    ],
)
def test_a_ladder_that_cannot_work_is_refused(
    ladder: list[dict[str, Any]], field: str, message: str, remedy: str
) -> None:
    problems = refused(*ladder)
    told = problems[f"{FIELD}{field}"]
    assert message in told[0]
    assert remedy in told[1]


@pytest.mark.parametrize(("minimum", "message"), [(3, "more than wantedNodes 2"), (0, "0"), ("1", "whole number")])
def test_a_minimum_is_from_one_to_wanted(minimum: Any, message: str) -> None:
    assert message in refused(minimum=minimum)["nodePools[0].capacity.minimum"][0]


def test_a_minimum_of_a_pool_that_wants_none_says_so() -> None:
    with pytest.raises(SpecErrors, match="remove it, or set wantedNodes"):
        demo_spec(nodePools__0__wantedNodes=0, nodePools__0__capacity={"minimum": 1})


def test_a_ladder_comes_back_from_json_as_it_was() -> None:
    ladder = [{"instanceTypes": ["g5.xlarge"], **SPOT}, {**ON_DEMAND, "zones": ["us-west-2a", "us-west-2-lax-1a"]}]
    spec = demo_spec(nodePools__0__capacity={"ladder": ladder, "minimum": 1})
    assert type(spec).model_validate(spec.to_json()) == spec
    pool = spec.node_pools[0]
    assert (pool.needed_nodes, pool.wanted_nodes) == (1, 2)
    assert [rung.time_box for rung in pool.capacity.ladder] == [300, None]


def test_without_a_minimum_all_wanted_nodes_are_needed() -> None:
    pool = demo_spec().node_pools[0]
    assert (pool.needed_nodes, pool.capacity.ladder, pool.capacity.minimum) == (2, (), None)
