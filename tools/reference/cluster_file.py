"""docs/reference/cluster-file.md: every field of a cluster file, from the models of ``gpu_fleet.core.spec``."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gpu_fleet.core.spec import ClusterSpec
from tools.reference.markup import markdown, page, table

_INTRODUCTION = """\
One YAML file per cluster, `include/clusters/<name>.yaml`. Only the fields without a default are required. Unknown
keys are refused. Durations are written in Go syntax, without days: `90s`, `15m`, `720h`.

This page lists the fields. `python -m gpu_fleet validate` also checks the rules between them, and
[include/schema/cluster.schema.json](../../include/schema/cluster.schema.json) lets editors complete and check a
file while you type. [Cluster files](../guides/cluster-files.md) says how a file is read, and
[include/clusters/demo.yaml](../../include/clusters/demo.yaml) is a complete example."""


def document() -> str:
    return page("Cluster file", "the fields in plugins/gpu_fleet/core/spec", _INTRODUCTION, *_sections(ClusterSpec, ""))


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """This model's section, then those of the models in its fields, in the order of the fields."""
    yield _section(model, path)
    for name, info in model.model_fields.items():
        inner = f"{path}.{info.alias or name}" if path else str(info.alias or name)
        for part, is_list in _models(info.annotation):
            # Of several (a discriminated union) each has a section of its own, distinguished by its first field.
            suffix = "[]" if is_list else ""
            yield from _sections(part, f"{inner}{suffix}")


def _section(model: type[BaseModel], path: str) -> str:
    choice = _choice(model)
    title = f"`{path}`{f', {choice}' if choice else ''}" if path else "The file"
    text = markdown(" ".join((model.__doc__ or "").split()))
    rows = [_row(name, info) for name, info in model.model_fields.items()]
    return f"## {title}\n\n{text}\n\n{table(('field', 'type', 'default', 'meaning'), rows)}"


def _choice(model: type[BaseModel]) -> str:
    """``mode: mps`` of a member of a discriminated union."""
    info = model.model_fields.get("mode")
    values = typing.get_args(info.annotation) if info is not None else ()
    return f"`mode: {values[0]}`" if len(values) == 1 else ""


def _row(name: str, info: FieldInfo) -> tuple[str, str, str, str]:
    limits = _limits(info)
    kind = _kind(info.annotation)
    text = markdown(info.description or _first_line(info.annotation))
    return f"`{info.alias or name}`", f"{kind}{f' ({limits})' if limits else ''}", _default(info), text


def _first_line(annotation: Any) -> str:
    """What a field without a description holds, from its model."""
    found = [model for model, _ in _models(annotation)]
    return markdown(" ".join((found[0].__doc__ or "").split()).split(". ")[0].rstrip(".") + ".") if found else ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    if info.default_factory is not None:
        made = info.default_factory()  # type: ignore[call-arg]
        one_of_several = len(list(_models(info.annotation))) > 1
        return "its fields' defaults" if isinstance(made, BaseModel) and not one_of_several else f"`{_text(made)}`"
    return "" if info.default is PydanticUndefined else f"`{_text(info.default)}`"


def _text(value: Any) -> str:
    """A default as it would be written in the file."""
    return json.dumps(_plain(value), ensure_ascii=False).strip('"') if value is not None else "null"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=False)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)


def _limits(info: FieldInfo) -> str:
    """Bounds of a number, length of a list or text."""
    found: dict[str, Any] = {}
    for item in info.metadata:
        for bound in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(item, bound, None) is not None:
                found[bound] = getattr(item, bound)
    words = []
    if "ge" in found and "le" in found:
        words.append(f"{found.pop('ge')} to {found.pop('le')}")
    signs = {"ge": "at least ", "gt": "more than ", "le": "at most ", "lt": "less than ", "max_length": "at most "}
    words += [f"{signs[bound]}{value}" for bound, value in found.items() if bound in signs]
    return ", ".join(words)


def _models(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models in a type, each with whether it is an item of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, in_list
        return
    origin = typing.get_origin(annotation)
    if origin is dict or origin is typing.Literal:
        return
    inner = in_list or origin is tuple
    for argument in typing.get_args(annotation):
        yield from _models(argument, inner)


_WORDS: dict[type, str] = {bool: "true or false", int: "number", float: "number", str: "text", type(None): "null"}


def _kind(annotation: Any) -> str:
    """A type in words for a person who writes YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = list(dict.fromkeys(_kind(argument) for argument in arguments))
        return " or ".join(kinds)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if isinstance(annotation, type):
        for base in annotation.__mro__:
            if base.__name__ in ("Duration", "Seconds"):
                return "duration or `Never`" if annotation.__name__ == "DurationOrNever" else "duration"
        return next((word for kind, word in _WORDS.items() if issubclass(annotation, kind)), annotation.__name__)
    return str(annotation)
