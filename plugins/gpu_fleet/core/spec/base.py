"""What all models of the cluster spec share: strictness, and texts that must match a pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

#: Longest text of any field; the longest value that Kubernetes or AWS accept in one of them is a path.
LONGEST_TEXT = 4096
#: Levels of a free-form field (Helm values, a notifier's arguments); not less than the bound of the file itself.
_DEEPEST = 40


class SpecModel(BaseModel):
    """Base of every part of the spec: frozen, unknown keys refused, keys in camelCase as in Kubernetes.

    Strict: a value of one type is never converted to another (``force: 1`` is not true, ``"2"`` is not a number).
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
        """Convert lists of YAML and JSON to the tuples of frozen models: the only conversion that loses nothing."""
        if isinstance(value, Mapping):
            return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return value

    #: Fields whose text has lines; what it may contain is checked where its form is known.
    MULTILINE: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text with line breaks or other invisible characters, and values that JSON cannot represent."""
        if info.field_name in cls.MULTILINE:
            return value
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
    :raises ValueError: for text with invisible parts: line breaks, control characters, outer spaces.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"has {len(text)} characters; write at most {LONGEST_TEXT}")
    if text != text.strip():
        raise ValueError(f"{text!r} begins or ends with a space or line break; remove it")
    hidden = next((character for character in text if not character.isprintable()), None)
    if hidden is not None:
        raise ValueError(f"{text[:80]!r} contains the invisible character {hidden!r}; remove it")


def _json_only(value: Any, depth: int = 0) -> None:
    """
    :raises ValueError: for what JSON or Helm cannot represent: NaN, infinity, dates, keys that are not text.
    """
    if depth > _DEEPEST:
        raise ValueError(f"is nested deeper than {_DEEPEST} levels; flatten it")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text; put it in quotes")
            _json_only(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _json_only(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number that JSON or Helm can represent; write a finite number")
    elif value is not None and not isinstance(value, str | int):
        raise ValueError(f"{value!r} is a {type(value).__name__}; put it in quotes")


@dataclass(frozen=True)
class Pattern:
    """Annotation of a text that must match completely; unlike pydantic's ``pattern`` it says in words what to write.

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


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("is empty; give at least one entry")
    return value


#: For tuples that need an entry: unlike ``min_length`` it says nothing when an entry itself is wrong.
NotEmpty = AfterValidator(_not_empty)
