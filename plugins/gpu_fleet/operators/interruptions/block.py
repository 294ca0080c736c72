"""The account of a Capacity Block at its end, for the report of the drain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.operators.base import FleetOperator


def ends_a_block(context: Mapping[str, Any]) -> bool:
    """Whether the run was booked for the end of a Capacity Block (``operators/reservations/booking.py``)."""
    params = context.get("params") or {}
    return bool(params.get("reservation") and params.get("until"))


def block_account(
    operator: FleetOperator, context: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """``{"block": instance hours}``; empty in a run that ends no block, and where EC2 does not know the block.

    :param nodes: rows of the report: the nodes that were there at the end.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.interruptions.request import DrainRequest
    from gpu_fleet.core.reservations.account import account_of
    from gpu_fleet.hooks.aws.reservations import reservation

    if not ends_a_block(context):
        return {}
    request = DrainRequest.of(context["params"])
    try:
        found = reservation(operator.spec, request.reservation)
    except GpuFleetError as error:
        # The drain is done; what it cost must not fail it.
        operator.log.warning("the hours of %s are not known: %s", request.reservation, error)
        return {}
    account = None if found is None else account_of(found, nodes, operator.kube.now())
    if account is None:
        return {}
    operator.log.info("%s: %.2f instance hours paid, %.2f not used", account.words, account.paid, account.unused)
    return {"block": account.to_json()}
