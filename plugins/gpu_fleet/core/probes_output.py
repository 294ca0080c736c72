"""Reads what a probe wrote into its termination message: strictly, because a verdict rests on it.

Nothing here is lenient: a message that is missing, too large, not JSON, of another schema, or with figures that cannot
be true raises :class:`ProbeOutputError`, whose reason becomes the check's reason. It is never a crash and never a pass.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.errors import PermanentError

SCHEMA = "gpu-fleet.io/probe/v1"
#: Bytes; the kubelet cuts a container's termination message here (Kubernetes, 'Determine the reason for pod failure').
MESSAGE_LIMIT = 4096
#: More GPUs than any instance type has.
MAX_GPUS = 64
#: MiB; four times the largest GPU memory sold today (288 GiB).
MAX_MEMORY_MIB = 4 * 288 * 1024
#: Epoch seconds of 2020-01-01: a clock before that is not set.
EARLIEST = 1_577_836_800.0
#: Epoch seconds of 2100-01-01.
LATEST = 4_102_444_800.0

_UUID = re.compile(r"^(GPU|MIG)-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")


class ProbeOutputError(PermanentError):
    """A termination message that cannot be believed; ``reason`` says why."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as a container sees it; memory in MiB, ``None`` where the driver does not tell."""

    uuid: str
    name: str
    memory_total_mib: int | None
    memory_free_mib: int | None


@dataclass(frozen=True)
class VectorAdd:
    """NVIDIA's vectorAdd sample: copies two vectors to the GPU, adds them there, compares the result."""

    passed: bool
    milliseconds: int
    exit_code: int
    output: str


@dataclass(frozen=True)
class ProbeError:
    """Why the probe gave up."""

    reason: str
    message: str


@dataclass(frozen=True)
class ProbeOutput:
    """One probe's report; times in epoch seconds of the node's clock."""

    started_at: float
    finished_at: float
    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]
    vector_add: VectorAdd | None
    error: ProbeError | None


def parse_output(message: str) -> ProbeOutput:
    """The report in a termination message.

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
        raise ProbeOutputError(
            f"the probe's termination message is not JSON: {_excerpt(message)}", reason="OutputNotJson"
        ) from error
    try:
        return _output(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProbeOutputError(
            f"the probe's termination message lacks or mistypes {error}: {_excerpt(message)}",
            reason="OutputOfOtherSchema",
        ) from error


def _output(value: Any) -> ProbeOutput:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ProbeOutputError(f"the probe wrote schema {found!r}, not {SCHEMA}", reason="OutputOfOtherSchema")
    started, finished = _time(value["startedAt"], "startedAt"), _time(value["finishedAt"], "finishedAt")
    if finished < started:
        raise _absurd(f"it finished {started - finished:.1f} s before it started")
    gpus = value["gpus"]
    if not isinstance(gpus, list):
        raise TypeError("gpus")
    if len(gpus) > MAX_GPUS:
        raise _absurd(f"it sees {len(gpus)} GPUs")
    seen = tuple(_gpu(gpu) for gpu in gpus)
    if len({gpu.uuid for gpu in seen}) != len(seen):
        raise _absurd("it sees one GPU UUID twice")
    return ProbeOutput(
        started_at=started,
        finished_at=finished,
        driver=_text(value["driver"], "driver"),
        cuda=_text(value["cuda"], "cuda"),
        gpus=seen,
        vector_add=None if value["vectorAdd"] is None else _vector_add(value["vectorAdd"]),
        error=None if value["error"] is None else _error(value["error"]),
    )


def _gpu(value: dict[str, Any]) -> Gpu:
    uuid = _text(value["uuid"], "gpus.uuid")
    if not _UUID.match(uuid):
        raise _absurd(f"{uuid!r} is not a GPU UUID")
    total = _memory(value["memoryTotalMiB"], "memoryTotalMiB")
    free = _memory(value["memoryFreeMiB"], "memoryFreeMiB")
    if total is not None and free is not None and free > total:
        raise _absurd(f"GPU {uuid} has {free} MiB free of {total} MiB")
    return Gpu(uuid, _text(value["name"], "gpus.name"), total, free)


def _vector_add(value: dict[str, Any]) -> VectorAdd:
    passed, took, code = value["passed"], value["milliseconds"], value["exitCode"]
    if not isinstance(passed, bool):
        raise TypeError("vectorAdd.passed")
    took = _integer(took, "vectorAdd.milliseconds")
    if not 0 <= took <= 86_400_000:
        raise _absurd(f"vectorAdd took {took} ms")
    return VectorAdd(passed, took, _integer(code, "vectorAdd.exitCode"), _text(value["output"], "vectorAdd.output"))


def _error(value: dict[str, Any]) -> ProbeError:
    return ProbeError(_text(value["reason"], "error.reason"), _text(value["message"], "error.message"))


def _time(value: Any, field: str) -> float:
    """Milliseconds since the epoch as seconds."""
    seconds = _integer(value, field) / 1000
    if not EARLIEST <= seconds <= LATEST:
        raise _absurd(f"{field} is {seconds:.0f} s since 1970: the node's clock is not set")
    return seconds


def _memory(value: Any, field: str) -> int | None:
    if value is None:
        return None
    memory = _integer(value, field)
    if not 0 <= memory <= MAX_MEMORY_MIB:
        raise _absurd(f"{field} is {memory}")
    return memory


def _integer(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(field)
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise TypeError(field)
    return value


def _absurd(what: str) -> ProbeOutputError:
    return ProbeOutputError(f"the probe's figures cannot be true: {what}", reason="AbsurdFigures")


def _excerpt(message: str) -> str:
    text = message.strip()[:80]
    return repr(text + ("…" if len(message.strip()) > 80 else ""))
