"""What a plain scalar of a cluster file means: that on which YAML 1.1 and YAML 1.2 agree.

Where they differ, the file is refused with the text to write instead: ``yes`` is true in one and text in the other,
``010`` is 8 or 10, ``1:30`` is 90 or text, ``1e3`` is text or 1000 (https://yaml.org/type/ of YAML 1.1,
https://yaml.org/spec/1.2.2/#103-core-schema of YAML 1.2).
"""

from __future__ import annotations

import math
import re
from typing import Any

NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
#: Booleans of YAML 1.1 alone.
_OLD_BOOLEANS = {
    text: word
    for word, forms in (("true", ("yes", "on")), ("false", ("no", "off")))
    for form in forms
    for text in (form, form.capitalize(), form.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"([-+]?(0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
#: What one version of YAML, or each in its own way, reads as a number.
_OTHER_NUMBERS = (
    re.compile(r"[-+]?0[xX][0-9a-fA-F_]+"),
    re.compile(r"[-+]?0[oO][0-7_]+"),
    re.compile(r"[-+]?0[bB][01_]+"),
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
    re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"),
)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", re.DOTALL)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class Ambiguous(ValueError):
    """A scalar that the versions of YAML read in different ways, or that JSON or Helm cannot hold.

    :ivar why: follows the scalar in a sentence.
    :ivar instead: what to write if it is not text; empty if only text can be meant.
    """

    def __init__(self, why: str, instead: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.instead = instead


def plain_value(text: str) -> Any:
    """The value of a scalar without quotes and tag.

    :raises Ambiguous: its meaning depends on the version of YAML, or it does not fit.
    """
    if text in NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        # Longer than any number of 64 bits: not converted, because that takes ever longer.
        number = int(text) if len(text) <= 20 else _HIGHEST + 1
        if not _LOWEST <= number <= _HIGHEST:
            raise Ambiguous("has more than 64 bits", "write a smaller number")
        return number
    if _FLOAT.fullmatch(text):
        value = float(text) if len(text) <= 64 else math.inf
        if not math.isfinite(value):
            raise Ambiguous("does not fit into a floating-point number", "write a shorter one")
        return value
    if text in _OLD_BOOLEANS:
        word = _OLD_BOOLEANS[text]
        raise Ambiguous(f"is {word} in YAML 1.1 and text in YAML 1.2", f"write {word}")
    if _NOT_FINITE.fullmatch(text):
        raise Ambiguous("is not a number that JSON or Helm can represent", "write a finite number")
    if any(pattern.fullmatch(text) for pattern in _OTHER_NUMBERS):
        raise Ambiguous("is another number in YAML 1.1 than in YAML 1.2", "write a plain number")
    if _TIMESTAMP.fullmatch(text):
        raise Ambiguous("is a date in YAML 1.1 and text in YAML 1.2")
    if text == "=":
        raise Ambiguous("has a meaning of its own in YAML 1.1")
    return text
