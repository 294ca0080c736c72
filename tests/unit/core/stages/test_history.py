"""A pool's history: complete, bounded, and the same whether a run records once or twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpu_fleet.core.stages.history import ALL_TYPES, MOST_BYTES, MOST_NODES, StageHistory, nearest_rank, percentiles
from gpu_fleet.core.stages.moments import Moment, Stage
from tests.unit.core.cluster_objects import NOW
from tests.unit.core.stages.stage_objects import CAME, times

RUN = "gpu_lifecycle.demo/now"


def seen(number: int, *, asked: bool = True):
    return replace(times(number, run="", without=(Moment.PROVEN, Moment.USED)), asked=asked)


def test_a_run_that_records_twice_changes_nothing() -> None:
    proven = {seen(1).node: NOW + 1170.0}
    once = StageHistory().with_nodes([seen(1), seen(2)], proven, run=RUN, now=NOW)
    again = StageHistory.from_json(json.loads(json.dumps(once.to_json()))).with_nodes(
        [seen(1), seen(2)], {seen(1).node: NOW + 9999.0}, run=RUN, now=NOW + 100
    )
    assert once == again
    assert [node.run for node in once.nodes] == [RUN, RUN]
    assert once.nodes[0].at[Moment.PROVEN] == NOW + 1170.0
    assert Moment.PROVEN not in once.nodes[1].at


def test_a_later_run_keeps_who_saw_a_node_first_and_adds_its_first_users_pod() -> None:
    first = StageHistory().with_nodes([seen(1)], {}, run=RUN, now=NOW)
    later = replace(seen(1), at={**seen(1).at, Moment.USED: NOW + 1400.0})
    after = first.with_nodes([later, seen(2)], {}, run="gpu_revalidate.demo/later", now=NOW + 5000)
    assert [node.run for node in after.nodes] == [RUN, "gpu_revalidate.demo/later"]
    assert after.nodes[0].at[Moment.USED] == NOW + 1400.0
    assert (after.of_run(RUN), after.before(RUN)) == ([after.nodes[0]], [after.nodes[1]])
    assert after.since == NOW


@pytest.mark.parametrize(
    ("asked", "since", "counts"),
    [(True, NOW + 5000, True), (False, NOW, True), (False, NOW + 5000, False)],
    ids=["asked for by the run", "came since the history began", "older than the history"],
)
def test_the_proof_of_a_node_that_others_may_have_proven_before_is_not_its_first(
    asked: bool, since: float, counts: bool
) -> None:
    history = StageHistory(since).with_nodes([seen(1, asked=asked)], {seen(1).node: NOW + 9000}, run=RUN, now=NOW + 9)
    assert (Moment.PROVEN in history.nodes[0].at) is counts


def test_the_history_is_bounded_and_forgets_the_oldest() -> None:
    history = StageHistory()
    for number in range(0, 2 * MOST_NODES, 50):
        history = history.with_nodes([seen(each) for each in range(number, number + 50)], {}, run=RUN, now=NOW)
    assert len(json.dumps(history.to_json())) <= MOST_BYTES
    assert len(history.nodes) > 100
    assert history.nodes[-1].key == f"uid-{2 * MOST_NODES - 1}"
    assert history.nodes == tuple(sorted(history.nodes, key=lambda node: node.created or 0))


@pytest.mark.parametrize("value", [None, 7, "x", {}, {"nodes": "x"}, {"since": "x", "nodes": [1, {"key": "k"}]}])
def test_what_is_no_history_is_an_empty_one(value: object) -> None:
    assert StageHistory.from_json(value) == StageHistory()


def test_a_record_of_a_later_version_is_left_out_and_the_others_are_read() -> None:
    value = {"since": 5, "nodes": [{**times(1).to_json(), "at": {"teleported": 1}}, times(2).to_json()]}
    assert StageHistory.from_json(value) == StageHistory(5.0, (times(2),))


def test_percentiles_are_measured_values_by_type_and_of_all() -> None:
    nodes = [times(n, slower={Moment.LAUNCHED: float(n)}) for n in range(1, 21)]
    nodes += [times(30, instance_type="g6.xlarge", without=(Moment.LAUNCHED,))]
    found = percentiles(nodes)
    assert list(found) == [ALL_TYPES, "g5.xlarge", "g6.xlarge"]
    launch = found["g5.xlarge"][Stage.LAUNCH]
    assert (launch.samples, launch.p50, launch.p95) == (20, 12.0, 21.0)
    assert found["g6.xlarge"][Stage.LAUNCH].to_json() == {"samples": 0, "p50": None, "p95": None}
    assert found[ALL_TYPES]["total"].p50 == CAME[Moment.PROVEN] + 10.0
    assert list(percentiles(nodes[:1])) == ["g5.xlarge"]


@pytest.mark.parametrize(("values", "expected"), [([], None), ([4.0], 4.0), ([1.0, 2.0], 2.0), ([1.0, 2.0, 3.0], 3.0)])
def test_nearest_rank(values: list[float], expected: float | None) -> None:
    assert nearest_rank(values, 95) == expected
