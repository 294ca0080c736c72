"""What all models of the cluster spec share: strictness, and the types of names, durations and versions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from gpu_fleet.core.spec.problems import shortened

#: Go's time.ParseDuration restricted to what Karpenter's CRD admits; there is no unit for days.
_DURATION = re.compile(r"([0-9]+(s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+)(s|m|h)")
#: What Karpenter's CRD admits as a disruption budget's duration.
_HOURS_AND_MINUTES = re.compile(r"(([0-9]+(h|m))|([0-9]+h[0-9]+m))(0s)?")
#: Longer than any duration that Go can hold, as written by a person; longer ones are not even computed.
_LONGEST_DURATION_TEXT = 40
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_EXACT_VERSION = re.compile(r"v?[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?(\+[0-9A-Za-z.-]{1,64})?")


#: Longest text of any field; the longest that Kubernetes or AWS take in one of them is a path.
LONGEST_TEXT = 4096
#: Levels of a free-form field (Helm values, a notifier's arguments); the files' own bound is not above it.
_DEEPEST = 40
#: Go's longest duration: nanoseconds in 64 bits (https://pkg.go.dev/time#Duration), in which Karpenter keeps them.
LONGEST_GO_SECONDS = (2**63 - 1) // 10**9
#: Longest wait of ours: no date computed from it can overflow, and whoever writes more has mistaken the unit.
LONGEST_WAIT_SECONDS = 366 * 24 * 3600


class SpecModel(BaseModel):
    """Base of every part of the spec: frozen, unknown keys refused, keys in camelCase as in Kubernetes.

    Strict: a value of one type never becomes one of another (``force: 1`` is not true, ``"2"`` is no number).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_default=False,
        strict=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """Lists of YAML and JSON for the tuples of frozen models: the one conversion that loses nothing."""
        if isinstance(value, Mapping):
            return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return value

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No text with line breaks or other invisible characters, nothing that JSON cannot hold."""
        if isinstance(value, str):
            visible(value)
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, str):
                    visible(item)
        elif isinstance(value, dict):
            _json_only(value)
        return value


def visible(text: str) -> None:
    """
    :raises ValueError: for text that does not look as what it is: line breaks, control characters, outer spaces.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"has {len(text)} characters; write at most {LONGEST_TEXT}")
    if text != text.strip():
        raise ValueError(f"{text!r} begins or ends with a space or line break; remove it")
    hidden = next((character for character in text if not character.isprintable()), None)
    if hidden is not None:
        raise ValueError(f"{text[:80]!r} holds the invisible character {hidden!r}; remove it")


def _json_only(value: Any, depth: int = 0) -> None:
    """
    :raises ValueError: for what neither JSON nor Helm can hold: NaN, infinity, dates, keys that are no text.
    """
    if depth > _DEEPEST:
        raise ValueError(f"is nested deeper than {_DEEPEST} levels; flatten it")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text; put it in quotes")
            _json_only(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _json_only(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number that JSON or Helm can hold; write a finite number")
    elif value is not None and not isinstance(value, str | int):
        raise ValueError(f"{value!r} is a {type(value).__name__}; put it in quotes")


@dataclass(frozen=True)
class Pattern:
    """Annotation of a text that must match as a whole; unlike pydantic's ``pattern`` it says in words what to write.

    :ivar regex: of ASCII text, without anchors.
    :ivar explain: the text -> what is wrong and, after ``; ``, what to write instead.
    """

    regex: str
    explain: Callable[[str], str]

    def _check(self, value: str) -> str:
        if re.fullmatch(self.regex, value, re.ASCII) is None:
            raise ValueError(self.explain(value))
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^({self.regex})$"}


def _digest(value: str) -> str:
    return f"{value!r} is not the sha256 of an archive; write sha256: and its 64 lower-case hexadecimal digits"


def _repository(value: str) -> str:
    if value.endswith("/"):
        return f"{value!r} ends with a slash; write {value.rstrip('/')}"
    return f"{value!r} is not the address of a chart repository; write oci://registry/path or https://host/path"


#: Of a chart's archive.
Digest = Annotated[str, Pattern(r"sha256:[0-9a-f]{64}", _digest)]
ChartRepository = Annotated[str, Pattern(r"(oci|https?)://\S*[^\s/]", _repository)]


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
            raise ValueError(f"{text!r} is no duration that Karpenter takes here; write hours, then minutes: 8h, 1h30m")
        return cls(duration)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({_HOURS_AND_MINUTES.pattern})$", "examples": ["10m", "8h", "1h30m"]}


class Seconds(int):
    """A wait of ours: written in Go syntax (``15m``), held as whole seconds, ready for arithmetic."""

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


def _dns_label(value: str) -> str:
    if len(value) > 63:
        raise ValueError(f"{value!r} has {len(value)} characters; shorten it to the 63 of a DNS-1123 label")
    if not _DNS_LABEL.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a DNS-1123 label; use lower-case letters, digits and '-', beginning and ending with a "
            "letter or digit"
        )
    return value


def label_key(value: str) -> str:
    """The key of a label or taint, as Kubernetes takes it: ``name`` or ``dns.subdomain/name``
    (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set).

    :raises ValueError: saying how to write it.
    """
    prefix, slash, name = value.rpartition("/")
    if slash and (len(prefix) > 253 or not _DNS_SUBDOMAIN.fullmatch(prefix)):
        raise ValueError(
            f"{prefix!r} before the '/' of {value!r} is not a DNS subdomain; "
            f"write for example example.com/{name or 'x'}"
        )
    if len(name) > 63 or not _LABEL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of a label or taint; use at most 63 letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )
    return value


def label_value(value: str) -> str:
    """The value of a label or taint, as Kubernetes takes it.

    :raises ValueError: saying how to write it.
    """
    if value and (len(value) > 63 or not _LABEL_NAME.fullmatch(value)):
        raise ValueError(
            f"{value!r} is not the value of a label or taint; use at most 63 letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )
    return value


def _exact_version(value: str) -> str:
    if not _EXACT_VERSION.fullmatch(value):
        raise ValueError(f"{value!r} does not pin one version; write major.minor.patch, for example 0.20.0")
    return value


def _quoted(value: Any) -> Any:
    if isinstance(value, float | int) and not isinstance(value, bool):
        raise ValueError(
            f'{value!r} is a number in YAML, where 1.30 reads as 1.3; put it in quotes, for example "1.35"'
        )
    return value


#: A Kubernetes object name that is also used as a label value, a host name part and a task group id.
DnsLabel = Annotated[str, AfterValidator(_dns_label)]


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("is empty; give at least one entry")
    return value


#: For tuples that need an entry: unlike ``min_length`` it says nothing when an entry itself is wrong.
NotEmpty = AfterValidator(_not_empty)
#: Exactly one version: no range, no wildcard, no 'latest'.
ExactVersion = Annotated[str, BeforeValidator(_quoted), AfterValidator(_exact_version)]
#: A version such as "1.35" that YAML would read as a number.
QuotedVersion = Annotated[str, BeforeValidator(_quoted)]


def version_tuple(version: str) -> tuple[int, ...]:
    """``"1.14.1"`` -> ``(1, 14, 1)``; pre-release and build parts are left out."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", re.split(r"[-+]", version.lstrip("v"))[0]))
