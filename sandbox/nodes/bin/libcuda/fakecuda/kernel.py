"""The one kernel that is known."""

from __future__ import annotations

import ctypes
import re
import struct
from array import array
from typing import Any, NamedTuple

from .arguments import target_of
from .codes import ILLEGAL_ADDRESS, NOT_SUPPORTED, SUCCESS
from .context import Context


class MultiplyAdd(NamedTuple):
    """The one kernel that is known: ``multiply_add(out, a, b, turns)`` repeats ``x = a * x + b`` in every thread and
    stores the sum of the thread's chains. Their number, first values and steps are read from the PTX.

    With ``a = -1`` two steps are none, so the result is known without computing it; no other ``a`` is.
    """

    offsets: tuple[float, ...]
    steps_per_turn: int

    @classmethod
    def of(cls, ptx: str) -> MultiplyAdd:
        first = re.findall(r"add\.rn\.f32 %x\d+, %x0, 0f([0-9A-F]{8});", ptx)
        offsets = (0.0, *(struct.unpack(">f", bytes.fromhex(bits))[0] for bits in first))
        return cls(offsets, len(re.findall(r"\bfma\.rn\.f32 ", ptx)) // len(offsets))

    def launch(self, context: Context, threads: int, parameters: Any) -> int:
        pointers = target_of(parameters)
        out = ctypes.c_uint64.from_address(pointers[0]).value
        a, b = (ctypes.c_float.from_address(pointers[index]).value for index in (1, 2))
        turns = ctypes.c_uint32.from_address(pointers[3]).value
        if a != -1.0:
            return NOT_SUPPORTED
        if context.buffer(out, threads * 4) is None:
            return ILLEGAL_ADDRESS
        even = turns * self.steps_per_turn % 2 == 0
        context.results[out] = (self, threads, even, b)
        context.launch()
        return SUCCESS

    def result(self, threads: int, even: bool, b: float) -> bytes:
        """What the threads have stored."""
        chains, total = len(self.offsets), sum(self.offsets)
        if even:
            return array("f", [chains * index + total for index in range(threads)]).tobytes()
        return array("f", [chains * (b - index) - total for index in range(threads)]).tobytes()
