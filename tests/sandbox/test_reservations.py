"""The command line and the control API of capacity reservations."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.cli import _parser
from sandbox.cloud.interrupting import BadRequest
from sandbox.cloud.reserving import wanted
from sandbox.reservations import pairs
from sandbox.state import SandboxError

GOOD: dict[str, Any] = {"instanceType": "g5.xlarge", "zone": "us-west-2a"}


def test_a_body_is_taken_with_one_instance_by_default() -> None:
    assert wanted(GOOD) == {"count": 1, **GOOD}
    assert wanted({"endsIn": 60, "state": "cancelled"}, change=True) == {"endsIn": 60, "state": "cancelled"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"zone": "us-west-2a"}, "instanceType"),
        ({**GOOD, "kind": "capacity-block"}, "kind"),
        ({**GOOD, "type": "block"}, "type"),
        ({**GOOD, "type": "capacity-block"}, "endsIn"),
        ({**GOOD, "endsIn": "soon"}, "endsIn"),
        ({**GOOD, "count": -1}, "count"),
        ({**GOOD, "count": True}, "count"),
        ({**GOOD, "shared": "no"}, "shared"),
        ({**GOOD, "tags": {"a": 1}}, "tags"),
        ({**GOOD, "owner": 123}, "owner"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_by_its_field(body: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        wanted(body)


def test_a_change_takes_fewer_fields() -> None:
    with pytest.raises(BadRequest, match="zone"):
        wanted({"zone": "us-west-2b"}, change=True)


def test_fields_of_the_command_line() -> None:
    assert pairs(["count=2", "zone=us-west-2a", 'tags={"a": "b"}']) == {
        "count": 2,
        "zone": "us-west-2a",
        "tags": {"a": "b"},
    }
    with pytest.raises(SandboxError):
        pairs(["count"])


@pytest.mark.parametrize(
    "argv",
    [
        ["reservation", "add", "instanceType=g5.xlarge", "zone=us-west-2a"],
        ["reservation", "change", "cr-1", "endsIn=60"],
        ["reservation", "list"],
    ],
)
def test_the_commands_exist(argv: list[str]) -> None:
    assert callable(_parser().parse_args(argv).command)
