"""Instance types and prices from the generated tables of aws/karpenter-provider-aws.

Its pages list every type with the labels of its nodes, which are figures of ``DescribeInstanceTypes``; what of the
network interfaces decides the places for pods is in a table of its own. EC2 forgets old types: pages of earlier
versions still have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.catalogue.checkout import Checkout

NAME = "aws/karpenter-provider-aws"
#: The newest first: a type is taken from the first page that lists it.
PAGES = (
    "website/content/en/v1.14/reference/instance-types.md",
    "website/content/en/v1.12/reference/instance-types.md",
    "website/content/en/v1.0/reference/instance-types.md",
)
LIMITS = "pkg/providers/instancetype/zz_generated.vpclimits.go"
PRICES = (
    "pkg/providers/pricing/zz_generated.pricing_aws.go",
    "pkg/providers/pricing/zz_generated.pricing_aws_us_gov.go",
)

_HEADING = re.compile(r"^### `([^`]+)`$", re.MULTILINE)
_ROW = re.compile(r"^ ?\|([^|]+)\|([^|]*)\|$", re.MULTILINE)
_LIMIT = re.compile(r'^\t"([^"]+)": \{$(.*?)^\t\},$', re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(\w+):\s+(\d+)")
_REGION = re.compile(r'^\t"([a-z0-9-]+)": \{$(.*?)^\t\},$', re.MULTILINE | re.DOTALL)
_PRICE = re.compile(r'"([a-z0-9-]+\.[a-z0-9-]+)": ([0-9.]+)')
_GENERATED = re.compile(r"generated at (\d{4}-\d{2}-\d{2})T")
_LABEL = "karpenter.k8s.aws/instance-"


def types(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """The types with NVIDIA GPUs: figures, and the page that they are from."""
    places = dict(_pod_places(checkout.text(LIMITS)))
    found: dict[str, dict[str, Any]] = {}
    for page in PAGES:
        for name, rows in _sections(checkout.text(page)):
            if rows.get(f"{_LABEL}gpu-manufacturer") == "nvidia" and name not in found:
                found[name] = {**_entry(rows), "podPlaces": places.get(name), "from": page}
    return found


def _sections(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    parts = _HEADING.split(page)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        yield name, {key.strip(): value.strip() for key, value in _ROW.findall(text)}


def _entry(rows: dict[str, str]) -> dict[str, Any]:
    def number(key: str) -> int | None:
        value = rows.get(f"{_LABEL}{key}")
        return int(value) if value else None

    ebs = number("ebs-bandwidth")
    return {
        "gpus": number("gpu-count"),
        "gpu": rows[f"{_LABEL}gpu-name"],
        "gpuMemoryMiB": number("gpu-memory"),
        "vcpus": number("cpu"),
        "memoryMiB": number("memory"),
        "architecture": rows["kubernetes.io/arch"],
        "nvmeGB": number("local-nvme") or 0,
        "efa": int(rows.get("vpc.amazonaws.com/efa", "0")),
        "networkMbps": number("network-bandwidth"),
        # pkg/providers/instancetype/types.go of v1.14.1: MaximumBandwidthInMbps.
        "ebsMaximumMBps": None if ebs is None else ebs / 8,
    }


def _pod_places(table: str) -> Iterator[tuple[str, int]]:
    """Interfaces of the default card × (IPv4 addresses − 1) + 2, as ``ENILimitedPods`` counts."""
    for name, text in _LIMIT.findall(table):
        cards = [dict(_NUMBER.findall(card)) for card in text.split("NetworkCards:")[1].split("},")]
        limits = dict(_NUMBER.findall(text.split("NetworkCards:")[0]))
        card = next(
            (card for card in cards if card.get("NetworkCardIndex") == limits["DefaultNetworkCardIndex"]), limits
        )
        interfaces = int(card.get("MaximumNetworkInterfaces") or limits["Interface"])
        yield name, interfaces * (int(limits["IPv4PerInterface"]) - 1) + 2


def prices(checkout: Checkout) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Region -> day of the prices, file, and USD per hour by type. China's are left out: they are in CNY."""
    found = {}
    for path in PRICES:
        text = checkout.text(path)
        generated = _GENERATED.search(text)
        if generated is None:
            raise ValueError(f"{path} does not say when it was generated")
        for region, table in _REGION.findall(text):
            found[region] = (generated[1], path, {name: float(usd) for name, usd in _PRICE.findall(table)})
    return found
