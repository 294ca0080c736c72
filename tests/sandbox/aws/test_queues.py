"""SQS through the shim: long polls, and queues that fail. Read with boto3, which also retries as it does elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import boto3
import pytest
import pytest_asyncio
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from sandbox.aws.testing import RunningCloud

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUEUE = "demo-gpu-gpu-fleet"


class Sqs:
    """boto3 without retries; in a thread, because the shim that answers it lives in this one."""

    def __init__(self, cloud: RunningCloud, attempts: int = 1) -> None:
        session = boto3.session.Session(
            cloud.account.access_key_id, cloud.account.secret_access_key, region_name=cloud.settings.region
        )
        config = Config(retries={"max_attempts": attempts, "mode": "standard"})
        self._client = session.client("sqs", endpoint_url=cloud.shim.url, config=config)
        self._url = f"{cloud.shim.url}/{cloud.settings.account}/{QUEUE}"

    async def __call__(self, operation: str, **params: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await asyncio.to_thread(getattr(self._client, operation), QueueUrl=self._url, **params)
        return answer


@pytest_asyncio.fixture(loop_scope="module")
async def sqs(cloud: RunningCloud) -> AsyncIterator[Sqs]:
    yield Sqs(cloud)
    cloud.settings.faults.clear()
    # A message that a test received and left is invisible for a while, and PurgeQueue may be called once a minute.
    await cloud.aws.call("sqs", "delete_queue", QueueUrl=f"{cloud.shim.url}/{cloud.settings.account}/{QUEUE}")
    await cloud.aws.call("sqs", "create_queue", QueueName=QUEUE)


async def test_a_long_poll_ends_with_the_message_that_comes_or_with_its_time(sqs: Sqs) -> None:
    began = time.monotonic()
    waiting = asyncio.create_task(sqs("receive_message", WaitTimeSeconds=20))
    await asyncio.sleep(1.5)
    assert not waiting.done()
    # Nobody else is held up meanwhile.
    await sqs("get_queue_attributes", AttributeNames=["All"])
    assert time.monotonic() - began < 3
    await sqs("send_message", MessageBody="here")
    assert [each["Body"] for each in (await waiting)["Messages"]] == ["here"]
    assert time.monotonic() - began < 4
    began = time.monotonic()
    assert "Messages" not in await sqs("receive_message", WaitTimeSeconds=2)
    assert 1.5 < time.monotonic() - began < 4.5


async def test_a_caller_that_leaves_takes_no_message_with_it(cloud: RunningCloud, sqs: Sqs) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []
    made = boto3.session.Session(
        cloud.account.access_key_id, cloud.account.secret_access_key, region_name=cloud.settings.region
    ).client("sqs", endpoint_url=cloud.shim.url)

    def stop(request: Any, **_: Any) -> Any:
        seen.append(
            (
                request.url,
                {k: v if isinstance(v, str) else v.decode() for k, v in request.headers.items()},
                request.body,
            )
        )
        raise RuntimeError

    made.meta.events.register("before-send.sqs.ReceiveMessage", stop)
    with pytest.raises(RuntimeError):
        await asyncio.to_thread(
            made.receive_message, QueueUrl=f"{cloud.shim.url}/{cloud.settings.account}/{QUEUE}", WaitTimeSeconds=20
        )
    [(url, headers, body)] = seen
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            await session.post(url, headers=headers, data=body, timeout=aiohttp.ClientTimeout(total=0.5))
    await asyncio.sleep(2.0)
    await sqs("send_message", MessageBody="kept")
    answer = await sqs("receive_message", AttributeNames=["ApproximateReceiveCount"])
    assert [each["Attributes"]["ApproximateReceiveCount"] for each in answer["Messages"]] == ["1"]


async def test_a_queue_throttles_for_a_while(cloud: RunningCloud, sqs: Sqs) -> None:
    """The error is in botocore's model of SQS, how it is sent in the SQS Developer Guide, 'JSON API responses'."""
    cloud.settings.faults.set("sqs-throttled", {"queue": QUEUE, "actions": ["sqs:ReceiveMessage"]}, count=2)
    with pytest.raises(ClientError) as caught:
        await sqs("receive_message")
    assert caught.value.response["Error"]["Code"] == "RequestThrottled"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    await sqs("get_queue_attributes", AttributeNames=["All"])
    await Sqs(cloud, attempts=3)("receive_message")  # botocore takes it for throttling, and tries again
    assert cloud.settings.faults.active("sqs-throttled") is None


