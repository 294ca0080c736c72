"""Gate on the EKS cluster itself.

Arguments: ``cluster`` (its name) and ``version`` (the Kubernetes version that the spec was written for; optional).
"""

from __future__ import annotations

from enum import StrEnum

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.queries import AwsQuery, Query
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready


class ClusterStatus(StrEnum):
    """``status`` of an EKS cluster (Amazon EKS API, type Cluster)."""

    CREATING = "CREATING"
    ACTIVE = "ACTIVE"
    UPDATING = "UPDATING"
    PENDING = "PENDING"
    DELETING = "DELETING"
    FAILED = "FAILED"


_ON_THE_WAY = frozenset({ClusterStatus.CREATING, ClusterStatus.UPDATING, ClusterStatus.PENDING})


def _queries(args: Args) -> tuple[Query, ...]:
    return (
        AwsQuery(
            key="cluster",
            service="eks",
            operation="describe_cluster",
            params={"name": args["cluster"]},
            path="cluster",
            absent_codes=("ResourceNotFoundException",),
        ),
    )


def _judge(snapshot: Snapshot, args: Args) -> Verdict:
    name = args["cluster"]
    if not snapshot["cluster"]:
        return failed(
            "ClusterNotFound",
            f"there is no EKS cluster {name!r} here; check cluster.name, aws.region and the account of aws.connection",
        )
    cluster = snapshot["cluster"][0]
    text = str(cluster.get("status", ""))
    try:
        status = ClusterStatus(text)
    except ValueError:
        return progressing("ClusterStatusUnknown", f"EKS cluster {name} has status {text!r}, which is not known here")
    issues = "; ".join(
        f"{issue.get('code')}: {issue.get('message')}" for issue in (cluster.get("health") or {}).get("issues") or []
    )
    if status is ClusterStatus.ACTIVE:
        if not cluster.get("endpoint"):
            return progressing("NoEndpoint", f"EKS cluster {name} is ACTIVE but shows no API endpoint yet")
        version, wanted = str(cluster.get("version", "")), str(args.get("version") or "")
        if wanted and version and version != wanted:
            return failed(
                "ClusterVersionDiffers",
                f"EKS cluster {name} runs Kubernetes {version}, the spec says {wanted}; correct cluster.version: which "
                "Karpenter and AMI fit is judged by it",
            )
        return ready("ClusterActive", f"EKS cluster {name} is ACTIVE", version=version)
    if status in _ON_THE_WAY:
        return progressing(f"Cluster{text.capitalize()}", f"EKS cluster {name} is {text}")
    detail = f" ({issues})" if issues else ""
    return failed(
        f"Cluster{text.capitalize()}",
        f"EKS cluster {name} is {text}{detail}; an ACTIVE cluster is needed: repair it or name another one",
    )


CLUSTER_ACTIVE = Gate("cluster_active", _queries, _judge)
