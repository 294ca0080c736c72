"""Arguments as ctypes hands them to a function of the library."""

from __future__ import annotations

import ctypes
from typing import Any

from .codes import SUCCESS


def integer_of(argument: Any) -> int:
    """An integer argument, whatever ctypes has made of it."""
    found = getattr(argument, "value", argument)
    return int(found or 0)


def target_of(argument: Any) -> Any:
    """What an argument that is written to points at."""
    if hasattr(argument, "_obj"):  # byref()
        return argument._obj
    return getattr(argument, "contents", argument)


def put(argument: Any, value: Any) -> int:
    target_of(argument).value = value
    return SUCCESS


def text_of(argument: Any) -> str:
    found = getattr(argument, "value", argument)
    return found.decode() if isinstance(found, bytes) else str(found)


def pointer_to(argument: Any) -> int:
    """The address of host memory."""
    found = target_of(argument)
    if isinstance(found, ctypes.c_void_p):
        return int(found.value or 0)
    return found if isinstance(found, int) else ctypes.addressof(found)
