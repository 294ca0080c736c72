"""The fault table, with a real helm of both majors against the sandbox's API server; read with kubectl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.helm_faults import TABLE, Fault
from tests.e2e.helm_world import World, helm_binary, helm_children, private_world

# The server's side of a connection whose client was killed is closed by the garbage collector: asyncio says so.
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
FALSE_HELMS = {
    "exit 0": "exit 0",
    "right version": 'case "$1" in version) echo v4.2.3;; esac\nexit 0',
}
#: Faults that are refused before helm is asked for anything: with a false one only the rerun can fail.
REFUSED_BEFORE_HELM = {17, 31}


def cases() -> Iterator[object]:
    for major in (4, 3):
        for fault in sorted(TABLE, key=lambda item: item.id):
            marks = [] if major == 4 and fault.quick else [pytest.mark.full]
            yield pytest.param(fault, major, id=f"{fault.id}-helm{major}", marks=marks)


def test_the_table_is_complete() -> None:
    assert sorted({fault.number for fault in TABLE}) == list(range(1, 40))
    assert len({fault.id for fault in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("fault", "major"), tuple(cases()))
def test_a_fault_leaves_nothing_stuck(
    fault: Fault, major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with private_world(tmp_path, helm_binary(major), monkeypatch, controllers=fault.controllers) as place:
        fault.scenario(place)
    assert helm_children() == []


@pytest.mark.parametrize("script", FALSE_HELMS.values(), ids=FALSE_HELMS.keys())
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.id, marks=[] if fault.number in {1, 20} else [pytest.mark.full]) for fault in TABLE],
)
def test_no_fault_passes_with_a_helm_that_does_nothing(
    fault: Fault, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a scenario passed here, it would not have looked at what helm did; the rerun at its end does not count."""
    fake = tmp_path / "helm"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    passed = False
    if fault.number not in REFUSED_BEFORE_HELM:
        monkeypatch.setattr(World, "converge", lambda *_arguments, **_policy: None)
    with private_world(tmp_path, str(fake), monkeypatch) as place:
        place.patience = 1.0
        try:
            fault.scenario(place)
            passed = True
        except (Exception, pytest.fail.Exception):  # noqa: S110, BLE001  (whatever it is, it did not pass)
            pass
    assert not passed
