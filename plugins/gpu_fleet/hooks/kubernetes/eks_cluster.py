"""Where an EKS cluster is and whom to trust there, as EKS says."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import ApiUnavailable, NotFound, SpecError
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.kubernetes.credentials import Endpoint, trusting
from gpu_fleet.hooks.kubernetes.eks_token import EksCredentials

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.access import ClusterAccess


def eks_endpoint(access: ClusterAccess) -> Endpoint:
    """
    :raises NotFound: there is no such cluster.
    :raises ApiUnavailable: it has no endpoint yet.
    """
    if not access.cluster_name:
        raise SpecError("access mode 'eks' needs the cluster's name", field="cluster.name", remedy="set it")
    aws = aws_session(access.aws_conn_id, access.region)
    try:
        cluster = aws.call("eks", "describe_cluster", name=access.cluster_name)["cluster"]
    except NotFound as error:
        raise NotFound(
            f"there is no EKS cluster {access.cluster_name!r} in {aws.region} for {aws.label}; "
            "check cluster.name, aws.region and the account of the connection",
            reason="ClusterNotFound",
        ) from error
    server = cluster.get("endpoint")
    authority = (cluster.get("certificateAuthority") or {}).get("data")
    if not server or not authority:
        raise ApiUnavailable(
            f"EKS cluster {access.cluster_name!r} is {cluster.get('status')} and has no API endpoint yet",
            reason="ClusterNotActive",
        )
    context = trusting(base64.b64decode(authority).decode())
    return Endpoint(server.rstrip("/"), context, EksCredentials(aws, access.cluster_name))


def eks_fingerprint(access: ClusterAccess) -> str:
    """A digest of the Airflow connection; see :meth:`AwsSession.fingerprint`."""
    return aws_session(access.aws_conn_id, access.region).fingerprint()
