"""``instance_types.json``: one line per type with NVIDIA GPUs, with its sources."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.catalogue import documented, ec2, karpenter
from tools.catalogue.checkout import Checkout

FILE = Path(__file__).resolve().parents[2] / "plugins/gpu_fleet/core/catalogue/instance_types.json"

#: Families of earlier GPUs are no longer offered to new clusters: present drivers do not support them.
_FAMILY = re.compile(r"(g[4-9]|gr[4-9]|p[3-9])")
_KEYS = (
    "gpus", "gpu", "gpuMemoryMiB", "vcpus", "memoryMiB", "architecture", "podPlaces", "nvmeGB", "efa", "networkMbps",
    "ebsBaselineMBps", "ebsMaximumMBps",
)  # fmt: skip


def from_karpenter(checkout: Checkout, answers: Path | None, named: str) -> dict[str, Any]:
    """The file's content by Karpenter's tables.

    :param answers: recorded descriptions of EC2; only the baseline throughput to EBS is taken from them, which
        Karpenter's tables lack.
    :param named: what these are, for the file.
    """
    types = {**documented.TYPES, **karpenter.types(checkout)}
    sources = {
        "karpenter": checkout.source(files=", ".join((*karpenter.PAGES, karpenter.LIMITS))),
        "aws": {"page": documented.PAGE},
    }
    recorded = ec2.nvidia(ec2.recorded(answers).values()) if answers is not None else {}
    for name, entry in types.items():
        entry.setdefault("ebsBaselineMBps", recorded.get(name, {}).get("ebsBaselineMBps"))
    if answers is not None:
        sources["ebsBaselineMBps"] = {"file": named}
    return _document(checkout.date, sources, types)


def from_ec2(entries: list[dict[str, Any]], region: str, date: str) -> dict[str, Any]:
    """The file's content by EC2's own answer."""
    types = {**documented.TYPES, **ec2.nvidia(entries)}
    return _document(date, {"ec2": {"call": "DescribeInstanceTypes", "region": region}}, types)


def _document(date: str, sources: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    kept = {name: entry for name, entry in types.items() if _FAMILY.match(name)}
    return {
        "date": date,
        "sources": dict(sources),
        "types": {name: {key: kept[name].get(key) for key in _KEYS} for name in sorted(kept, key=_order)},
    }


def _order(name: str) -> tuple[str, int, str]:
    family, _, size = name.partition(".")
    digits = re.match(r"\d*", size)
    return family, int(digits[0] or 0) if digits else 0, size


def written(document: Mapping[str, Any]) -> str:
    """JSON with a line per type, so that a change shows what changed."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in document["types"].items())
    head = json.dumps({"date": document["date"], "sources": document["sources"]}, indent=2).removesuffix("\n}")
    return f'{head},\n  "types": {{\n{lines}\n  }}\n}}\n'