async def test_a_queue_s_connections_are_lost(cloud: RunningCloud, sqs: Sqs) -> None:
    cloud.settings.faults.set("sqs-dropped", {"queue": QUEUE})
    with pytest.raises(ConnectionClosedError):
        await sqs("receive_message")
    assert (await cloud.aws.call("sqs", "get_queue_url", QueueName="demo-gpu"))["QueueUrl"]
    # Also those that wait.
    cloud.settings.faults.clear()
    waiting = asyncio.create_task(sqs("receive_message", WaitTimeSeconds=20))
    await asyncio.sleep(0.3)
    cloud.settings.faults.set("sqs-dropped", {"queue": QUEUE})
    with pytest.raises(ConnectionClosedError):
        await waiting


async def test_a_queue_is_gone_and_is_there_again(cloud: RunningCloud, sqs: Sqs) -> None:
    await sqs("send_message", MessageBody="kept")
    cloud.settings.faults.set("sqs-deleted", {"queue": QUEUE})
    with pytest.raises(ClientError) as caught:
        await sqs("receive_message")
    assert caught.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"
    cloud.settings.faults.clear()
    assert [each["Body"] for each in (await sqs("receive_message"))["Messages"]] == ["kept"]


@pytest.mark.parametrize(
    ("operation", "params", "action"),
    [
        ("receive_message", {}, "sqs:ReceiveMessage"),
        ("send_message", {"MessageBody": "x"}, "sqs:SendMessage"),
        ("send_message_batch", {"Entries": [{"Id": "1", "MessageBody": "x"}]}, "sqs:SendMessage"),
        ("delete_message", {"ReceiptHandle": "x"}, "sqs:DeleteMessage"),
        ("delete_message_batch", {"Entries": [{"Id": "1", "ReceiptHandle": "x"}]}, "sqs:DeleteMessage"),
        (
            "change_message_visibility",
            {"ReceiptHandle": "x", "VisibilityTimeout": 0},
            "sqs:ChangeMessageVisibility",
        ),
        (
            "change_message_visibility_batch",
            {"Entries": [{"Id": "1", "ReceiptHandle": "x", "VisibilityTimeout": 0}]},
            "sqs:ChangeMessageVisibility",
        ),
        ("get_queue_attributes", {"AttributeNames": ["All"]}, "sqs:GetQueueAttributes"),
    ],
)
async def test_permissions_of_queues(
    cloud: RunningCloud, sqs: Sqs, operation: str, params: dict[str, Any], action: str
) -> None:
    """Batches need no permission of their own (Service Authorization Reference, 'Amazon SQS')."""
    cloud.settings.faults.set("aws-denied", {"actions": [action]})
    with pytest.raises(ClientError, match=action) as caught:
        await sqs(operation, **params)
    assert caught.value.response["Error"]["Code"] == "AccessDenied"


@pytest.mark.parametrize(
    ("service", "operation", "params", "action", "code"),
    [
        ("events", "list_rules", {}, "events:ListRules", "AccessDeniedException"),
        ("events", "list_targets_by_rule", {"Rule": "x"}, "events:ListTargetsByRule", "AccessDeniedException"),
        (
            "events",
            "list_rule_names_by_target",
            {"TargetArn": "arn:aws:sqs:us-west-2:123456789012:x"},
            "events:ListRuleNamesByTarget",
            "AccessDeniedException",
        ),
        ("events", "describe_rule", {"Name": "x"}, "events:DescribeRule", "AccessDeniedException"),
        (
            "autoscaling",
            "terminate_instance_in_auto_scaling_group",
            {"InstanceId": "i-1", "ShouldDecrementDesiredCapacity": True},
            "autoscaling:TerminateInstanceInAutoScalingGroup",
            "AccessDenied",
        ),
        (
            "autoscaling",
            "describe_auto_scaling_instances",
            {},
            "autoscaling:DescribeAutoScalingInstances",
            "AccessDenied",
        ),
    ],
)
async def test_permissions_of_eventbridge_and_auto_scaling(
    cloud: RunningCloud, service: str, operation: str, params: dict[str, Any], action: str, code: str
) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": [action]})
    try:
        with pytest.raises(ClientError, match=action) as caught:
            await cloud.aws.call(service, operation, **params)
        assert caught.value.response["Error"]["Code"] == code
    finally:
        cloud.settings.faults.clear()
