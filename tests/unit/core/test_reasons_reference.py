"""The reference lists every reason that comes of other systems' words, with what it does to the task and the remedy."""

from __future__ import annotations

import pytest

from gpu_fleet.core.aws.launch_errors import KNOWN, Hope, LaunchCause
from gpu_fleet.core.releases.helm_symptoms import listed
from tests.unit.core.specs import REPOSITORY

REFERENCE = (REPOSITORY / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
ENDS = {Hope.WAIT: "waits", Hope.RETRY: "fails, tried again", Hope.NONE: "fails, needs a person"}


@pytest.mark.parametrize("cause", KNOWN, ids=lambda cause: cause.reason)
def test_a_launch_cause_is_listed(cause: LaunchCause) -> None:
    assert f"| `{cause.reason}` | {ENDS[cause.hope]} | {cause.remedy} |\n" in REFERENCE


@pytest.mark.parametrize(("reason", "transient", "remedy"), listed(), ids=lambda value: str(value)[:40])
def test_a_symptom_of_helm_is_listed(reason: str, transient: bool, remedy: str) -> None:
    ends = "fails, tried again" if transient else "fails, needs a person"
    assert f"| `{reason}` | {ends} | {remedy.replace('{name}', 'NAME')} |\n" in REFERENCE
