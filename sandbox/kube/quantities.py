"""Kubernetes quantities as integers of thousandths (``"250m"`` is 250, ``"2"`` is 2000), and what a pod asks for.

Thousandths because CPU is counted in them, integers because sums of requests must compare exactly
(kubernetes/apimachinery ``pkg/api/resource``).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

Resources = dict[str, int]

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15, "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30, "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50, "Ei": Decimal(2) ** 60,
}  # fmt: skip
_QUANTITY = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?$")


def parse(quantity: str | int | float) -> int:
    """Thousandths of a quantity, rounded up as the API does.

    :raises ValueError: if it is none.
    """
    match = _QUANTITY.match(str(quantity).strip())
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity")
    value = Decimal(match[1]) * _SUFFIXES[match[2] or ""] * 1000
    return int(value.to_integral_value(rounding="ROUND_CEILING"))


def render(resource: str, thousandths: int) -> str:
    """The usual spelling: ``3920m`` of CPU, ``15348Mi`` of memory, whole numbers for all else."""
    if resource == "cpu":
        return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)
    whole = thousandths // 1000
    if resource in ("memory", "ephemeral-storage"):
        for suffix, size in (("Mi", 2**20), ("Ki", 2**10)):
            if whole and whole % size == 0:
                return f"{whole // size}{suffix}"
    return str(whole)


def parse_all(resources: dict[str, Any] | None) -> Resources:
    return {name: parse(value) for name, value in (resources or {}).items()}


def render_all(resources: Resources) -> dict[str, str]:
    return {name: render(name, value) for name, value in sorted(resources.items())}


def add(left: Resources, right: Resources) -> Resources:
    total = dict(left)
    for name, value in right.items():
        total[name] = total.get(name, 0) + value
    return total


def largest(left: Resources, right: Resources) -> Resources:
    return {name: max(left.get(name, 0), right.get(name, 0)) for name in {*left, *right}}


def fits(wanted: Resources, free: Resources) -> bool:
    """Whether every wanted resource is there in full; a resource that is missing counts as 0."""
    return all(value <= free.get(name, 0) for name, value in wanted.items() if value > 0)


def container_requests(container: dict[str, Any]) -> Resources:
    """A container's requests; a limit without a request is one (API defaulting)."""
    resources = container.get("resources") or {}
    return parse_all({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def pod_requests(pod: dict[str, Any]) -> Resources:
    """What the scheduler counts for a pod, its own slot among ``pods`` included.

    Containers and sidecars run together; an ordinary init container runs alone beside the sidecars before it
    (kubernetes/component-helpers ``resource/helpers.go``).
    """
    spec = pod["spec"]
    together: Resources = {}
    for container in spec.get("containers") or []:
        together = add(together, container_requests(container))
    sidecars: Resources = {}
    peak: Resources = {}
    for container in spec.get("initContainers") or []:
        requests = container_requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars = add(sidecars, requests)
            requests = {}
        peak = largest(peak, add(sidecars, requests))
    total = largest(add(together, sidecars), peak)
    return add(add(total, parse_all(spec.get("overhead"))), {"pods": 1000})
