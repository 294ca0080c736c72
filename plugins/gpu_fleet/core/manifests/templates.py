"""Templates that core completes: plain YAML documents, read by an injected function, because core does no I/O.

Each task of the package injects the reader of ``include`` when it is prepared (``operators/base.py``); no import does.
Every call returns a copy, so completing a template does not change it for the next caller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Reader = Callable[[str], dict[str, Any]]

_reader: Reader | None = None
_cache: dict[str, dict[str, Any]] = {}


def use(reader: Reader) -> None:
    """Let templates be read by this function: name (``manifests/node-pool``) -> document."""
    global _reader
    _reader = reader
    _cache.clear()


def template(name: str) -> dict[str, Any]:
    """A fresh copy of a template.

    :raises RuntimeError: if no reader was injected.
    """
    if name not in _cache:
        if _reader is None:
            raise RuntimeError("no reader of templates: call gpu_fleet.core.manifests.templates.use() first")
        _cache[name] = _reader(name)
    return copy.deepcopy(_cache[name])
