"""Label selectors as clients write them in a query (apimachinery pkg/labels/selector.go, v1.36)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.apiserver import golang
from sandbox.apiserver.errors import Cause, bad_request
from sandbox.apiserver.rules import names

LabelTest = Callable[[dict[str, str]], bool]

_TOKEN = re.compile(r"[ \t\r\n]*(==|!=|[=!(),<>]|[^ \t\r\n=!(),<>]+)")
_SPECIAL = frozenset({"=", "==", "!=", "!", "(", ")", ",", "<", ">"})
_OPERATORS = {"in": "in", "notin": "notin", "=": "=", "==": "=", "!=": "!=", ">": ">", "<": "<"}
_EXPECTED = "in, notin, =, ==, !=, gt, lt"


class _Unreadable(Exception):
    pass


@dataclass(frozen=True)
class Requirement:
    """
    One term of a selector.

    :ivar operator: in, notin, =, !=, <, >, exists or ! (does not exist).
    """

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: dict[str, str]) -> bool:
        present = self.key in labels
        match self.operator:
            case "exists":
                return present
            case "!":
                return not present
            case "in" | "=":
                return present and labels[self.key] in self.values
            case "notin" | "!=":
                return not present or labels[self.key] not in self.values
        found = labels.get(self.key, "")
        if not re.fullmatch(r"[+-]?\d+", found):
            return False
        bound = int(self.values[0])
        return int(found) > bound if self.operator == ">" else int(found) < bound


class _Parser:
    """Reads one selector; ``""`` is the word at its end."""

    def __init__(self, text: str) -> None:
        self._words: list[str] = [*_TOKEN.findall(text), ""]
        self._at = 0

    def _next(self) -> str:
        word = self._words[self._at]
        self._at = min(self._at + 1, len(self._words) - 1)
        return word

    @property
    def _ahead(self) -> str:
        return self._words[self._at]

    @staticmethod
    def _identifier(word: str) -> bool:
        return bool(word) and word not in _SPECIAL

    def requirements(self) -> list[Requirement]:
        found: list[Requirement] = []
        while self._ahead:
            if not self._identifier(self._ahead) and self._ahead != "!":
                raise _Unreadable(f"found '{self._ahead}', expected: !, identifier, or 'end of string'")
            try:
                found.append(self._requirement())
            except _Unreadable as problem:
                raise _Unreadable(f"unable to parse requirement: {problem}") from problem
            separator = self._next()
            if not separator:
                break
            if separator != ",":
                raise _Unreadable(f"found '{separator}', expected: ',' or 'end of string'")
            if not self._identifier(self._ahead) and self._ahead != "!":
                raise _Unreadable(f"found '{self._ahead}', expected: identifier after ','")
        return found

    def _requirement(self) -> Requirement:
        key = self._next()
        absent = key == "!"
        if absent:
            key = self._next()
        if not self._identifier(key):
            raise _Unreadable(f"found '{key}', expected: identifier")
        _refuse(list(names.key(key, "<nil>")))
        if absent or self._ahead in ("", ","):
            return Requirement(key, "!" if absent else "exists")
        word = self._next()
        operator = _OPERATORS.get(word)
        if operator is None:
            raise _Unreadable(f"found '{word}', expected: {_EXPECTED}")
        values = tuple(sorted(self._set() if operator in ("in", "notin") else self._value()))
        causes: list[Cause] = []
        if operator in "<>":
            causes += [_no_number(index, value) for index, value in enumerate(values) if not _is_number(value)]
        for index, value in enumerate(values):
            causes += names.label_value(value, f"values[{index}][{key}]")
        _refuse(causes)
        return Requirement(key, operator, values)

    def _value(self) -> set[str]:
        if self._ahead in ("", ","):
            return {""}
        word = self._next()
        if not self._identifier(word):
            raise _Unreadable(f"found '{word}', expected: identifier")
        return {word}

    def _set(self) -> set[str]:
        word = self._next()
        if word != "(":
            raise _Unreadable(f"found '{word}' expected: '('")
        if self._ahead not in (",", ")") and not self._identifier(self._ahead):
            raise _Unreadable(f"found '{self._ahead}', expected: ',', ')' or identifier")
        values: set[str] = set()
        after_comma = True
        while True:
            word = self._next()
            if word == ")":
                return values | {""} if after_comma else values
            if word == ",":
                values |= {""} if after_comma else set()
                after_comma = True
            elif self._identifier(word) and after_comma:
                values.add(word)
                after_comma = False
                if self._ahead not in (",", ")"):
                    raise _Unreadable(f"found '{self._ahead}', expected: ',' or ')'")
            else:
                raise _Unreadable(f"found '{word}', expected: ',', or identifier")


def _is_number(value: str) -> bool:
    try:
        golang.integer(value)
    except ValueError:
        return False
    return True


def _no_number(index: int, value: str) -> Cause:
    detail = "for 'Gt', 'Lt' operators, the value must be an integer"
    return Cause("FieldValueInvalid", f"values[{index}]", value, detail)


def _refuse(causes: list[Cause]) -> None:
    if causes:
        texts = [str(cause) for cause in causes]
        raise _Unreadable(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]")


def parse(text: str) -> LabelTest:
    """
    A test of a label mapping; an empty selector matches everything.

    :raises ApiError: 400 in the words of a real server.
    """
    try:
        wanted = _Parser(text).requirements()
    except _Unreadable as problem:
        raise bad_request(str(problem)) from problem
    return lambda labels: all(requirement.holds(labels) for requirement in wanted)
