"""Why instances that were launched do not become nodes: what EKS says of their role, looked at once from the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpu_fleet.core.errors import GateRefused, GpuFleetError

if TYPE_CHECKING:
    from gpu_fleet.operators.pool import PoolOperator

#: The node role has no access entry, or one of a type with which no node joins.
NOT_ADMITTED = "NodeRoleNotAdmitted"


def not_admitted(operator: PoolOperator, error: GpuFleetError) -> GateRefused | None:
    """The error that names the missing access entry; ``None`` if it is there, or nobody can tell.

    Preflight has looked at it before the run changed anything; it may have been deleted since. An instance that waits
    goes on trying and joins once the entry is there.

    :param error: how the wait for the node ended.
    """
    from gpu_fleet.core.preflight.prerequisites import State, access_entry
    from gpu_fleet.hooks.aws import aws_session
    from gpu_fleet.operators.preflight.prerequisites import Look

    if not operator.this_pool.manage:
        return None  # its role is in an EC2NodeClass of others
    spec = operator.spec
    found = access_entry(spec, Look(operator, aws_session(spec.aws.connection, spec.aws.region)).admission())
    if found.state is State.MET:
        return None
    if found.state is State.UNKNOWN:
        operator.log.warning("%s", found)
        return None
    waits = error.message.partition(";")[0]
    return GateRefused(
        f"{waits}; the cause: {found}; then clear this task: the instance goes on trying to join", reason=NOT_ADMITTED
    )
