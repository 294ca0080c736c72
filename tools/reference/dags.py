"""docs/reference/dags.md: the DAGs' docstrings, which are also their ``doc_md``, and their Params."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

from tools.reference.markup import ROOT, page, table

_INTRODUCTION = """\
Each DAG exists once per cluster file, as `<name>.<cluster>`. A Param is set in the form *Trigger DAG*, or as `conf`
over the REST API."""


def document() -> str:
    files = sorted((ROOT / "dags").glob("*.py"))
    return page("DAGs and Params", "the docstrings and Params in dags/", _INTRODUCTION, *map(_section, files))


def _section(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    body = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.strip().splitlines())
    rows = [
        (f"`{name}`", _kind(schema), f"`{json.dumps(value)}`", meaning)
        for name, value, schema, meaning in _params(path)
    ]
    params = table(("Param", "type", "default", "meaning"), rows)
    return f"{body}\n\n{params}\n\n`{path.stem}.<cluster>`, built by `{path.relative_to(ROOT)}`."


def _params(path: Path) -> list[tuple[str, Any, dict[str, Any], str]]:
    """Name, default, JSON schema and description of each Param, of the DAG for the demo cluster."""
    from gpu_fleet.hooks.files.clusters import load_fleet

    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params = module.build(load_fleet(ROOT / "include" / "clusters")["demo"]).params
    found = [(name, params.get_param(name)) for name in params]
    return [(name, param.value, param.schema, str(param.description or "")) for name, param in found]


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kinds: list[str] = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    listed = "list of the cluster's pools" if "enum" in schema.get("items", {}) else "list of texts"
    words = {"array": listed, "string": "text", "boolean": "true or false", "integer": "whole number"}
    return " or ".join(words.get(kind, kind) for kind in kinds if kind != "null")
