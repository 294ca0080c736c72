"""What all readers of termination messages share: they are strict, because a verdict rests on the message.

A message that is missing, too large, not JSON, of another schema, or with figures that cannot be true raises
:class:`ProbeOutputError`, whose reason becomes the check's reason. It is never a crash and never a pass.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gpu_fleet.core.errors import PermanentError

#: Bytes; the kubelet cuts a container's termination message here (Kubernetes, 'Determine the reason for pod failure').
MESSAGE_LIMIT = 4096
#: MiB; four times the largest GPU memory sold today (288 GiB).
MAX_MEMORY_MIB = 4 * 288 * 1024
#: Epoch seconds of 2020-01-01: a clock before that is not set.
EARLIEST = 1_577_836_800.0
#: Epoch seconds of 2100-01-01.
LATEST = 4_102_444_800.0

_UUID = re.compile(r"(GPU|MIG)-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ProbeOutputError(PermanentError):
    """A termination message that is not credible; ``reason`` says why."""


@dataclass(frozen=True)
class ProbeError:
    """Why the probe gave up."""

    reason: str
    message: str


class Output(Protocol):
    """What every probe's report has; times in epoch seconds of the node's clock."""

    @property
    def started_at(self) -> float: ...
    @property
    def finished_at(self) -> float: ...
    @property
    def driver(self) -> str: ...
    @property
    def error(self) -> ProbeError | None: ...
    def figures(self) -> dict[str, Any]: ...


_T = TypeVar("_T")


def read(message: str, schema: str, build: Callable[[Mapping[str, Any]], _T]) -> _T:
    """The report in a termination message.

    :param build: makes the report of the JSON object; its ``KeyError``, ``TypeError`` and ``AttributeError`` mean that
        the object is of another shape.
    :raises ProbeOutputError: reasons ``NoOutput``, ``OutputTooLarge``, ``OutputNotJson``, ``OutputOfOtherSchema``,
        ``AbsurdFigures``.
    """
    if not message.strip():
        raise ProbeOutputError("the probe left no termination message", reason="NoOutput")
    size = len(message.encode(errors="replace"))
    if size > MESSAGE_LIMIT:
        raise ProbeOutputError(
            f"the probe left {size} bytes, more than the {MESSAGE_LIMIT} a termination message can have",
            reason="OutputTooLarge",
        )
    try:
        value = json.loads(message)
    except (ValueError, RecursionError) as error:
        if size >= MESSAGE_LIMIT:
            # The kubelet cuts what is longer, so a full and broken message was larger.
            raise ProbeOutputError(
                f"the probe left more than the {MESSAGE_LIMIT} bytes a termination message can have",
                reason="OutputTooLarge",
            ) from error
        raise ProbeOutputError(
            f"the probe's termination message is not JSON: {_excerpt(message)}", reason="OutputNotJson"
        ) from error
    found = value.get("schema") if isinstance(value, dict) else type(value).__name__
    if found != schema:
        raise ProbeOutputError(
            f"the probe wrote schema {str(found)[:80]!r}, not {schema}", reason="OutputOfOtherSchema"
        )
    try:
        return build(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProbeOutputError(
            f"the probe's termination message lacks or mistypes {error}: {_excerpt(message)}",
            reason="OutputOfOtherSchema",
        ) from error


def span(value: Mapping[str, Any]) -> tuple[float, float]:
    """``startedAt`` and ``finishedAt`` in epoch seconds."""
    started, finished = time(value["startedAt"], "startedAt"), time(value["finishedAt"], "finishedAt")
    if finished < started:
        raise absurd(f"it finished {started - finished:.1f} s before it started")
    return started, finished


def time(value: Any, field: str) -> float:
    """Milliseconds since the epoch as seconds."""
    milliseconds = integer(value, field)
    if not EARLIEST * 1000 <= milliseconds <= LATEST * 1000:
        raise absurd(f"{field} is {_short(milliseconds)} ms since 1970: the node's clock is not set")
    return milliseconds / 1000


def memory(value: Any, field: str) -> int | None:
    """MiB, or ``None`` where the driver does not report it."""
    return None if value is None else within(value, field, 0, MAX_MEMORY_MIB)


def within(value: Any, field: str, least: int, most: int) -> int:
    """A whole number between two bounds."""
    found = integer(value, field)
    if not least <= found <= most:
        raise absurd(f"{field} is {_short(found)}")
    return found


def number(value: Any, field: str, least: float, most: float) -> float:
    """A finite number between two bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(field)
    if (isinstance(value, float) and not math.isfinite(value)) or not least <= value <= most:
        raise absurd(f"{field} is {_short(value)}")
    return float(value)


def uuid(value: Any, field: str) -> str:
    found = text(value, field)
    if not _UUID.fullmatch(found):
        raise absurd(f"{found[:80]!r} is not a GPU UUID")
    return found


def integer(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(field)
    return value


def text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise TypeError(field)
    return value


def flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(field)
    return value


def error_of(value: Any) -> ProbeError | None:
    if value is None:
        return None
    return ProbeError(text(value["reason"], "error.reason"), text(value["message"], "error.message"))


def absurd(what: str) -> ProbeOutputError:
    return ProbeOutputError(f"the probe's figures cannot be true: {what}", reason="AbsurdFigures")


def _short(value: float) -> str:
    found = str(value)
    return found if len(found) <= 24 else f"{found[:20]}… ({len(found)} digits)"


def _excerpt(message: str) -> str:
    found = message.strip()[:80]
    return repr(found + ("…" if len(message.strip()) > 80 else ""))
