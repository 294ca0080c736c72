"""Durations of the cluster file, in Go syntax: those handed to Karpenter, and waits of this package."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from gpu_fleet.core.spec.problems import shortened

#: Go's time.ParseDuration restricted to what Karpenter's CRD admits; there is no unit for days.
_DURATION = re.compile(r"([0-9]+(s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+)(s|m|h)")
#: The durations that Karpenter's CRD admits in a disruption budget.
_HOURS_AND_MINUTES = re.compile(r"(([0-9]+(h|m))|([0-9]+h[0-9]+m))(0s)?")
#: More characters than any duration that Go can represent, as a person writes it; longer texts are not computed.
_LONGEST_DURATION_TEXT = 40
_SECONDS = {"s": 1, "m": 60, "h": 3600}
#: Go's longest duration: nanoseconds in 64 bits (https://pkg.go.dev/time#Duration), in which Karpenter keeps them.
LONGEST_GO_SECONDS = (2**63 - 1) // 10**9
#: Longest wait of ours: no date computed from it can overflow, and a longer one is a mistaken unit.
LONGEST_WAIT_SECONDS = 366 * 24 * 3600


class Duration(str):
    """A duration in Go syntax (``90s``, ``15m``, ``1h30m``); a string with its length in :attr:`seconds`.

    Source of the syntax: the pattern ``^(([0-9]+(s|m|h))+|Never)$`` in the NodePool CRD (kubernetes-sigs/karpenter
    v1.14 pkg/apis/crds/karpenter.sh_nodepools.yaml).
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """
        :raises ValueError: if the text is not a duration; says what to write for days.
        """
        if not _DURATION.fullmatch(text):
            days = re.fullmatch(r"([0-9]{1,6})d", text)
            remedy = f"write {int(days[1]) * 24}h" if days else "write for example 90s, 15m, 1h30m or 720h"
            raise ValueError(f"{text!r} is not a duration in Go syntax: units are s, m and h; {remedy}")
        duration = cls(text)
        if len(text) > _LONGEST_DURATION_TEXT or duration.seconds > LONGEST_GO_SECONDS:
            raise ValueError(
                f"{shortened(text)} is longer than Go's durations, about 292 years; write for example 720h"
            )
        return duration

    @property
    def seconds(self) -> int:
        """Length in seconds."""
        return sum(int(count) * _SECONDS[unit] for count, unit in _DURATION_PART.findall(self))

    @property
    def timedelta(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls.parse, core_schema.str_schema(), serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["90s", "15m", "720h"]}


class DurationOrNever(Duration):
    """A :class:`Duration`, or the word ``Never`` (Karpenter's ``expireAfter`` and ``consolidateAfter``)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> DurationOrNever:
        return cls(text) if text == "Never" else cls(Duration.parse(text))

    @property
    def never(self) -> bool:
        return self == "Never"

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(([0-9]+(s|m|h))+|Never)$", "examples": ["30s", "720h", "Never"]}


class HoursAndMinutes(Duration):
    """A :class:`Duration` of whole minutes (Karpenter's disruption budgets: kubernetes-sigs/karpenter v1.14
    pkg/apis/v1/nodepool.go).
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> HoursAndMinutes:
        duration = Duration.parse(text)
        if not _HOURS_AND_MINUTES.fullmatch(text):
            raise ValueError(
                f"{text!r} is not a duration that Karpenter accepts here; write hours, then minutes: 8h, 1h30m"
            )
        return cls(duration)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({_HOURS_AND_MINUTES.pattern})$", "examples": ["10m", "8h", "1h30m"]}


class Seconds(int):
    """A wait of ours: written in Go syntax (``15m``), stored as whole seconds."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Seconds:
        """
        :raises ValueError: if the text is not a duration, or one of more than a year.
        """
        seconds = Duration.parse(text).seconds
        if seconds > LONGEST_WAIT_SECONDS:
            raise ValueError(f"{text!r} is longer than a year; write for example 15m, 2h or 24h")
        return cls(seconds)

    @property
    def seconds(self) -> int:
        return int(self)

    @property
    def timedelta(self) -> timedelta:
        return timedelta(seconds=self)

    @property
    def text(self) -> str:
        """In Go syntax, with the largest unit that fits: 120 -> ``2m``, 90 -> ``90s``."""
        for unit in ("h", "m"):
            if self and self % _SECONDS[unit] == 0:
                return f"{int(self) // _SECONDS[unit]}{unit}"
        return f"{int(self)}s"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls.parse,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.text),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["90s", "15m", "2h"]}
