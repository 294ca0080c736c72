"""The webhook of EKS that gives pods an AWS identity when they are created: by pod identity, or by IRSA.

It looks at a pod's ServiceAccount at that moment only, and has failurePolicy Ignore: what is created or annotated later
changes no existing pod. Variables and values are aws/amazon-eks-pod-identity-webhook's (``pkg/handler/handler.go``,
``pkg/containercredentials``); the token's volume is left out, since no process reads it. Pod identity is looked for
first, as there.
"""

from __future__ import annotations

from collections.abc import Callable

from sandbox.apiserver.jsontools import Obj

IRSA = "eks.amazonaws.com/role-arn"
#: (namespace, ServiceAccount) -> whether EKS has an association.
Associations = Callable[[str, str], bool]


def identify(pod: Obj, account: Obj | None, associated: Associations, region: str) -> None:
    """Add the variables to every container that lacks them, in place."""
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    annotations = ((account or {}).get("metadata") or {}).get("annotations") or {}
    where = {"AWS_STS_REGIONAL_ENDPOINTS": "regional", "AWS_DEFAULT_REGION": region, "AWS_REGION": region}
    if associated(namespace, spec.get("serviceAccountName") or "default"):
        secrets = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount"
        added = where | {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": f"{secrets}/eks-pod-identity-token",
        }
    elif role := annotations.get(IRSA):
        token = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"  # noqa: S105 - a path
        added = where | {"AWS_ROLE_ARN": role, "AWS_WEB_IDENTITY_TOKEN_FILE": token}
    else:
        return
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        known = {entry["name"] for entry in container.get("env") or []}
        new = [{"name": name, "value": value} for name, value in added.items() if name not in known]
        container["env"] = [*(container.get("env") or []), *new]


def nobody(namespace: str, account: str) -> bool:  # noqa: ARG001 - the signature of an :data:`Associations`
    """An API server without EKS around it."""
    return False
