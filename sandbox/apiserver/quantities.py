"""resource.Quantity: parsing and canonical printing (apimachinery pkg/api/resource/quantity.go)."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_FORM = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?)$")

# quantity.go, ErrFormatWrong
MESSAGE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Fraction, str]:
    match = _FORM.match(text)
    if match is None:
        raise ValueError(MESSAGE)
    number, exponent, suffix = match.groups()
    value = Fraction(number)
    if exponent:
        return value * Fraction(10) ** int(exponent[1:]), "decimal"
    if suffix in _BINARY:
        return value * _BINARY[suffix], "binary"
    return value * _DECIMAL[suffix or ""], "decimal"


def parse(value: Any) -> Fraction:
    """The number; ``ValueError`` if it is no quantity."""
    return _parse(str(value))[0]


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    value, form = _parse(text)
    if value == 0:
        return "0"
    if form == "binary" and value.denominator == 1:
        for suffix, factor in reversed(_BINARY.items()):
            if value % factor == 0:
                return f"{value // factor}{suffix}"
        return str(value)
    return show(value)


def show(value: Fraction) -> str:
    """A number with the largest decimal suffix that leaves an integer."""
    if value == 0:
        return "0"
    for suffix, factor in reversed(_DECIMAL.items()):
        scaled = value / factor
        if scaled.denominator == 1:
            return f"{scaled.numerator}{suffix}"
    return f"{-(-value * 10**9 // 1)}n"  # finer than nano: rounded up, as quantity.go does


def canonical(value: Any) -> str:
    """The form in which the server gives a quantity back: ``0.5`` is ``500m``, ``1024Mi`` is ``1Gi``."""
    return _canonical(str(value))
