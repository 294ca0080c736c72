"""How Go reads values that Python reads differently, and Go's error texts for those that it cannot read.

The API server passes on the texts of Go's standard library: ``encoding/json``, ``encoding/base64``, ``time`` and
``strconv`` (go1.26). Nothing here knows Kubernetes.
"""

from __future__ import annotations

import json
import re
import string
from typing import Any

_BASE64 = frozenset(string.ascii_letters + string.digits + "+/")
SECONDS = "2006-01-02T15:04:05Z07:00"
MICROSECONDS = "2006-01-02T15:04:05.000000Z07:00"
_DATE = (
    ("2006", r"\d{4}"), ("-", "-"), ("01", r"\d\d"), ("-", "-"), ("02", r"\d\d"), ("T", "T"),
    ("15", r"\d\d?"), (":", ":"), ("04", r"\d\d"), (":", ":"), ("05", r"\d\d"),
)  # fmt: skip
_ZONE = ("Z07:00", r"Z|[+-]\d\d:\d\d")
_RANGES = (("01", 1, 12, "month"), ("02", 1, 31, "day"), ("15", 0, 23, "hour"), ("04", 0, 59, "minute"))
_EXPECTED = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Extra data": "after top-level value",
}
_ESCAPES = {
    "Invalid \\escape": "in string escape code",
    "Invalid \\uXXXX escape": "in \\u hexadecimal character escape",
}


def quote(text: str) -> str:
    """``%q``: a string as Go writes it in its sources."""
    return json.dumps(text, ensure_ascii=False)


def syntax_problem(text: str, problem: json.JSONDecodeError) -> str:
    """What ``encoding/json`` says where Python's decoder raised ``problem``."""
    at = problem.pos
    if problem.msg.startswith("Illegal trailing comma"):  # points at the comma; Go reads on
        at = _skip_space(text, at + 1)
    if at >= len(text.rstrip()) or problem.msg.startswith("Unterminated string"):
        return "unexpected end of JSON input"
    if problem.msg.startswith("Invalid control character"):
        where = "in string literal"
    elif problem.msg.startswith("Expecting ',' delimiter"):
        where = "after array element" if _inside_array(text, at) else "after object key:value pair"
    else:
        known = {**_EXPECTED, **_ESCAPES}
        where = next((words for start, words in known.items() if problem.msg.startswith(start)), "")
    char = text[at]
    shown = "'\\''" if char == "'" else "'\"'" if char == '"' else f"'{quote(char)[1:-1]}'"
    return f"invalid character {shown} {where}".rstrip()


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _inside_array(text: str, at: int) -> bool:
    """Whether the innermost bracket that is open at a position is a square one."""
    open_ones: list[str] = []
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text[:at]):
        if bracket in "[{":
            open_ones.append(bracket)
        elif bracket in "]}":
            open_ones.pop()
    return bool(open_ones) and open_ones[-1] == "["


def base64_problem(text: str) -> str | None:
    """Why a string is no standard, padded base64; ``None`` if it is."""
    index = filled = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char in "\r\n":
            continue
        if char in _BASE64:
            filled = (filled + 1) % 4
            continue
        if char != "=" or filled < 2:
            return _corrupt(index - 1)
        if filled == 2:
            index = _skip_lines(text, index)
            if index == len(text) or text[index] != "=":
                return _corrupt(index if index == len(text) else index - 1)
            index += 1
        index = _skip_lines(text, index)
        return _corrupt(index) if index < len(text) else None
    return _corrupt(index - filled) if filled else None


def _skip_lines(text: str, at: int) -> int:
    while at < len(text) and text[at] in "\r\n":
        at += 1
    return at


def _corrupt(at: int) -> str:
    return f"illegal base64 data at input byte {at}"


def time_problem(text: str, layout: str) -> str | None:
    """
    Why ``time.Parse`` refuses a string; ``None`` if it takes it.

    :param layout: :data:`SECONDS` (a fraction is welcome) or :data:`MICROSECONDS` (six digits are demanded).
    """
    rest, found = text, {}
    fraction = (".000000", r"[.,]\d{6}") if layout == MICROSECONDS else ("", r"(?:[.,]\d+)?")
    for element, pattern in (*_DATE, fraction, _ZONE):
        match = re.match(pattern, rest, re.ASCII)
        if match is None:
            return f"parsing time {quote(text)} as {quote(layout)}: cannot parse {quote(rest)} as {quote(element)}"
        found[element] = match.group()
        rest = rest[match.end() :]
    for element, least, most, name in (*_RANGES, ("05", 0, 59, "second")):
        if not least <= int(found[element]) <= most:
            return f"parsing time {quote(text)}: {name} out of range"
    return f"parsing time {quote(text)}: extra text: {quote(rest)}" if rest else None


def integer(text: str) -> int:
    """
    ``strconv.ParseInt(text, 10, 64)``.

    :raises ValueError: with Go's text.
    """
    problem = "invalid syntax"
    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        value = int(text)
        if -(2**63) <= value < 2**63:
            return value
        problem = "value out of range"
    raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: {problem}")


def show(value: Any) -> str:
    """``%+v`` of a decoded JSON value: ``map[a:1 b:[x y]]``."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(show(item) for item in value) + "]"
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)
