"""What a report says of how a pool's capacity came."""

from __future__ import annotations

from gpu_fleet.core.markup.blocks import Heading, Note, Table
from gpu_fleet.core.markup.markdown import render
from gpu_fleet.core.reports.ladder import ladder_blocks
from tests.unit.core.capacity.test_climb import ICE, climbed


def test_every_attempt_is_a_row_with_ec2s_words_and_its_price() -> None:
    climb = climbed()
    told = {**climb.to_json(), "sentence": climb.summary(), "short": ""}
    heading, table, note = ladder_blocks(told, "")
    assert isinstance(heading, Heading)
    assert isinstance(table, Table)
    assert isinstance(note, Note)
    shown = render([heading, table, note])
    assert shown.count("InsufficientInstanceCapacity") == 1
    assert ICE.split(";")[0] in shown
    assert "some nodes, then given up" in shown
    assert "at least +0.20 USD/h against the first rung" in shown
    assert "Capacity came on a lower rung" in shown
    assert len(table.rows) == 3


def test_a_pool_without_a_ladder_has_no_such_section() -> None:
    assert list(ladder_blocks(None, "")) == []


def test_a_revalidation_says_which_nodes_stand_on_a_lower_rung() -> None:
    (note,) = ladder_blocks(None, "pool training: 1 node(s) stand on a lower rung")
    assert isinstance(note, Note)


def test_what_is_malformed_is_shown_as_far_as_it_goes() -> None:
    shown = render(list(ladder_blocks({"attempts": [{"rung": 1, "began": "x", "bought": ["y"]}, "z"]}, "")))
    assert "being tried" not in shown
