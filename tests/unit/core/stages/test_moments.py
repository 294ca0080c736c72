"""Stages are the time between two known moments, and nothing else."""

from __future__ import annotations

import pytest

from gpu_fleet.core.stages.moments import TOLERANCE_S, Moment, NodeTimes, Stage
from tests.unit.core.cluster_objects import NOW
from tests.unit.core.stages.stage_objects import CAME, times


def test_the_stages_are_the_whole_way() -> None:
    node = times(1)
    assert sum(seconds for stage in Stage if (seconds := node.seconds(stage)) is not None) == CAME[Moment.USED]
    assert node.total == CAME[Moment.PROVEN]


@pytest.mark.parametrize("missing", list(Moment))
def test_a_moment_that_is_not_known_makes_the_stages_beside_it_unknown_and_no_other(missing: Moment) -> None:
    node = times(1, without=(missing,))
    beside = {stage for stage in Stage if missing in stage.ends}
    if missing is Moment.PROVEN:
        beside = {Stage.PROOF}  # a user's pod may have been admitted before the proof
    assert {stage for stage, seconds in node.stages().items() if seconds is None} == beside
    assert (node.total is None) == (missing in (Moment.PENDING, Moment.PROVEN))


def test_moments_in_the_wrong_order_are_0_within_the_rounding_and_unknown_beyond() -> None:
    assert times(1, slower={Moment.READY: -5.0 - TOLERANCE_S}).seconds(Stage.READY) == 0.0
    assert times(1, slower={Moment.READY: -5.1 - TOLERANCE_S}).seconds(Stage.READY) is None


def test_a_pod_that_runs_before_the_proof_waited_for_the_gpus_alone() -> None:
    node = times(1, slower={Moment.USED: -250.0})
    assert node.at[Moment.USED] < node.at[Moment.PROVEN]
    assert node.seconds(Stage.USE) == CAME[Moment.USED] - 250.0 - CAME[Moment.PLUGIN]


def test_a_later_look_completes_and_changes_nothing_that_is_known() -> None:
    first = times(1, without=(Moment.USED,))
    later = times(1, slower={Moment.READY: 500.0}, without=(Moment.PENDING,))
    merged = first.completed(later)
    assert {moment: seconds for moment, seconds in merged.at.items() if moment is not Moment.USED} == first.at
    assert merged.at[Moment.USED] == later.at[Moment.USED]


def test_a_record_survives_json() -> None:
    node = times(1, without=(Moment.READY,))
    assert NodeTimes.from_json(node.to_json()) == node
    assert node.at[Moment.CLAIMED] == NOW + 1000 + CAME[Moment.CLAIMED]
