"""Cluster specs for tests: the demo cluster, with parts replaced."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from gpu_fleet.core.manifests import templates
from gpu_fleet.core.spec import ClusterSpec, parse_cluster
from gpu_fleet.hooks.files.templates import read_template

REPOSITORY = Path(__file__).resolve().parents[3]
DEMO_FILE = REPOSITORY / "include" / "clusters" / "demo.yaml"

# As each task does it (operators/base.py).
templates.use(read_template)


@lru_cache(maxsize=1)
def _demo() -> dict[str, Any]:
    value = yaml.safe_load(DEMO_FILE.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def demo_mapping(**changes: Any) -> dict[str, Any]:
    """The demo cluster file as a mapping.

    :param changes: ``nodePools__0__wantedNodes=3`` sets that path; the value ``...`` removes it.
    """
    value = copy.deepcopy(_demo())
    for path, new in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        target: Any = value
        for part in parents:
            if isinstance(part, str) and part not in target:
                target[part] = {}
            target = target[part]
        if new is ...:
            del target[last]
        else:
            target[last] = new
    return value


def demo_spec(**changes: Any) -> ClusterSpec:
    """The demo cluster's spec with changes, see :func:`demo_mapping`."""
    return parse_cluster(demo_mapping(**changes))
