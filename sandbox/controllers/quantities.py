"""Kubernetes quantities (``100m``, ``1Gi``, ``2``) as integers of thousandths."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sandbox.kube import quantities

Resources = dict[str, int]


@lru_cache(maxsize=4096)
def _parse(text: str) -> int:
    return quantities.parse(text)


def parse(quantity: str | int | float) -> int:
    """Thousandths of the unit, rounded up; cached, since a round of the scheduler reads the same texts often.

    :raises ValueError: if it is not a quantity.
    """
    return _parse(str(quantity))


def render(thousandths: int) -> str:
    """The shortest decimal form: ``2``, ``1500m``."""
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def parse_all(resources: dict[str, Any] | None) -> Resources:
    return {name: parse(value) for name, value in (resources or {}).items()}


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
