"""How a pool gets its capacity, and keeps it: fields ``capacity`` and ``capacityReservations`` of a pool."""

from __future__ import annotations

from gpu_fleet.core.spec.capacity.headroom import HeadroomWindow
from gpu_fleet.core.spec.capacity.hold import Capacity
from gpu_fleet.core.spec.capacity.ladder import Rung
from gpu_fleet.core.spec.capacity.reservations import MOST_TERMS, CapacityBlock, ReservationTerm

__all__ = ["MOST_TERMS", "Capacity", "CapacityBlock", "HeadroomWindow", "ReservationTerm", "Rung"]
