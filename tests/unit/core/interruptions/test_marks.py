"""What a notice writes to a node."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from gpu_fleet.core.interruptions.marks import CORDONS, FirstAid, Mark, first_aid, is_heeded, outranks, taken_back
from gpu_fleet.core.interruptions.messages import URGENCY, Kind, Notice

INSTANCE = "i-0123456789abcdef0"
AT = 1_800_000_000.0


def notice(kind: Kind, deadline: float | None = AT + 120, event: str = "e1") -> Notice:
    return Notice(kind, INSTANCE, AT, deadline, "terminate", event)


def node(*, cordoned: bool = False, **annotations: str) -> dict[str, Any]:
    names = {f"gpu-fleet.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    spec = {"unschedulable": True} if cordoned else {}
    return {"metadata": {"name": "n", "resourceVersion": "7", "annotations": names}, "spec": spec}


def after(item: dict[str, Any], aid: FirstAid | None) -> dict[str, Any]:
    if aid is None:
        return item
    metadata = {**item["metadata"], "annotations": {**item["metadata"]["annotations"], **aid.annotations}}
    return {"metadata": metadata, "spec": {**item["spec"], **({"unschedulable": True} if aid.cordon else {})}}


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_marks_and_only_the_urgent_ones_cordon(kind: Kind) -> None:
    aid = first_aid(node(), notice(kind), seen=AT + 1)
    assert aid is not None
    assert aid.cordon is (kind not in (Kind.SCHEDULED, Kind.REBALANCE))
    assert ("gpu-fleet.io/cordoned-by" in aid.annotations) is aid.cordon
    assert json.loads(aid.annotations["gpu-fleet.io/interruption"]) == {
        "kind": kind.value,
        "instance": INSTANCE,
        "at": AT,
        "deadline": AT + 120,
        "action": "terminate",
        "event": "e1",
        "seen": AT + 1,
    }


def test_the_same_notices_in_any_order_leave_the_same_mark() -> None:
    notices = [
        notice(Kind.REBALANCE, None),
        notice(Kind.SPOT),
        notice(Kind.SPOT, AT + 60, "e2"),
        notice(Kind.SCHEDULED),
    ]
    found = set()
    for order in itertools.permutations(notices):
        item = node()
        for each in (*order, *order):
            item = after(item, first_aid(item, each, seen=AT))
        mark = Mark.of(item)
        assert mark is not None
        found.add((mark.notice, item["spec"]["unschedulable"]))
        assert all(first_aid(item, each, seen=AT + 50) is None for each in notices)
    assert found == {(notices[2], True)}


@pytest.mark.parametrize(("known", "new"), list(itertools.product(URGENCY, URGENCY)))
def test_the_more_urgent_kind_wins(known: Kind, new: Kind) -> None:
    assert outranks(notice(new), notice(known)) is (URGENCY.index(new) < URGENCY.index(known))


@pytest.mark.parametrize(
    ("known", "new", "wins"),
    [
        (10.0, 9.0, True),
        (10.0, 10.0, False),
        (10.0, 11.0, False),
        (None, 9.0, True),
        (9.0, None, False),
        (None, None, False),
    ],
)
def test_within_a_kind_the_earlier_end_wins(known: float | None, new: float | None, wins: bool) -> None:
    assert outranks(notice(Kind.SCHEDULED, new), notice(Kind.SCHEDULED, known)) is wins


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", "{}", '{"kind": "Unknown"}', '{"kind": "SpotInterruption", "instance": "i-1", "at": 1}'],
)
def test_a_mark_that_nobody_can_read_counts_as_none(text: str) -> None:
    item = node(interruption=text)
    assert Mark.of(item) is None
    assert first_aid(item, notice(Kind.REBALANCE, None), seen=AT) is not None


def test_a_mark_of_another_instance_counts_as_none() -> None:
    other = Mark(Notice(Kind.TERMINATING, "i-00000000000000000", AT, AT), AT)
    assert first_aid(node(interruption=other.text()), notice(Kind.SPOT), seen=AT) is not None


@pytest.mark.parametrize(
    ("item", "cordons"),
    [
        (node(), True),
        (node(cordoned=True), False),
        (node(cordoned=True, cordoned_by="interruption/e0"), False),
        (node(cordoned=True, cordoned_by="gpu_teardown.demo/run"), True),
        (node(cordoned_by="gpu_teardown.demo/run"), True),
    ],
    ids=["schedulable", "by others", "by an earlier notice", "by a run", "a run's, and uncordoned by a person"],
)
def test_whose_cordon_it_becomes(item: dict[str, Any], cordons: bool) -> None:
    aid = first_aid(item, notice(Kind.SPOT), seen=AT)
    assert aid is not None
    assert aid.cordon is cordons
    assert aid.annotations.get("gpu-fleet.io/cordoned-by") == ("interruption/e1" if cordons else None)


def test_a_person_who_uncordons_is_not_overruled_by_a_copy() -> None:
    item = after(node(), first_aid(node(), notice(Kind.SPOT), seen=AT))
    item["spec"] = {}
    assert first_aid(item, notice(Kind.SPOT), seen=AT + 9) is None


@pytest.mark.parametrize(("rebalance", "heeded"), [("ignore", False), ("signal", True), ("replace", True)])
def test_only_a_recommendation_can_be_ignored(rebalance: str, heeded: bool) -> None:
    assert is_heeded(notice(Kind.REBALANCE), rebalance) is heeded
    assert all(is_heeded(notice(kind), rebalance) for kind in CORDONS | {Kind.SCHEDULED})


def test_what_is_taken_back() -> None:
    ours = after(node(), first_aid(node(), notice(Kind.SPOT), seen=AT))
    gone = {"gpu-fleet.io/interruption": None, "gpu-fleet.io/cordoned-by": None}
    assert taken_back(ours) == {
        "metadata": {"resourceVersion": "7", "annotations": gone},
        "spec": {"unschedulable": None},
    }
    theirs = after(node(cordoned=True), first_aid(node(cordoned=True), notice(Kind.SPOT), seen=AT))
    assert taken_back(theirs) == {
        "metadata": {"resourceVersion": "7", "annotations": {"gpu-fleet.io/interruption": None}}
    }
    assert taken_back(node(cordoned=True, cordoned_by="gpu_teardown.demo/run")) is None
