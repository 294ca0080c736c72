"""The AWS account as the package expects it: network, roles, queues, a cluster with a small system node group.

After docs.aws.amazon.com/eks (cluster, access entries) and karpenter.sh/docs/getting-started (roles, queue, tags).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from sandbox.aws.client import Aws
from sandbox.aws.permissions import SPOT_ROLE
from sandbox.settings import Settings

ADMIN_USER = "sandbox-admin"
SYSTEM_NODE_GROUP = "system"
#: Prefix of the role of managed node groups; Karpenter's nodes have one of their own.
GROUP_ROLE = "EKSNodeRole"
SYSTEM_INSTANCE_TYPE = "m5.large"
SYSTEM_NODES = 2
_NODE_POLICIES = (
    "AmazonEKS_CNI_Policy",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonSSMManagedInstanceCore",
)
_KARPENTER_QUEUE_RETENTION = "300"  # seconds; older interruptions are of no interest
_MAX_RECEIVES = "5"
#: EventBridge's rules: source and detail type of what each lets through.
RULES = {
    "ScheduledChangeRule": ("aws.health", "AWS Health Event"),
    "SpotInterruptionRule": ("aws.ec2", "EC2 Spot Instance Interruption Warning"),
    "RebalanceRule": ("aws.ec2", "EC2 Instance Rebalance Recommendation"),
    "InstanceStateChangeRule": ("aws.ec2", "EC2 Instance State-change Notification"),
    "CapacityReservationInterruptionRule": ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"),
}


@dataclass(frozen=True)
class Account:
    """What was made, by id."""

    access_key_id: str
    secret_access_key: str
    admin_arn: str
    vpc_id: str
    subnet_ids: list[str]
    security_group_id: str
    node_role_arn: str
    group_role_arn: str
    controller_role_arn: str
    karpenter_queue_url: str
    fleet_queue_url: str
    dead_letter_queue_url: str
    system_instance_ids: list[str]

    def seen_at(self, direct_url: str, url: str) -> Account:
        """The same account with the queues' addresses as users of ``url`` see them."""
        return replace(
            self,
            karpenter_queue_url=self.karpenter_queue_url.replace(direct_url, url),
            fleet_queue_url=self.fleet_queue_url.replace(direct_url, url),
            dead_letter_queue_url=self.dead_letter_queue_url.replace(direct_url, url),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the secret."""
        return {key: value for key, value in asdict(self).items() if key != "secret_access_key"}


async def prepare(aws: Aws, settings: Settings) -> Account:
    """Fills an empty moto. ``aws`` talks to moto itself, not to the shim, which knows no key before this."""
    key = await _admin(aws)
    vpc_id, subnet_ids, group_id = await _network(aws, settings)
    node_role, controller_role = await _roles(aws, settings)
    queues = await _queues(aws, settings)
    await _cluster(aws, settings, subnet_ids, group_id)
    group_role = await _role(aws, f"{GROUP_ROLE}-{settings.cluster_name}", "ec2.amazonaws.com")
    instances = await _system_nodes(aws, settings, subnet_ids, group_id, group_role)
    return Account(
        access_key_id=key["AccessKeyId"],
        secret_access_key=key["SecretAccessKey"],
        admin_arn=key["Arn"],
        vpc_id=vpc_id,
        subnet_ids=subnet_ids,
        security_group_id=group_id,
        node_role_arn=node_role,
        group_role_arn=group_role,
        controller_role_arn=controller_role,
        karpenter_queue_url=queues[0],
        fleet_queue_url=queues[1],
        dead_letter_queue_url=queues[2],
        system_instance_ids=instances,
    )


async def image_of(aws: Aws, settings: Settings, flavour: str, alias: str) -> str:
    """
    Image id for an alias of Amazon Linux 2023, by the public SSM parameters.

    :param flavour: ``standard`` or ``nvidia``.
    :param alias: ``al2023@v20260714`` or ``al2023@latest``.
    """
    version = settings.kubernetes_version
    base = f"/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/x86_64/{flavour}"
    release = alias.partition("@")[2]
    middle = "recommended" if release == "latest" else f"amazon-eks-node-al2023-x86_64-{flavour}-{version}-{release}"
    reply = await aws.call("ssm", "get_parameter", Name=f"{base}/{middle}/image_id")
    return str(reply["Parameter"]["Value"])


async def _admin(aws: Aws) -> dict[str, str]:
    """The person who owns the account and made the cluster."""
    user = await aws.call("iam", "create_user", UserName=ADMIN_USER)
    key = await aws.call("iam", "create_access_key", UserName=ADMIN_USER)
    return {**key["AccessKey"], "Arn": user["User"]["Arn"]}


async def _network(aws: Aws, settings: Settings) -> tuple[str, list[str], str]:
    discovery = {"Key": "karpenter.sh/discovery", "Value": settings.cluster_name}
    vpc = (await aws.call("ec2", "create_vpc", CidrBlock="10.0.0.0/16"))["Vpc"]["VpcId"]
    await aws.call(
        "ec2", "create_tags", Resources=[vpc], Tags=[{"Key": "Name", "Value": f"{settings.cluster_name}-vpc"}]
    )
    subnets = []
    for index, zone in enumerate("abc"):
        reply = await aws.call(
            "ec2",
            "create_subnet",
            VpcId=vpc,
            CidrBlock=f"10.0.{index * 16}.0/20",
            AvailabilityZone=f"{settings.region}{zone}",
            TagSpecifications=[{"ResourceType": "subnet", "Tags": [discovery]}],
        )
        subnets.append(reply["Subnet"]["SubnetId"])
    group = await aws.call(
        "ec2",
        "create_security_group",
        GroupName=f"eks-cluster-sg-{settings.cluster_name}",
        Description="EKS created security group applied to ENIs attached to the control plane and managed nodes.",
        VpcId=vpc,
        TagSpecifications=[
            {
                "ResourceType": "security-group",
                "Tags": [discovery, {"Key": f"kubernetes.io/cluster/{settings.cluster_name}", "Value": "owned"}],
            }
        ],
    )
    return vpc, subnets, group["GroupId"]


async def _roles(aws: Aws, settings: Settings) -> tuple[str, str]:
    node = await _role(aws, f"KarpenterNodeRole-{settings.cluster_name}", "ec2.amazonaws.com")
    for policy in _NODE_POLICIES:
        await aws.call(
            "iam",
            "put_role_policy",
            RoleName=f"KarpenterNodeRole-{settings.cluster_name}",
            PolicyName=policy,
            PolicyDocument=_policy([{"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"}]),
        )
    controller = await _role(aws, f"KarpenterControllerRole-{settings.cluster_name}", "pods.eks.amazonaws.com")
    await _role(aws, f"EKSClusterRole-{settings.cluster_name}", "eks.amazonaws.com")
    # By the name that EC2 gives it, which moto's CreateServiceLinkedRole does not know.
    await _role(aws, SPOT_ROLE, "spot.amazonaws.com", path="/aws-service-role/spot.amazonaws.com/")
    return node, controller


async def _role(aws: Aws, name: str, service: str, path: str = "/") -> str:
    trust = [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]
    reply = await aws.call("iam", "create_role", RoleName=name, Path=path, AssumeRolePolicyDocument=_policy(trust))
    return str(reply["Role"]["Arn"])


def _policy(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


async def _queues(aws: Aws, settings: Settings) -> tuple[str, str, str]:
    """Karpenter's queue, the package's own beside it (two readers of one queue steal from each other), its DLQ.

    Karpenter's queue, its policy and the five rules are those of aws/karpenter-provider-aws v1.14.1
    ``getting-started-with-karpenter/cloudformation.yaml``; here each rule has two targets.
    """
    name = settings.cluster_name
    karpenter = await _queue(aws, settings, name, MessageRetentionPeriod=_KARPENTER_QUEUE_RETENTION)
    dead = await _queue(aws, settings, f"{name}-gpu-fleet-dlq", sent_to=False)
    redrive = {"deadLetterTargetArn": _queue_arn(settings, f"{name}-gpu-fleet-dlq"), "maxReceiveCount": _MAX_RECEIVES}
    fleet = await _queue(aws, settings, f"{name}-gpu-fleet", RedrivePolicy=json.dumps(redrive))
    for rule, (source, detail_type) in RULES.items():
        # CloudFormation adds a suffix of its own to names that a template does not give.
        full = f"Karpenter-{name}-{rule}-{hashlib.sha256(rule.encode()).hexdigest()[:12].upper()}"
        pattern = {"source": [source], "detail-type": [detail_type]}
        await aws.call("events", "put_rule", Name=full, EventPattern=json.dumps(pattern))
        targets = [
            {"Id": "KarpenterInterruptionQueueTarget", "Arn": _queue_arn(settings, name)},
            {"Id": "GpuFleetQueueTarget", "Arn": _queue_arn(settings, f"{name}-gpu-fleet")},
        ]
        await aws.call("events", "put_targets", Rule=full, Targets=targets)
    return karpenter, fleet, dead


async def _queue(aws: Aws, settings: Settings, name: str, *, sent_to: bool = True, **attributes: str) -> str:
    """A queue with encryption, which only TLS may reach (the sandbox itself talks plain HTTP); its URL.

    :param sent_to: EventBridge may send to it.
    """
    arn = _queue_arn(settings, name)
    services = {"Service": ["events.amazonaws.com", "sqs.amazonaws.com"]}
    statements: list[dict[str, Any]] = []
    if sent_to:
        statements.append({"Effect": "Allow", "Principal": services, "Action": "sqs:SendMessage", "Resource": arn})
    denied = {"Sid": "DenyHTTP", "Effect": "Deny", "Principal": "*", "Action": "sqs:*", "Resource": arn}
    statements.append({**denied, "Condition": {"Bool": {"aws:SecureTransport": "false"}}})
    shown = {"SqsManagedSseEnabled": "true", "Policy": _policy(statements), **attributes}
    return str((await aws.call("sqs", "create_queue", QueueName=name, Attributes=shown))["QueueUrl"])


def _queue_arn(settings: Settings, name: str) -> str:
    return f"arn:aws:sqs:{settings.region}:{settings.account}:{name}"


async def _cluster(aws: Aws, settings: Settings, subnet_ids: list[str], group_id: str) -> None:
    await aws.call(
        "eks",
        "create_cluster",
        name=settings.cluster_name,
        version=settings.kubernetes_version,
        roleArn=f"arn:aws:iam::{settings.account}:role/EKSClusterRole-{settings.cluster_name}",
        resourcesVpcConfig={"subnetIds": subnet_ids, "securityGroupIds": [group_id]},
    )


async def _system_nodes(
    aws: Aws, settings: Settings, subnet_ids: list[str], group_id: str, node_role: str
) -> list[str]:
    """A managed node group for what must run before the first GPU node: Karpenter, CoreDNS."""
    cluster = settings.cluster_name
    await aws.call(
        "eks",
        "create_nodegroup",
        clusterName=cluster,
        nodegroupName=SYSTEM_NODE_GROUP,
        scalingConfig={"minSize": SYSTEM_NODES, "maxSize": SYSTEM_NODES, "desiredSize": SYSTEM_NODES},
        instanceTypes=[SYSTEM_INSTANCE_TYPE],
        subnets=subnet_ids[:SYSTEM_NODES],
        nodeRole=node_role,
        version=settings.kubernetes_version,
    )
    image = await image_of(aws, settings, "standard", "al2023@latest")
    tags = {
        f"kubernetes.io/cluster/{cluster}": "owned",
        "eks:cluster-name": cluster,
        "eks:nodegroup-name": SYSTEM_NODE_GROUP,
        "Name": f"{cluster}-{SYSTEM_NODE_GROUP}",
    }
    instances = []
    for subnet in subnet_ids[:SYSTEM_NODES]:
        reply = await aws.call(
            "ec2",
            "run_instances",
            ImageId=image,
            InstanceType=SYSTEM_INSTANCE_TYPE,
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            SecurityGroupIds=[group_id],
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
        )
        instances.append(reply["Instances"][0]["InstanceId"])
    return instances
