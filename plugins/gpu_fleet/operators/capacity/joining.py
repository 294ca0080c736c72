"""Why launched instances do not become nodes: EKS' access entry of their role, looked up once from the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.errors import GateRefused, GpuFleetError
from gpu_fleet.core.preflight.facts import State
from gpu_fleet.core.preflight.node_prerequisites import access_entry
from gpu_fleet.operators.preflight.look import Look

if TYPE_CHECKING:
    from gpu_fleet.operators.pool import PoolOperator

#: The node role has no access entry, or one of a type with which a node cannot join.
NOT_ADMITTED = "NodeRoleNotAdmitted"


def not_admitted(operator: PoolOperator, error: GpuFleetError) -> GateRefused | None:
    """The error that names the missing access entry; ``None`` if it exists, or could not be looked up.

    Preflight has looked at it before the run changed anything; it may have been deleted since. An instance keeps trying
    and joins once the entry exists.

    :param error: how the wait for the node ended.
    """
    from gpu_fleet.hooks.aws import aws_session

    if not operator.this_pool.manage:
        return None  # Its role is in an EC2NodeClass of another owner.
    spec = operator.spec
    found = access_entry(spec, Look(operator, aws_session(spec.aws.connection, spec.aws.region)).admission())
    if found.state is State.MET:
        return None
    if found.state is State.UNKNOWN:
        operator.log.warning("%s", found)
        return None
    waits = error.message.partition(";")[0]
    return GateRefused(
        f"{waits}; the cause: {found}; then clear this task: the instance keeps trying to join", reason=NOT_ADMITTED
    )
