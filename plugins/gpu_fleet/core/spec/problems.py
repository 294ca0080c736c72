"""From pydantic's errors to sentences that name the dotted field and say what to write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpu_fleet.core.errors import SpecError

#: Tags of discriminated unions, which pydantic puts into a location but which are no keys of the file.
_UNION_TAGS = frozenset({"eks", "kubeconfig", "exclusive", "timeSlicing", "mps"})


class Problem(NamedTuple):
    """One broken cross-field rule."""

    field: str
    message: str
    remedy: str


class Note(NamedTuple):
    """One thing about a valid spec that is worth knowing.

    :ivar field: dotted field of the cluster file, for example ``nodePools[0].terminationGracePeriod``.
    :ivar message: what follows from its value, and what to write instead if that is not wanted.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class SpecErrors(SpecError):
    """All problems of one cluster file.

    :ivar problems: one :class:`SpecError` per problem, in the order of the file's fields.
    """

    def __init__(self, problems: Sequence[SpecError], *, where: str = "") -> None:
        self.problems = tuple(problems)
        head = f"{where}: " if where else ""
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{head}{count} in the cluster spec{lines}")
        self.field = self.problems[0].field if self.problems else ""
        self.remedy = self.problems[0].remedy if self.problems else ""


def dotted(location: Iterable[Any]) -> str:
    """``("nodePools", 0, "sharing", "replicas")`` -> ``nodePools[0].sharing.replicas``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_TAGS:
            path += f".{part}" if path else str(part)
    return path


def _short(value: Any) -> str:
    """The value as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sentence(error: Any) -> tuple[str, str]:
    """What is wrong and the remedy of one pydantic error."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    if kind == "missing":
        return "is missing", "add it"
    if kind == "extra_forbidden":
        return "is not a key of the cluster spec", "remove it or correct its spelling; keys are camelCase"
    if kind == "value_error":
        message, _, remedy = str(context.get("error", error["msg"])).partition("; ")
        return message, remedy
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context.get("expected_tags") or ""
        got = context.get("tag", value)
        return f"{got!r} is not allowed", f"one of {expected}"
    if kind == "union_tag_not_found":
        return "has no mode", "add mode"
    if kind == "string_pattern_mismatch":
        return f"{_short(value)} is not a valid value", f"must match {context.get('pattern')}"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        return f"{error['msg'][0].lower()}{error['msg'][1:]}, not {_short(value)}", ""
    return f"{_short(value)}: {error['msg'][0].lower()}{error['msg'][1:]}", ""


def problems_of(error: ValidationError) -> list[SpecError]:
    """One :class:`SpecError` per problem in a pydantic error."""
    problems: list[SpecError] = []
    for item in error.errors(include_url=False):
        broken: list[Problem] | None = (item.get("ctx") or {}).get("problems")
        if item["type"] == "cluster_rules" and broken is not None:
            problems += [SpecError(p.message, field=p.field, remedy=p.remedy) for p in broken]
            continue
        message, remedy = _sentence(item)
        problems.append(SpecError(message, field=dotted(item["loc"]) or "the file", remedy=remedy))
    return problems
