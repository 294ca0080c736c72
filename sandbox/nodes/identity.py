"""Which nodes EKS admits (by access entries) and which pods get AWS credentials (by pod identity or IRSA).

* A kubelet's token names the role of its instance profile. Without an access entry for it EKS answers 401, the Node
  object is never created, and the kubelet keeps trying (docs.aws.amazon.com/eks, 'Grant IAM users access to Kubernetes
  with EKS access entries'; kubernetes v1.35 ``pkg/kubelet/kubelet_node_status.go``, ``registerWithAPIServer``).
* A pod has AWS credentials if the pod identity webhook found an association of its ServiceAccount when the pod was
  *created*, or an annotation for IRSA (docs.aws.amazon.com/eks, 'Learn how EKS Pod Identity grants pods access to AWS
  services'; aws/amazon-eks-pod-identity-webhook). What comes later needs a new pod.

An endpoint that has no such API (moto alone, in tests of the nodes) lets everybody in. So does one that denies the
question (fault ``aws-denied``, which is about a user's permissions): the control plane needs none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.kube.client import Kube
from sandbox.nodes import nodeobject
from sandbox.nodes.runtime.processes import Simulated

Object = dict[str, Any]

NODE_ENTRY = "EC2_LINUX"
IRSA = "eks.amazonaws.com/role-arn"
#: What the AWS SDK takes credentials from (docs.aws.amazon.com/sdkref, 'Standardized credential providers').
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
#: What moto's own EKS answers to questions about this, and the codes of a denied request.
_NOT_TOLD = ("404", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


class Identity:
    def __init__(self, aws: Aws, kube: Kube, cluster: str) -> None:
        self._aws = aws
        self._kube = kube
        self._cluster = cluster

    async def joins(self, instance: Object) -> bool:
        """Whether the API server accepts the kubelet of this instance."""
        try:
            role = await self._role_of(instance)
            if not role:
                return True  # no profile: a test's node, or one that is admitted in another way
            answer = await self._aws.call("eks", "describe_access_entry", clusterName=self._cluster, principalArn=role)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ResourceNotFoundException":
                return False
            if code in (*_NOT_TOLD, "InvalidRequestException"):
                return True  # the last: mode CONFIG_MAP, in which aws-auth decides, and that is not simulated
            raise
        return bool(answer["accessEntry"]["type"] == NODE_ENTRY)

    async def _role_of(self, instance: Object) -> str:
        """ARN of the role of the instance profile; empty without one."""
        profile = instance.get("IamInstanceProfile") or await self._profile_of(instance["InstanceId"])
        if profile:
            name = str(profile["Arn"]).rpartition("/")[2]
            found = await self._aws.call("iam", "get_instance_profile", InstanceProfileName=name)
            roles = found["InstanceProfile"]["Roles"]
            return str(roles[0]["Arn"]) if roles else ""
        group = nodeobject.tags_of(instance).get(nodeobject.GROUP_TAG)
        if not group:
            return ""
        described = await self._aws.call("eks", "describe_nodegroup", clusterName=self._cluster, nodegroupName=group)
        return str(described["nodegroup"]["nodeRole"])

    async def _profile_of(self, instance_id: str) -> Object | None:
        """Moto gives an instance its profile a moment after it is running, so what was seen first may lack it."""
        wanted = [{"Name": "instance-id", "Values": [instance_id]}]
        answer = await self._aws.call("ec2", "describe_iam_instance_profile_associations", Filters=wanted)
        found = [each["IamInstanceProfile"] for each in answer["IamInstanceProfileAssociations"]]
        return found[0] if found else None

    async def has_credentials(self, pod: Object, env: dict[str, str]) -> bool:
        """Whether the AWS SDK in a container of this pod finds credentials."""
        if any(env.get(name) for name in CREDENTIALS):
            return True
        namespace = pod["metadata"]["namespace"]
        account = pod["spec"].get("serviceAccountName") or "default"
        found = await self._kube.find("ServiceAccount", account, namespace)
        if found is not None and (found["metadata"].get("annotations") or {}).get(IRSA):
            return True
        try:
            answer = await self._aws.call(
                "eks",
                "list_pod_identity_associations",
                clusterName=self._cluster,
                namespace=namespace,
                serviceAccount=account,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in _NOT_TOLD:
                return True
            raise
        made = datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
        return any([await self._older(each["associationId"], made) for each in answer["associations"]])

    async def _older(self, association: str, made: datetime) -> bool:
        """Whether the association existed when the pod was created; both times are in whole seconds."""
        answer = await self._aws.call(
            "eks", "describe_pod_identity_association", clusterName=self._cluster, associationId=association
        )
        created: datetime = answer["association"]["createdAt"]
        return created.astimezone(UTC).replace(microsecond=0) <= made


def without_credentials(env: dict[str, str]) -> Simulated:
    """Karpenter's controller without AWS credentials: it ends before it serves anything.

    A region comes from the environment, which the webhook would have set, or from the instance's metadata service,
    whose answers do not reach pods at the hop limit of 1 that AL2023's node groups have; without one it panics (status
    2). With one it cannot call EC2 and exits with 1 (aws/karpenter-provider-aws v1.14.1 ``pkg/operator/operator.go``,
    NewOperator).
    """
    if env.get("AWS_REGION"):
        code, text = 1, '{"level":"ERROR","logger":"controller","message":"ec2 api connectivity check failed"}'
    else:
        code, text = 2, "panic: unable to determine region from IMDS: operation error ec2imds: GetRegion"

    async def main(process: Simulated) -> int:
        process.log(text)
        return code

    return Simulated(main)
