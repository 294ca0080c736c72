"""Turns pydantic's errors into sentences that name the dotted field and say what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpu_fleet.core.errors import SpecError

#: Tags of discriminated unions: pydantic puts them into a location, but they are not keys of the file.
_UNION_TAGS = frozenset({"eks", "kubeconfig", "exclusive", "timeSlicing", "mps"})
#: Maximum number of problems of a file that are shown; more than that are usually one mistake, repeated.
MOST_PROBLEMS = 50
_LONGEST = 500


class Problem(NamedTuple):
    """One broken cross-field rule."""

    field: str
    message: str
    remedy: str


class Note(NamedTuple):
    """A remark about a valid spec.

    :ivar field: dotted field of the cluster file, for example ``nodePools[0].terminationGracePeriod``.
    :ivar message: what follows from its value, and what to write instead if that is not wanted.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class SpecErrors(SpecError):
    """All problems of one cluster file.

    :ivar problems: one :class:`SpecError` per problem, in the order of the file's fields; at most ``MOST_PROBLEMS``.
    """

    def __init__(self, problems: Sequence[SpecError], *, where: str = "") -> None:
        self.problems = tuple(problems[:MOST_PROBLEMS])
        head = f"{where}: " if where else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"{problem.place}: {problem}" if problem.place else str(problem) for problem in self.problems]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
        super().__init__("\n  - ".join([f"{head}{count} in the cluster spec", *lines]))
        self.field = self.problems[0].field if self.problems else ""
        self.remedy = self.problems[0].remedy if self.problems else ""
        self.place = self.problems[0].place if self.problems else ""


def dotted(location: Iterable[Any]) -> str:
    """``("nodePools", 0, "sharing", "replicas")`` -> ``nodePools[0].sharing.replicas``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_TAGS:
            path += f".{part}" if path else str(part)
    return path


def shortened(value: Any) -> str:
    """The value, short enough for a sentence."""
    text = repr(value[:200]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


#: Kind of pydantic's type errors -> what was expected and what to write.
_EXPECTED = {
    "bool_type": ("must be true or false", "write true or false, without quotes"),
    "int_type": ("must be a whole number", "write a whole number, without quotes or a point"),
    "float_type": ("must be a number", "write a number, without quotes"),
    "finite_number": ("must be a finite number", "write a finite number"),
    "string_type": ("must be text", 'write text, in quotes if it looks like something else: "1.35", "true"'),
    "tuple_type": ("must be a list", "write a list: [a, b]"),
    "dict_type": ("must be a mapping", "write a mapping: {key: value}"),
    "model_type": ("must be a mapping", "write a mapping: {key: value}"),
    "model_attributes_type": ("must be a mapping", "write a mapping: {key: value}"),
}


_ANYTHING_ELSE = "correct it as include/schema/cluster.schema.json describes it"

#: Kind of pydantic's errors about a value that is out of bounds -> the remedy, with the names of its context.
_BOUNDS = {
    "greater_than_equal": "write {ge} or more",
    "greater_than": "write more than {gt}",
    "less_than_equal": "write at most {le}",
    "less_than": "write less than {lt}",
    "string_too_short": "write at least {min_length} character(s)",
    "string_too_long": "shorten it to at most {max_length} characters",
    "too_short": "give at least {min_length}",
}


def _sentence(error: Any) -> tuple[str, str]:
    """What is wrong and the remedy of one pydantic error."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    if kind == "missing":
        return "is missing", "add it"
    if kind == "extra_forbidden":
        return "is not a key of the cluster spec", "remove it or correct its spelling; keys are camelCase"
    if kind == "value_error":
        message, _, remedy = str(context.get("error", error["msg"])).partition("; ")
        return message, remedy or _ANYTHING_ELSE
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context.get("expected_tags") or ""
        got = context.get("tag", value)
        return f"{shortened(got)} is not allowed", f"one of {expected}"
    if kind == "union_tag_not_found":
        return "has no mode", "add mode"
    if kind == "string_pattern_mismatch":
        return f"{shortened(value)} is not a valid value", f"must match {context.get('pattern')}"
    if kind in _EXPECTED:
        what, remedy = _EXPECTED[kind]
        return f"{what}, not {shortened(list(value) if isinstance(value, tuple) else value)}", remedy
    if kind == "too_long":
        # pydantic gives up counting a mapping, and then has no number
        found, most = context.get("actual_length"), context.get("max_length")
        return f"has {f'more than {most}' if found is None else found} entries", f"give at most {most}"
    what = f"{shortened(value)}: {error['msg'][0].lower()}{error['msg'][1:]}"
    if kind in _BOUNDS:
        return what, _BOUNDS[kind].format_map(context)
    return what, _ANYTHING_ELSE


def problems_of(error: ValidationError, place: Callable[[str], str] = lambda field: "") -> list[SpecError]:  # noqa: ARG005
    """One :class:`SpecError` per problem in a pydantic error.

    :param place: where in the file a dotted field is.
    """
    problems: list[SpecError] = []
    for item in error.errors(include_url=False):
        broken: list[Problem] | None = (item.get("ctx") or {}).get("problems")
        if item["type"] != "cluster_rules" or broken is None:
            broken = [Problem(dotted(item["loc"]) or "the file", *_sentence(item))]
        problems += [
            SpecError(_cut(p.message), field=_cut(p.field), remedy=_cut(p.remedy), place=place(p.field)) for p in broken
        ]
    return problems


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
