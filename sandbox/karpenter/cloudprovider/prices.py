"""Prices by which Karpenter ranks instance types, US dollars an hour."""

from __future__ import annotations

from sandbox.aws.listprices import ON_DEMAND, SPOT_SHARE
from sandbox.aws.shapes import Shape

_PER_CPU, _PER_GIB = 0.034, 0.0035  # of a type that is not listed; after the m5 family


def price(shape: Shape, capacity_type: str) -> float:
    """US dollars an hour."""
    listed = ON_DEMAND.get(shape.name) or shape.cpu * _PER_CPU + shape.memory_mib / 1024 * _PER_GIB
    return listed * (SPOT_SHARE if capacity_type == "spot" else 1.0)
