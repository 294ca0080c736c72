"""One endpoint for all of AWS: what passes, what is refused, and how EKS answers."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

import aiohttp
import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.aws.eks.authenticator import Authenticator, Identity, InvalidToken
from sandbox.aws.testing import RunningCloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "ec2": ("describe_vpcs", {}),
    "sts": ("get_caller_identity", {}),
    "eks": ("list_clusters", {}),
    "sqs": ("list_queues", {}),
    "ssm": ("describe_parameters", {}),
}


async def _code(aws: Aws, service: str, operation: str, **params: Any) -> str:
    with pytest.raises(ClientError) as caught:
        await aws.call(service, operation, **params)
    return str(caught.value.response["Error"]["Code"])


async def _status(aws: Aws, cluster: str) -> str | None:
    """Of an EKS cluster; ``None`` once it is gone."""
    try:
        return str((await aws.call("eks", "describe_cluster", name=cluster))["cluster"]["status"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise


async def test_every_service_is_reached_through_one_address(cloud: RunningCloud) -> None:
    who = await cloud.aws.call("sts", "get_caller_identity")
    assert who["Arn"] == cloud.account.admin_arn
    assert (await cloud.aws.call("eks", "list_clusters"))["clusters"] == ["demo-gpu"]
    queue = await cloud.aws.call("sqs", "get_queue_url", QueueName="demo-gpu-gpu-fleet")
    assert queue["QueueUrl"].startswith(cloud.shim.url)
    await cloud.aws.call("sqs", "send_message", QueueUrl=queue["QueueUrl"], MessageBody="ä <&> 1")
    received = await cloud.aws.call("sqs", "receive_message", QueueUrl=queue["QueueUrl"])
    assert received["Messages"][0]["Body"] == "ä <&> 1"
    assumed = await cloud.aws.call(
        "sts", "assume_role", RoleArn=cloud.account.controller_role_arn, RoleSessionName="karpenter"
    )
    credentials = assumed["Credentials"]
    session = boto3.session.Session(
        credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"], "us-west-2"
    )
    client = session.client("sts", endpoint_url=cloud.shim.url)
    arn = (await asyncio.to_thread(client.get_caller_identity))["Arn"]
    assert arn.endswith("assumed-role/KarpenterControllerRole-demo-gpu/karpenter")


async def test_who_is_not_known_is_refused_in_each_service_s_own_words(cloud: RunningCloud) -> None:
    stranger = Aws(cloud.shim.url, "us-west-2", "AKIASTRANGER", "secret")
    forger = Aws(cloud.shim.url, "us-west-2", cloud.account.access_key_id, "not the secret")
    codes = {}
    for service, (operation, params) in _CALLS.items():
        codes[service] = (
            await _code(stranger, service, operation, **params),
            await _code(forger, service, operation, **params),
        )
    assert codes == {
        "ec2": ("AuthFailure", "AuthFailure"),
        "sts": ("InvalidClientTokenId", "SignatureDoesNotMatch"),
        "eks": ("UnrecognizedClientException", "InvalidSignatureException"),
        "sqs": ("UnrecognizedClientException", "InvalidSignatureException"),
        "ssm": ("UnrecognizedClientException", "InvalidSignatureException"),
    }
    unsigned = boto3.client(
        "eks", region_name="us-west-2", endpoint_url=cloud.shim.url, config=Config(signature_version=UNSIGNED)
    )
    with pytest.raises(ClientError, match="Missing Authentication Token"):
        await asyncio.to_thread(unsigned.list_clusters)
    nowhere = Aws(cloud.shim.url, "us-west-9", cloud.account.access_key_id, cloud.account.secret_access_key)
    with pytest.raises(ClientError, match="valid region"):
        await nowhere.call("eks", "list_clusters")


async def test_cluster_absent_here_or_in_another_region(cloud: RunningCloud) -> None:
    elsewhere = Aws(cloud.shim.url, "eu-west-1", cloud.account.access_key_id, cloud.account.secret_access_key)
    assert (await elsewhere.call("eks", "list_clusters"))["clusters"] == []
    for aws, name in ((elsewhere, "demo-gpu"), (cloud.aws, "nope")):
        with pytest.raises(ClientError, match=rf"No cluster found for name: {name}\.") as caught:
            await aws.call("eks", "describe_cluster", name=name)
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


async def test_described_cluster_has_the_sandbox_s_endpoint_and_status(cloud: RunningCloud) -> None:
    state = cloud.shim.eks.cluster("us-west-2", "demo-gpu")
    state.endpoint, state.ca_data = "https://127.0.0.1:6443", base64.b64encode(b"PEM").decode()
    cluster = (await cloud.aws.call("eks", "describe_cluster", name="demo-gpu"))["cluster"]
    assert cluster["endpoint"] == "https://127.0.0.1:6443"
    assert base64.b64decode(cluster["certificateAuthority"]["data"]) == b"PEM"
    assert (cluster["status"], cluster["version"]) == ("ACTIVE", "1.35")
    cloud.settings.faults.set("eks-status", {"status": "UPDATING"})
    assert (await cloud.aws.call("eks", "describe_cluster", name="demo-gpu"))["cluster"]["status"] == "UPDATING"
    cloud.settings.faults.clear("eks-status")


async def test_cluster_is_created_and_deleted_in_time(cloud: RunningCloud) -> None:
    created = await cloud.aws.call(
        "eks",
        "create_cluster",
        name="second",
        roleArn=f"arn:aws:iam::{cloud.settings.account}:role/EKSClusterRole-demo-gpu",
        resourcesVpcConfig={"subnetIds": cloud.account.subnet_ids},
    )
    assert created["cluster"]["status"] == "CREATING"
    assert "endpoint" not in created["cluster"]
    cloud.shim.eks.cluster("us-west-2", "second").active_at = 0
    assert (await cloud.aws.call("eks", "describe_cluster", name="second"))["cluster"]["status"] == "ACTIVE"
    assert (await cloud.aws.call("eks", "delete_cluster", name="second"))["cluster"]["status"] == "DELETING"
    while (status := await _status(cloud.aws, "second")) is not None:
        assert status == "DELETING"
        await asyncio.sleep(0.2)
    assert "second" not in (await cloud.aws.call("eks", "list_clusters"))["clusters"]
    assert await _code(cloud.aws, "eks", "delete_cluster", name="demo-gpu") == "ResourceInUseException"


async def test_access_entries_and_pod_identity_live_as_in_eks(cloud: RunningCloud) -> None:
    call, name = cloud.aws.call, "demo-gpu"
    arn = f"arn:aws:iam::{cloud.settings.account}:role/team/readers"
    entry = (await call("eks", "create_access_entry", clusterName=name, principalArn=arn))["accessEntry"]
    assert entry["username"].endswith("assumed-role/readers/{{SessionName}}")
    assert await _code(cloud.aws, "eks", "create_access_entry", clusterName=name, principalArn=arn) == (
        "ResourceInUseException"
    )
    policy = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy"
    await call(
        "eks",
        "associate_access_policy",
        clusterName=name,
        principalArn=arn,
        policyArn=policy,
        accessScope={"type": "cluster"},
    )
    listed = await call("eks", "list_associated_access_policies", clusterName=name, principalArn=arn)
    assert [item["policyArn"] for item in listed["associatedAccessPolicies"]] == [policy]
    await call("eks", "delete_access_entry", clusterName=name, principalArn=arn)
    assert arn not in (await call("eks", "list_access_entries", clusterName=name))["accessEntries"]

    associations = await call("eks", "list_pod_identity_associations", clusterName=name)
    assert [(item["namespace"], item["serviceAccount"]) for item in associations["associations"]] == [
        ("kube-system", "karpenter")
    ]
    identifier = associations["associations"][0]["associationId"]
    described = await call("eks", "describe_pod_identity_association", clusterName=name, associationId=identifier)
    assert described["association"]["roleArn"] == cloud.account.controller_role_arn
    assert (await call("eks", "list_addons", clusterName=name))["addons"] == ["eks-pod-identity-agent"]
    assert (await call("eks", "list_nodegroups", clusterName=name))["nodegroups"] == ["system"]


_NEEDED: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    # action -> service, operation, parameters, code without the permission, what the account may lack
    "eks:ListAccessEntries": ("eks", "list_access_entries", {"clusterName": "demo-gpu"}, "AccessDeniedException", ""),
    "eks:ListPodIdentityAssociations": (
        "eks", "list_pod_identity_associations", {"clusterName": "demo-gpu"}, "AccessDeniedException", "",
    ),
    "sqs:GetQueueUrl": ("sqs", "get_queue_url", {"QueueName": "demo-gpu"}, "AccessDenied", "queue"),
    "iam:GetRole": ("iam", "get_role", {"RoleName": "KarpenterNodeRole-demo-gpu"}, "AccessDenied", "node-role"),
    "ec2:DescribeSubnets": ("ec2", "describe_subnets", {}, "UnauthorizedOperation", ""),
    "ec2:DescribeSecurityGroups": ("ec2", "describe_security_groups", {}, "UnauthorizedOperation", ""),
    "eks:DescribeCluster": ("eks", "describe_cluster", {"name": "demo-gpu"}, "AccessDeniedException", ""),
}  # fmt: skip


async def test_a_permission_that_is_missing_is_refused_in_each_service_s_own_words(cloud: RunningCloud) -> None:
    for action, (service, operation, params, code, _) in _NEEDED.items():
        await cloud.aws.call(service, operation, **params)
        cloud.settings.faults.set("aws-denied", {"actions": [action]})
        with pytest.raises(ClientError, match=action) as caught:
            await cloud.aws.call(service, operation, **params)
        assert caught.value.response["Error"]["Code"] == code
        assert (await cloud.aws.call("sts", "get_caller_identity"))["Arn"] == cloud.account.admin_arn
        cloud.settings.faults.clear()


async def test_what_the_account_lacks_is_absent_for_everybody(cloud: RunningCloud) -> None:
    aws, faults = cloud.aws, cloud.settings.faults
    spot = {"RoleName": "AWSServiceRoleForEC2Spot"}
    assert (await aws.call("iam", "get_role", **spot))["Role"]["Path"] == "/aws-service-role/spot.amazonaws.com/"
    faults.set("aws-absent", {"what": ["access-entry", "pod-identity", "queue", "node-role", "spot-role"]})
    entries = (await aws.call("eks", "list_access_entries", clusterName="demo-gpu"))["accessEntries"]
    assert entries == [cloud.account.group_role_arn, cloud.account.admin_arn]
    entry = {"clusterName": "demo-gpu", "principalArn": cloud.account.node_role_arn}
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        await aws.call("eks", "describe_access_entry", **entry)
    found = await aws.call("eks", "list_pod_identity_associations", clusterName="demo-gpu")
    assert found["associations"] == []
    # As boto3 has it: the JSON protocol of SQS keeps the codes of the query protocol.
    assert await _code(aws, "sqs", "get_queue_url", QueueName="demo-gpu") == "AWS.SimpleQueueService.NonExistentQueue"
    for name in ("KarpenterNodeRole-demo-gpu", spot["RoleName"]):
        assert await _code(aws, "iam", "get_role", RoleName=name) == "NoSuchEntity"
    faults.set("aws-absent", {"what": ["discovery-tags"]})
    filters = [{"Name": "tag:karpenter.sh/discovery", "Values": ["demo-gpu"]}]
    for operation, key in (("describe_subnets", "Subnets"), ("describe_security_groups", "SecurityGroups")):
        assert (await aws.call("ec2", operation, Filters=filters))[key] == []
        assert (await aws.call("ec2", operation))[key]
        faults.clear()
        assert (await aws.call("ec2", operation, Filters=filters))[key]
        faults.set("aws-absent", {"what": ["discovery-tags"]})
    faults.clear()


async def test_moto_says_the_same_of_a_queue_and_a_role_that_are_not_there(cloud: RunningCloud) -> None:
    """The faults above, against what an absent thing really gives."""
    assert await _code(cloud.aws, "sqs", "get_queue_url", QueueName="nope") == "AWS.SimpleQueueService.NonExistentQueue"
    assert await _code(cloud.aws, "iam", "get_role", RoleName="nope") == "NoSuchEntity"


async def test_associations_are_filtered_by_namespace_and_service_account(cloud: RunningCloud) -> None:
    async def found(**filters: str) -> int:
        reply = await cloud.aws.call("eks", "list_pod_identity_associations", clusterName="demo-gpu", **filters)
        return len(reply["associations"])

    assert await found(namespace="kube-system") == await found(serviceAccount="karpenter") == 1
    assert await found(namespace="kube-system", serviceAccount="karpenter") == 1
    assert await found(namespace="karpenter") == await found(namespace="kube-system", serviceAccount="x") == 0


async def test_a_cluster_that_trusts_its_config_map_has_no_access_entries(cloud: RunningCloud) -> None:
    """docs.aws.amazon.com/eks/latest/userguide/setting-up-access-entries.html."""
    described = await cloud.aws.call("eks", "describe_cluster", name="demo-gpu")
    assert described["cluster"]["accessConfig"]["authenticationMode"] == "API"
    cloud.settings.faults.set("eks-authentication-mode", {"mode": "CONFIG_MAP"})
    described = await cloud.aws.call("eks", "describe_cluster", name="demo-gpu")
    assert described["cluster"]["accessConfig"]["authenticationMode"] == "CONFIG_MAP"
    with pytest.raises(ClientError, match="authentication mode must be set to one of"):
        await cloud.aws.call("eks", "list_access_entries", clusterName="demo-gpu")
    cloud.settings.faults.clear()


def _token(
    cloud: RunningCloud,
    *,
    cluster: str = "demo-gpu",
    expires: int = 60,
    operation: str = "get_caller_identity",
    session: boto3.session.Session | None = None,
    endpoint: str | None = None,
) -> str:
    """A token as `aws eks get-token` makes it, with boto3's own signer."""
    session = session or boto3.session.Session(
        cloud.account.access_key_id, cloud.account.secret_access_key, region_name="us-west-2"
    )
    client = session.client("sts", endpoint_url=endpoint or cloud.shim.url)

    def add(request: Any, **_: Any) -> None:
        request.headers["x-k8s-aws-id"] = cluster

    client.meta.events.register("before-sign.sts.*", add)
    url = client.generate_presigned_url(operation, ExpiresIn=expires, HttpMethod="GET")
    return "k8s-aws-v1." + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


