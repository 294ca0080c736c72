"""AWS calls, EKS tokens and EKS access against the sandbox's AWS and API server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.sdk import BaseOperator
from botocore.exceptions import ClientError, ConnectTimeoutError, CredentialRetrievalError

from gpu_fleet.core import errors
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.kinds import NAMESPACE, ObjectRef
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.aws import CONNECTION_TTL_S, AwsSession, aws_session
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.eks_token import RENEW_AFTER_S, TOKEN_LIFETIME_S, EksCredentials
from gpu_fleet.hooks.kubernetes.hook import AsyncKubeClient, ClusterAccess, KubeClient
from gpu_fleet.operators.preflight.checks import CheckAwsOperator
from gpu_fleet.triggers.looking import look
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.sandboxed import SandboxCloud, only_connections, sandbox_cloud

ACCESS = ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")
INSTANCE = "i-0123456789abcdef0"
DEFAULT = ObjectRef(NAMESPACE, "default")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("sandbox")) as cloud:
        yield cloud


@pytest.fixture(autouse=True)
def cloud(shared: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCloud]:
    only_connections(monkeypatch, aws_demo=shared.connection)
    yield shared
    shared.settings.faults.clear()
    kubernetes_access.forget(ACCESS)


def connection(cloud: SandboxCloud, **changes: Any) -> str:
    return json.dumps({**json.loads(cloud.connection), **changes})


def url_in(token: str) -> str:
    encoded = token.removeprefix("k8s-aws-v1.")
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()


# --- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_is_a_signed_url_of_the_connections_sts_that_names_the_cluster(cloud: SandboxCloud) -> None:
    token = EksCredentials(AwsSession("aws_demo", "us-west-2"), "demo-gpu").token()
    parts = urlsplit(url_in(token))
    query = parse_qs(parts.query)
    assert token.startswith("k8s-aws-v1.")
    assert "=" not in token
    assert f"{parts.scheme}://{parts.netloc}" == cloud.endpoint_url
    assert query["Action"] == ["GetCallerIdentity"]
    assert "x-k8s-aws-id" in query["X-Amz-SignedHeaders"][0]
    assert "/us-west-2/sts/" in query["X-Amz-Credential"][0]


def test_without_an_endpoint_of_its_own_the_regional_sts_signs(cloud: SandboxCloud, monkeypatch: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", connection(cloud, extra={"region_name": "eu-west-1"}))
    assert AwsSession("plain").endpoint("sts") == "https://sts.eu-west-1.amazonaws.com"
    monkeypatch.setenv("AIRFLOW_CONN_CHINA", connection(cloud, extra={"region_name": "cn-north-1"}))
    assert AwsSession("china").endpoint("sts") == "https://sts.cn-north-1.amazonaws.com.cn"


def test_a_token_is_reused_and_renewed_well_before_it_expires() -> None:
    clock = [1_000.0]
    credentials = EksCredentials(AwsSession("aws_demo", "us-west-2"), "demo-gpu", now=lambda: clock[0])
    first = credentials.token()
    clock[0] += RENEW_AFTER_S - 1
    assert credentials.token() is first
    clock[0] += 1
    assert credentials.token() is not first
    assert RENEW_AFTER_S < TOKEN_LIFETIME_S - 120


def test_a_token_is_at_hand_without_waiting_for_whoever_signs_another() -> None:
    clock = [1_000.0]
    credentials = EksCredentials(AwsSession("aws_demo", "us-west-2"), "demo-gpu", now=lambda: clock[0])
    assert credentials.ready() is None
    token = credentials.token()
    with credentials._lock:  # somebody signs, and AWS does not answer
        assert credentials.ready() == {"Authorization": f"Bearer {token}"}
        clock[0] += RENEW_AFTER_S
        assert credentials.ready() is None


def test_a_clock_set_back_makes_a_new_token() -> None:
    clock = [1_000.0]
    credentials = EksCredentials(AwsSession("aws_demo", "us-west-2"), "demo-gpu", now=lambda: clock[0])
    first = credentials.token()
    clock[0] -= 60
    assert credentials.token() is not first


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (CredentialRetrievalError(provider="assume-role", error_msg="not now"), errors.ApiUnavailable),
        (ConnectTimeoutError(endpoint_url="https://sts.us-west-2.amazonaws.com"), errors.ApiUnavailable),
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AssumeRole"), errors.Forbidden),
        (ClientError({"Error": {"Code": "Throttling", "Message": "no"}}, "AssumeRole"), errors.Throttled),
    ],
)
def test_credentials_that_cannot_be_refreshed_for_signing_are_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception, error: type[Exception]
) -> None:
    """Those of a role or of the instance are fetched anew when the signer asks for them, long after the session."""

    def refuse(self: Any) -> Any:
        raise trouble

    monkeypatch.setattr("botocore.credentials.Credentials.get_frozen_credentials", refuse)
    with pytest.raises(error, match=r"AWS sign a token for EKS cluster 'demo-gpu' \(Airflow connection 'aws_demo'\)"):
        EksCredentials(AwsSession("aws_demo", "us-west-2"), "demo-gpu").token()


# --- the way to the cluster --------------------------------------------------------------------------------------


def test_endpoint_trust_and_identity_come_from_eks() -> None:
    kube = KubeClient(ACCESS)
    found = kube.get(DEFAULT)
    kube.close()
    assert found is not None
    assert kubernetes_access.resolve(ACCESS) is kubernetes_access.resolve(ACCESS)


async def test_the_asynchronous_client_goes_the_same_way() -> None:
    client = AsyncKubeClient(ACCESS)
    try:
        assert await client.get(DEFAULT) is not None
    finally:
        await client.close()


def test_a_dead_token_is_replaced_without_anybody_noticing(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = KubeClient(ACCESS)
    credentials = kubernetes_access.resolve(ACCESS).credentials
    monkeypatch.setattr(credentials, "_token", "k8s-aws-v1.ZGVhZA")
    monkeypatch.setattr(credentials, "_signed_at", credentials._now())  # type: ignore[attr-defined]
    assert kube.get(DEFAULT) is not None
    kube.close()


def test_an_absent_cluster_names_what_to_check() -> None:
    access = ClusterAccess("eks", "aws_demo", "us-west-2", "nope")
    with pytest.raises(errors.NotFound, match=r"no EKS cluster 'nope' in us-west-2 .*'aws_demo'; check"):
        KubeClient(access).get(DEFAULT)


def test_a_cluster_without_an_endpoint_may_get_one(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("eks-status", {"status": "CREATING"})
    with pytest.raises(errors.ApiUnavailable, match="is CREATING and has no API endpoint yet"):
        kubernetes_access.resolve(ACCESS)


def test_the_gate_on_the_cluster_follows_its_status(cloud: SandboxCloud) -> None:
    args = {"cluster": "demo-gpu"}
    assert look("cluster_active", args, ACCESS).ready
    cloud.settings.faults.set("eks-status", {"status": "UPDATING"})
    assert look("cluster_active", args, ACCESS).reason == "ClusterUpdating"
    cloud.settings.faults.set("eks-status", {"status": "FAILED"})
    assert look("cluster_active", args, ACCESS).permanent
    assert look("cluster_active", {"cluster": "nope"}, ACCESS).reason == "ClusterNotFound"
    assert gate_named("cluster_active").waits_for_absence is False


# --- AWS calls -----------------------------------------------------------------------------------------------------


def test_results_are_flattened_over_pages() -> None:
    types = aws_session("aws_demo", "us-west-2").paginate(
        "ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=["g5.xlarge"]
    )
    assert [entry["InstanceType"] for entry in types] == ["g5.xlarge"]


@pytest.mark.parametrize(
    ("service", "operation", "params", "kind", "reason"),
    [
        ("eks", "describe_cluster", {"name": "nope"}, errors.NotFound, "ResourceNotFoundException"),
        ("ec2", "describe_instances", {"InstanceIds": [INSTANCE]}, errors.NotFound, "InvalidInstanceID.NotFound"),
        ("eks", "describe_cluster", {"nope": 1}, errors.Invalid, "Invalid"),
    ],
)
def test_aws_errors_are_typed(service: str, operation: str, params: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match="aws_demo") as caught:
        AwsSession("aws_demo", "us-west-2").call(service, operation, **params)
    assert isinstance(caught.value, errors.GpuFleetError)
    assert caught.value.reason == reason


def test_a_connection_that_does_not_exist_is_not_replaced_by_other_credentials(monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHERACCOUNT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-account")
    with pytest.raises(errors.SpecError, match=r"aws\.connection: there is no Airflow connection 'nope'"):
        AwsSession("nope", "us-west-2").call("sts", "get_caller_identity")


def test_no_credentials_names_the_connection(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AIRFLOW_CONN_EMPTY", connection(cloud, login=None, password=None))
    for attempt in (
        lambda: AwsSession("empty", "us-west-2").call("sts", "get_caller_identity"),
        lambda: EksCredentials(AwsSession("empty", "us-west-2"), "demo-gpu").token(),
    ):
        with pytest.raises(errors.Forbidden) as caught:
            attempt()
        assert caught.value.reason == "NoCredentials"
        assert "connection" in caught.value.message


def test_wrong_credentials_are_permanent(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", connection(cloud, password="not-the-secret"))
    with pytest.raises(errors.Forbidden, match="does not accept the credentials"):
        AwsSession("wrong", "us-west-2").call("sts", "get_caller_identity")


def test_keys_that_were_rotated_since_are_read_from_the_connection(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROTATED", connection(cloud, password="the-old-secret"))
    session = AwsSession("rotated", "us-west-2")
    session.client("sts")
    monkeypatch.setenv("AIRFLOW_CONN_ROTATED", cloud.connection)
    assert session.call("sts", "get_caller_identity")["Arn"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_session_follows_a_connection_that_is_given_another_account(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS accepts the old keys as well: only the connection tells that they are of the wrong account by now."""
    clock = Clock()
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", cloud.connection)
    session = AwsSession("moved", "us-west-2", monotonic=clock)
    first = session.client("ec2")
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", connection(cloud, login="AKIAOTHERACCOUNT"))
    clock.now += CONNECTION_TTL_S - 1
    assert session.client("ec2") is first, "it is not read for each call"
    clock.now += 1
    second = session.client("ec2")
    assert second is not first
    assert session.session().get_credentials().access_key == "AKIAOTHERACCOUNT"
    clock.now += CONNECTION_TTL_S
    assert session.client("ec2") is second, "an unchanged connection keeps its clients"


