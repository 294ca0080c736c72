"""A pod of Karpenter that ends at once because it was given no AWS credentials: recognized by the pod alone. Pure.

The controller calls EC2 before it serves anything and exits if it cannot (aws/karpenter-provider-aws v1.14.1
``pkg/operator/operator.go``, NewOperator). EKS's webhook writes credentials into a pod when it is created
(aws/amazon-eks-pod-identity-webhook ``pkg/handler/handler.go``), so a pod without them never gets any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.objects import Object, deleting, name_of

#: The variables from which the AWS SDK takes credentials; set by the webhook for pod identity and IRSA, or by a person.
CREDENTIALS = frozenset(
    {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
    }
)
#: A variable that the chart sets, by which the controller's container is recognized whatever its name is.
_CONTROLLER = "CLUSTER_NAME"
#: Restarts after which a controller counts as unable to start: a single one may be due to an API that did not answer.
_RESTARTS = 2


def without_credentials(pods: Iterable[Object]) -> str:
    """Which of Karpenter's pods keeps restarting without AWS credentials, with the remedy; empty if none.

    A container that takes its environment from another object (``envFrom``) may have them, and is not named.
    """
    for pod in pods:
        if deleting(pod):
            continue
        statuses = {str(item.get("name")): item for item in (pod.get("status") or {}).get("containerStatuses") or []}
        for container in (pod.get("spec") or {}).get("containers") or []:
            env = {str(item.get("name")): item for item in container.get("env") or []}
            code = _exit_code(statuses.get(str(container.get("name")), {}))
            if code and _CONTROLLER in env and not CREDENTIALS & env.keys() and not container.get("envFrom"):
                return _sentence(pod, str(container["name"]), code, str(env[_CONTROLLER].get("value") or "CLUSTER"))
    return ""


def _exit_code(status: Mapping[str, Any]) -> int:
    """The exit code of the container's last end; 0 if it ended well, or has restarted too rarely to be conclusive."""
    if int(status.get("restartCount") or 0) < _RESTARTS:
        return 0
    for state in (status.get("state"), status.get("lastState")):
        if ended := (state or {}).get("terminated"):
            return int(ended.get("exitCode") or 0)
    return 0


def _sentence(pod: Object, container: str, code: int, cluster: str) -> str:
    namespace = str((pod.get("metadata") or {}).get("namespace") or "default")
    account = str((pod.get("spec") or {}).get("serviceAccountName") or "default")
    return (
        f"Pod {namespace}/{name_of(pod)}, container {container} ended with status {code}, and the pod was given no AWS "
        f"credentials: when it was created, ServiceAccount {namespace}/{account} had neither a pod identity "
        "association nor an annotation for IRSA; aws eks create-pod-identity-association "
        f"--cluster-name {cluster} --namespace {namespace} --service-account {account} --role-arn ROLE, then "
        f"kubectl -n {namespace} rollout restart deployment: pods that stand get no credentials"
    )