async def test_tokens_are_good_only_for_this_cluster_and_known_principals(cloud: RunningCloud) -> None:
    def user(identity: Identity) -> Identity:
        return identity

    authenticator = Authenticator(cloud.shim.eks, cloud.shim.url, "us-west-2", "demo-gpu", user)
    try:
        good = _token(cloud)
        admin = await authenticator.identify(good)
        assert admin.name == cloud.account.admin_arn
        assert set(admin.groups) == {"system:masters", "system:authenticated"}
        assert await authenticator(good) == admin  # from the cache, the same

        stranger = boto3.session.Session("AKIASTRANGER", "secret", region_name="us-west-2")
        role = await cloud.aws.call(
            "sts", "assume_role", RoleArn=cloud.account.controller_role_arn, RoleSessionName="nobody"
        )
        keys = role["Credentials"]
        unlisted = boto3.session.Session(
            keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name="us-west-2"
        )
        old = datetime.now(UTC).strftime("%Y") + "0101T000000Z"
        url = base64.urlsafe_b64decode(good.removeprefix("k8s-aws-v1.") + "==").decode()
        refused = {
            "no prefix": good.removeprefix("k8s-aws-v1."),
            "not base64": "k8s-aws-v1.***",
            "another cluster": _token(cloud, cluster="other"),
            "another host": _token(cloud, endpoint="http://127.0.0.1:1"),
            "another action": _token(cloud, operation="get_session_token"),
            "too long": _token(cloud, expires=3600),
            "stranger": _token(cloud, session=stranger),
            "no access entry": _token(cloud, session=unlisted),
            "signature changed": _encode(url[:-1] + ("0" if url[-1] != "0" else "1")),
            "date changed": _encode(url.replace(url.split("X-Amz-Date=")[1][:16], old)),
            "extra parameter": _encode(url + "&Evil=1"),
            "control character": _encode(url[:-1] + "\0"),
            "malformed host": _encode("http://[1/?Action=GetCallerIdentity"),
            "cut off": good[: len(good) // 2],
            "too large": good + "A" * 20_000,
        }
        for reason, token in refused.items():
            with pytest.raises(InvalidToken):
                await authenticator.identify(token)
            assert await authenticator(token) is None, reason
    finally:
        await authenticator.close()


def _encode(url: str) -> str:
    return "k8s-aws-v1." + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


async def test_moto_s_own_control_routes_are_out_of_reach(cloud: RunningCloud) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/moto-api/reset", "/_sandbox/credentials/AKIA"):
            async with session.post(f"{cloud.shim.url}{path}") as reply:
                assert reply.status == 403
