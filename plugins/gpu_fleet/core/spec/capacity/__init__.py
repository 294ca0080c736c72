"""How a pool gets its capacity, and keeps it: field ``capacity`` of a pool."""

from __future__ import annotations

from gpu_fleet.core.spec.capacity.headroom import HeadroomWindow
from gpu_fleet.core.spec.capacity.hold import Capacity
from gpu_fleet.core.spec.capacity.ladder import Rung

__all__ = ["Capacity", "HeadroomWindow", "Rung"]
