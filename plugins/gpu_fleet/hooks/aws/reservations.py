"""The capacity reservations of a pool, as EC2 describes them now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.reservations.reservation import Reservation, each_once, queries
from gpu_fleet.core.spec.capacity import ReservationTerm
from gpu_fleet.hooks.aws.session import aws_session

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool


def reservations_of(spec: ClusterSpec, pool: NodePool) -> tuple[Reservation, ...]:
    """Those that the cluster file chooses for the pool, in any state, by id.

    :raises GpuFleetError: EC2 did not answer, or the permission ``ec2:DescribeCapacityReservations`` is missing.
    """
    return _look(spec, spec.reservations(pool))


def reservation(spec: ClusterSpec, identifier: str) -> Reservation | None:
    """One by its id; ``None`` if there is none (any more).

    :raises GpuFleetError: as above.
    """
    return next(iter(_look(spec, [ReservationTerm(id=identifier)])), None)


def _look(spec: ClusterSpec, terms: Sequence[ReservationTerm]) -> tuple[Reservation, ...]:
    aws = aws_session(spec.aws.connection, spec.aws.region)
    items = []
    for query in queries("reservations", terms):
        try:
            items += aws.paginate(query.service, query.operation, query.path, **query.params)
        except GpuFleetError as error:
            if error.reason not in query.absent_codes:
                raise
    return each_once(items)
