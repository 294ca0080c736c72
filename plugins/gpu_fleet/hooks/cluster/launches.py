"""When EC2 launched instances."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.aws import aws_session

#: Values that one filter of a Describe call may have (EC2 API reference, 'Filtering your resources').
_FILTER_VALUES = 200


def launch_times(spec: ClusterSpec, instances: Iterable[str]) -> dict[str, float]:
    """Instance id -> epoch seconds of EC2's ``LaunchTime``; instances that EC2 does not know (any more) are left out.

    :raises GpuFleetError: EC2 does not answer.
    """
    wanted = sorted({instance for instance in instances if instance.startswith("i-")})
    session, found = aws_session(spec.aws.connection, spec.region), {}
    for start in range(0, len(wanted), _FILTER_VALUES):
        # By filter: an id that is gone would make a request by ids fail as a whole.
        of = {"Name": "instance-id", "Values": wanted[start : start + _FILTER_VALUES]}
        for instance in session.paginate("ec2", "describe_instances", "Reservations.Instances", Filters=[of]):
            if isinstance(moment := instance.get("LaunchTime"), datetime):
                found[str(instance["InstanceId"])] = moment.timestamp()
    return found
