"""Kubernetes quantities (``100m``, ``1Gi``, ``2``) as integers of thousandths."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Any

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal("1e3"), "M": Decimal("1e6"), "G": Decimal("1e9"), "T": Decimal("1e12"), "P": Decimal("1e15"),
    "E": Decimal("1e18"), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip

Resources = dict[str, int]


@lru_cache(maxsize=4096)
def _parse(text: str) -> int:
    number, suffix = text, ""
    for candidate in ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "n", "u", "m", "k", "M", "G", "T", "P", "E"):
        if text.endswith(candidate):
            number, suffix = text[: -len(candidate)], candidate
            break
    return int((Decimal(number) * _SUFFIXES[suffix] * 1000).to_integral_value(ROUND_CEILING))


def parse(quantity: str | int | float) -> int:
    """Thousandths of the unit, rounded up.

    :raises decimal.InvalidOperation: if it is not a quantity.
    """
    return _parse(str(quantity))


def render(thousandths: int) -> str:
    """The shortest decimal form: ``2``, ``1500m``."""
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def parse_all(quantities: dict[str, Any] | None) -> Resources:
    return {name: parse(value) for name, value in (quantities or {}).items()}


def add(total: Resources, more: Resources, sign: int = 1) -> None:
    """Add ``more`` into ``total`` in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + sign * value


def largest(many: Iterable[Resources]) -> Resources:
    result: Resources = {}
    for each in many:
        for name, value in each.items():
            result[name] = max(result.get(name, 0), value)
    return result


def pod_requests(spec: dict[str, Any], field: str = "requests") -> Resources:
    """What a pod needs: its containers together, or its largest init container if that is more, plus overhead.

    Source: kubernetes/kubernetes ``staging/src/k8s.io/component-helpers/resource/helpers.go``. Init containers that
    restart always (sidecars) count with the containers and with every later init container.
    """

    def of(container: dict[str, Any]) -> Resources:
        resources = container.get("resources") or {}
        wanted = parse_all(resources.get(field))
        if field == "requests":
            # A limit without a request is the request; servers default this, others may not have.
            for name, value in parse_all(resources.get("limits")).items():
                wanted.setdefault(name, value)
        return wanted

    total: Resources = {}
    for container in spec.get("containers") or []:
        add(total, of(container))
    sidecars: Resources = {}
    peaks: list[Resources] = []
    for container in spec.get("initContainers") or []:
        need = dict(sidecars)
        add(need, of(container))
        if container.get("restartPolicy") == "Always":
            sidecars = need
        else:
            peaks.append(need)
    add(total, sidecars)
    total = largest([total, *peaks])
    add(total, parse_all(spec.get("overhead")))
    return total
