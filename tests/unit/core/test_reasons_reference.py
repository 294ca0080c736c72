"""Every reason that the package can print is in the catalogue, and reference and guides are made from it."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from typing import Any

import pytest

from gpu_fleet.core.aws.launch_errors import KNOWN, Hope, LaunchCause
from gpu_fleet.core.errors import GpuFleetError, PermanentError, TransientError
from gpu_fleet.core.gates.registry import all_gates
from gpu_fleet.core.reasons.catalogue import BY_NAME, SECTIONS
from gpu_fleet.core.reasons.reason import Effect, Reason, Section
from gpu_fleet.core.reasons.runs import ERRORS
from gpu_fleet.core.releases.helm.symptoms import listed
from tests.unit.core.reasons_in_sources import CONSTANTS, ENUMERATIONS, POSITIONAL, printed
from tests.unit.core.specs import REPOSITORY
from tools import reason_docs

REFERENCE = (REPOSITORY / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
ENDS = {Hope.WAIT: "waits", Hope.RETRY: "fails, tried again", Hope.NONE: "fails, needs a person"}
#: Effects after which a person reads the remedy.
BAD = {Effect.PERSON, Effect.NODE_FAILS, Effect.DOUBT, Effect.WAITS_THEN_PERSON, Effect.POD_REFUSED}
EVERY = [(section.title, reason) for section in SECTIONS for reason in section.reasons]


@pytest.mark.parametrize("cause", KNOWN, ids=lambda cause: cause.reason)
def test_a_launch_cause_is_listed(cause: LaunchCause) -> None:
    assert f"| `{cause.reason}` | {ENDS[cause.hope]} | {cause.remedy} |\n" in REFERENCE


@pytest.mark.parametrize(("reason", "transient", "remedy"), listed(), ids=lambda value: str(value)[:40])
def test_a_symptom_of_helm_is_listed(reason: str, transient: bool, remedy: str) -> None:
    ends = "fails, tried again" if transient else "fails, needs a person"
    assert f"| `{reason}` | {ends} | {remedy.replace('{name}', 'NAME')} |\n" in REFERENCE


def test_every_reason_that_the_sources_can_print_has_an_entry() -> None:
    found = printed()
    assert len(found) > 400
    assert found.keys() >= {"CapacityReady", "NodeNotReady", "PlanGrew", "HelmKilled", "ConfigEntryMissing", "InUse"}
    known = BY_NAME.keys() | {cause.reason for cause in KNOWN} | {reason for reason, _, _ in listed()}
    assert {reason: places for reason, places in found.items() if reason not in known} == {}


def test_the_places_in_which_reasons_are_looked_for_exist() -> None:
    tables: tuple[dict[str, Any], ...] = (ENUMERATIONS, CONSTANTS, POSITIONAL)
    named = [(module, name) for table in tables for module, names in table.items() for name in names]
    assert [(module, name) for module, name in named if not hasattr(importlib.import_module(module), name)] == []


def test_every_entry_is_in_the_reference_with_where_it_appears() -> None:
    for section in SECTIONS:
        _, heading, rest = REFERENCE.partition(f"\n## {section.title}\n\nAppears in: {section.where}.\n")
        assert heading
        rows = rest.partition("\n## ")[0]
        missing = [each.name for each in section.reasons if f"`{each.name}`" not in rows]
        assert missing == [], section.title


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_a_section_has_each_reason_once(section: Section) -> None:
    assert [name for name, count in Counter(each.name for each in section.reasons).items() if count > 1] == []


@pytest.mark.parametrize(("title", "reason"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_an_entry_says_what_was_found_and_what_helps(title: str, reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", reason.name)
    assert reason.found
    assert not reason.found.endswith(".")
    assert not reason.remedy or reason.remedy.endswith((".", "?"))
    assert reason.remedy or reason.effect not in BAD
    assert not reason.in_node or reason.effect is Effect.NODE_FAILS
    if reason.guide:
        assert (REPOSITORY / "docs" / "guides" / reason.guide.partition("#")[0]).is_file()


def test_every_gate_is_named_where_its_reasons_are() -> None:
    named = {name for section in SECTIONS for name in re.findall(r"`([a-z_]+)`", section.where)}
    assert {gate.name for gate in all_gates()} <= named


def test_every_type_of_error_has_an_entry_of_its_effect() -> None:
    """The name of the class is the reason of an error that was given none."""

    def family(kind: type[GpuFleetError]) -> list[type[GpuFleetError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in family(child))]

    kinds = [kind for kind in family(GpuFleetError) if kind.__module__ == "gpu_fleet.core.errors"]
    assert {kind.__name__ for kind in kinds} <= BY_NAME.keys()
    effects = {reason.name: reason.effect for reason in ERRORS.reasons}
    for kind in kinds:
        expected = {TransientError: Effect.RETRIED, PermanentError: Effect.PERSON}
        for base, effect in expected.items():
            if issubclass(kind, base) and kind.__name__ in effects:
                assert effects[kind.__name__] is effect, kind.__name__


def test_the_generated_pages_are_current() -> None:
    """Else: ``make docs``."""
    assert [path.name for path, text in reason_docs.pages().items() if path.read_text(encoding="utf-8") != text] == []