def test_tokens_are_signed_with_the_keys_of_a_connection_that_was_given_another_account(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signing needs no client: a trigger that only watches a cluster never asks for one."""
    clock = Clock()
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", cloud.connection)
    session = AwsSession("moved", "us-west-2", monotonic=clock)
    assert "AKIAOTHERACCOUNT" not in url_in(EksCredentials(session, "demo-gpu").token())
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", connection(cloud, login="AKIAOTHERACCOUNT"))
    clock.now += CONNECTION_TTL_S
    assert "AKIAOTHERACCOUNT" in url_in(EksCredentials(session, "demo-gpu").token())


def test_the_endpoint_that_signs_is_the_one_of_the_connection_as_it_is_now(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for before the session: new keys with the endpoint of the old connection would be refused."""
    clock = Clock()
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", cloud.connection)
    session = AwsSession("moved", "us-west-2", monotonic=clock)
    assert session.custom_endpoint("sts") == cloud.endpoint_url
    moved = json.loads(cloud.connection)
    moved["extra"]["endpoint_url"] = "https://sts.elsewhere.example"
    monkeypatch.setenv("AIRFLOW_CONN_MOVED", json.dumps(moved))
    clock.now += CONNECTION_TTL_S
    assert session.custom_endpoint("sts") == "https://sts.elsewhere.example"


def test_a_session_whose_connection_cannot_be_read_any_more_is_of_nobody_knows_which_account(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow calls a connection absent also while its API server is away: blind, not failed for good."""
    clock = Clock()
    monkeypatch.setenv("AIRFLOW_CONN_GONE", cloud.connection)
    session = AwsSession("gone", "us-west-2", monotonic=clock)
    session.client("ec2")
    monkeypatch.delenv("AIRFLOW_CONN_GONE")
    clock.now += CONNECTION_TTL_S
    for _ in range(2):
        with pytest.raises(errors.ApiUnavailable, match="no longer hands out connection 'gone'") as caught:
            session.call("sts", "get_caller_identity")
        assert caught.value.reason == "ConnectionUnreadable"
    monkeypatch.setenv("AIRFLOW_CONN_GONE", cloud.connection)
    assert session.call("sts", "get_caller_identity")["Arn"]


def test_a_refused_token_is_signed_again_with_the_keys_that_are_there_by_now(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROTATED", connection(cloud, login="AKIAIOSFODNN7EXAMPLE"))
    credentials = EksCredentials(AwsSession("rotated", "us-west-2"), "demo-gpu")
    assert "AKIAIOSFODNN7EXAMPLE" in url_in(credentials.token())
    monkeypatch.setenv("AIRFLOW_CONN_ROTATED", cloud.connection)
    assert credentials.renew()
    assert "AKIAIOSFODNN7EXAMPLE" not in url_in(credentials.token())


def test_the_clusters_token_follows_a_connection_that_is_given_other_keys(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server accepts the old token for minutes: only the connection shows that other keys count by now."""

    def key() -> str:
        return url_in(kubernetes_access.resolve(access).credentials.headers()["Authorization"].removeprefix("Bearer "))

    access = ClusterAccess("eks", "followed", "us-west-2", "demo-gpu")
    cluster = aws_session(ACCESS.aws_conn_id, ACCESS.region).call("eks", "describe_cluster", name="demo-gpu")
    monkeypatch.setattr(AwsSession, "call", lambda *_, **__: cluster)
    monkeypatch.setenv("AIRFLOW_CONN_FOLLOWED", connection(cloud, login="AKIAIOSFODNN7EXAMPLE"))
    clock = Clock()
    monkeypatch.setattr(aws_session("followed", "us-west-2"), "_monotonic", clock)
    assert "AKIAIOSFODNN7EXAMPLE" in key()
    known = kubernetes_access.known(access)
    monkeypatch.setenv("AIRFLOW_CONN_FOLLOWED", connection(cloud, login="AKIAOTHERACCOUNT"))
    clock.now += CONNECTION_TTL_S
    assert "AKIAIOSFODNN7EXAMPLE" in key(), "it is not read for each call"
    clock.now += CONNECTION_TTL_S
    monkeypatch.setattr("gpu_fleet.hooks.kubernetes.access.CONNECTION_CHECK_S", 0.0)
    assert "AKIAOTHERACCOUNT" in key()
    assert kubernetes_access.known(access) is not known
    known = kubernetes_access.known(access)
    monkeypatch.delenv("AIRFLOW_CONN_FOLLOWED")
    clock.now += CONNECTION_TTL_S
    assert kubernetes_access.resolve(access) is known, "what cannot be read has not changed"


def test_an_unreachable_endpoint_may_come_back(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    monkeypatch.setenv("AIRFLOW_CONN_FAR", connection(cloud, extra=extra))
    with pytest.raises(errors.ApiUnavailable, match="check the region and the network"):
        AwsSession("far", "us-west-2").call("sts", "get_caller_identity")


def test_no_region_anywhere_names_the_field(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", connection(cloud, extra={}))
    with pytest.raises(errors.SpecError, match=r"aws\.region"):
        _ = AwsSession("nowhere").region


# --- preflight -----------------------------------------------------------------------------------------------------


def check(**changes: Any) -> dict[str, Any]:
    value = load_cluster("demo").to_json()
    for path, change in changes.items():
        section, _, key = path.partition("__")
        value[section] = {**value[section], key: change} if key else change
    operator: BaseOperator = CheckAwsOperator(task_id="check_aws")
    found: dict[str, Any] = operator.execute(context(TaskInstance(spec=parse_cluster(value))))
    return found


def test_preflight_reports_identity_and_physical_gpus() -> None:
    found = check()
    assert found["region"] == "us-west-2"
    assert found["arn"].startswith("arn:aws:iam::")
    assert found["instance_types"]["g5.xlarge"]["gpus"] == 1
    assert found["instance_types"]["g5.xlarge"]["gpu_name"] == "A10G"
    assert found["instance_types"]["p4d.24xlarge"]["gpus"] == 8
    assert found["instance_types"]["p4d.24xlarge"]["memory_mib"] == 40960


def test_preflight_names_pool_and_type_that_the_region_lacks(cloud: SandboxCloud) -> None:
    pools = load_cluster("demo").to_json()["nodePools"]
    pools[0]["instanceTypes"] = ["g5.3xlarge"]
    with pytest.raises(errors.SpecError, match=r"pool shared-a10g: us-west-2 does not offer g5\.3xlarge"):
        check(nodePools=pools)


def test_preflight_knows_the_regions_of_aws(cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", connection(cloud, extra={}))
    with pytest.raises(errors.SpecError, match=r"aws\.region: AWS has no region 'us-west-9'"):
        check(aws={"connection": "plain", "region": "us-west-9"})
