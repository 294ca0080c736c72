"""Looks up the capacity reservations of the pools; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.preflight.facts import Facts, Unseen
from gpu_fleet.core.preflight.reservations import Found
from gpu_fleet.core.reservations.reservation import ABSENT, Reservation, each_once, queries
from gpu_fleet.operators.preflight.asking import Asking

if TYPE_CHECKING:
    from gpu_fleet.core.queries import AwsQuery
    from gpu_fleet.core.spec import ClusterSpec


class ReservationLook(Asking):
    """One call per term of a pool with reserved capacity, and one for the account; none without such a pool."""

    def __init__(self, beside: Asking) -> None:
        """
        :param beside: whose session is used, and what it has found to be silent.
        """
        super().__init__(beside._aws)
        self._silent = beside._silent

    def found(self, spec: ClusterSpec, facts: Facts) -> Found:
        """
        :param facts: what was looked up already.
        """
        pools = {pool.name: spec.reservations(pool) for pool in spec.node_pools if pool.manage}
        terms = {name: each for name, each in pools.items() if each}
        if not terms:
            return Found()
        subnets, nodes = facts.subnets, facts.nodes
        return Found(
            by_pool={name: [self._of(query) for query in queries(name, each)] for name, each in sorted(terms.items())},
            zones=None
            if subnets is None or isinstance(subnets, Unseen)
            else {str(subnet.get("AvailabilityZone", "")) for subnet in subnets},
            nodes=None if nodes is None or isinstance(nodes, Unseen) else nodes,
            account=self._account(),
        )

    def _of(self, query: AwsQuery) -> Sequence[Reservation] | Unseen:
        def ask() -> list[dict[str, object]]:
            try:
                return self._aws.paginate(query.service, query.operation, query.path, **query.params)
            except GpuFleetError as error:
                if error.reason in ABSENT:
                    return []
                raise

        items = self._looked("ec2", "ec2:DescribeCapacityReservations", ask)
        return items if isinstance(items, Unseen) else each_once(items)

    def _account(self) -> str:
        """Of the identity; empty if it cannot be asked."""
        found = self._ask("sts", "GetCallerIdentity", "get_caller_identity")
        return "" if isinstance(found, Unseen) else str(found.get("Account") or "")
