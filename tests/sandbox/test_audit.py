"""The audit log: what is in it, what is kept out of it, and in which order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox.apiserver import Running
from sandbox.audit import FILE, AuditLog
from sandbox.aws.testing import running_cloud
from sandbox.settings import Settings
from tests.sandbox.apiserver.builders import MAPS, PODS, binding, config_map, pod
from tests.sandbox.apiserver.client import Api, connect
from tests.sandbox.apiserver.conftest import api, cluster, server  # noqa: F401 - fixtures
from tests.sandbox.apiserver.test_eviction import observed_budget, running_pod

Json = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


def entries(log: AuditLog, since: int = 0) -> list[Json]:
    found: list[Json] = json.loads(log.since(since).encode())["entries"]
    return found


def told(place: Running) -> list[Json]:
    return entries(place.settings.audit)


async def test_every_kind_of_write_is_an_event_as_a_real_api_server_writes_it(cluster: Running, api: Api) -> None:  # noqa: F811
    """Fields: kubernetes/apiserver ``pkg/apis/audit/v1/types.go``."""
    began = time.time()
    await api.post(PODS, pod("one", labels={"team": "a"}), User_Agent="kubectl/v1.35.2")
    await api.patch(f"{PODS}/one", {"metadata": {"labels": {"more": "1"}}})
    await api.post(f"{PODS}/one/binding", binding("one", "node-1"))
    await api.post(f"{PODS}/one/eviction", {"metadata": {"name": "one"}})
    await api.call("DELETE", f"{PODS}?labelSelector=team%3Da")
    created, patched, bound, evicted, collection = told(cluster)

    assert (created["kind"], created["apiVersion"]) == ("Event", "audit.k8s.io/v1")
    assert (created["stage"], created["verb"], created["userAgent"]) == (
        "ResponseComplete",
        "create",
        "kubectl/v1.35.2",
    )
    assert created["user"]["username"] == "kubernetes-admin"
    assert created["responseStatus"] == {"metadata": {}, "code": 201}
    reference = created["objectRef"]
    uid = reference.pop("uid")
    assert reference == {"resource": "pods", "namespace": "default", "name": "one", "apiVersion": "v1"}
    assert created["requestReceivedTimestamp"] <= created["stageTimestamp"]
    assert abs(_epoch(created["requestReceivedTimestamp"]) - began) < 5
    assert created["level"] == "Request"
    assert created["requestObject"]["metadata"]["name"] == "one"

    assert (patched["verb"], patched["requestObject"]) == ("patch", {"metadata": {"labels": {"more": "1"}}})
    assert (bound["objectRef"]["subresource"], bound["verb"]) == ("binding", "create")
    assert (evicted["objectRef"]["subresource"], evicted["objectRef"]["uid"]) == ("eviction", uid)
    assert json.loads(evicted["annotations"]["sandbox/object"]) == {
        "labels": {"team": "a", "more": "1"},
        "node": "node-1",
    }
    assert (collection["verb"], "name" in collection["objectRef"]) == ("deletecollection", False)
    assert "labelSelector" in collection["requestURI"]


async def test_generated_name_and_the_uid_of_what_was_made_are_told(cluster: Running, api: Api) -> None:  # noqa: F811
    body = pod("x")
    body["metadata"] = {"generateName": "job-"}
    made = (await api.post(PODS, body)).body["metadata"]
    (event,) = told(cluster)
    assert (event["objectRef"]["name"], event["objectRef"]["uid"]) == (made["name"], made["uid"])


async def test_what_reads_or_asks_is_no_write(cluster: Running, api: Api) -> None:  # noqa: F811
    await api.get(PODS)
    await api.get("/version")
    await api.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}},
    )
    assert told(cluster) == []


async def test_dry_run_is_marked_and_a_refusal_has_its_code(cluster: Running, api: Api) -> None:  # noqa: F811
    await api.post(f"{PODS}?dryRun=All", pod("one"))
    await api.post(PODS, pod("Not-A-Name"))
    await api.post(f"{PODS}/absent/eviction", {"metadata": {"name": "absent"}})
    async with connect(cluster.kubeconfig_for("low")) as low:
        await low.post(PODS, pod("two"))
    dry, invalid, absent, forbidden = told(cluster)
    assert dry["annotations"]["sandbox/dry-run"] == "true"
    assert (invalid["responseStatus"]["code"], invalid["responseStatus"]["reason"]) == (422, "Invalid")
    assert absent["responseStatus"]["code"] == 404
    assert forbidden["responseStatus"]["code"] == 403
    assert forbidden["annotations"]["authorization.k8s.io/decision"] == "forbid"
    assert all("requestObject" not in event for event in (invalid, absent, forbidden))


async def test_eviction_that_a_budget_forbids_is_a_refused_write(cluster: Running, api: Api) -> None:  # noqa: F811
    await running_pod(api, "kept")
    await observed_budget(api, "kept", allowed=0)
    reply = await api.post(f"{PODS}/kept/eviction", {"metadata": {"name": "kept"}})
    assert told(cluster)[-1]["responseStatus"]["code"] == reply.code == 429


async def test_contents_of_secrets_and_config_maps_are_in_no_log(cluster: Running, api: Api) -> None:  # noqa: F811
    await api.post(MAPS, config_map("map", word="PLAIN-1"))
    await api.post("/api/v1/namespaces/default/secrets", {"metadata": {"name": "s"}, "stringData": {"w": "PLAIN-2"}})
    events = told(cluster)
    assert [event["objectRef"]["name"] for event in events] == ["map", "s"]
    assert "PLAIN" not in json.dumps(events)


async def test_the_control_planes_chatter_is_left_out_and_so_are_its_bodies(cluster: Running) -> None:  # noqa: F811
    kubeconfig = cluster.kubeconfig_for("system:kube-controller-manager", ("system:masters",))
    lease = {"metadata": {"name": "a"}, "spec": {"holderIdentity": "me"}}
    async with connect(kubeconfig) as controller:
        await controller.post(LEASES, lease)
        await controller.post(PODS, pod("one"))
    async with connect(cluster.kubeconfig) as person:
        await person.post(LEASES, {**lease, "metadata": {"name": "b"}})
    seen = [(event["objectRef"]["name"], event["level"]) for event in told(cluster)]
    assert seen == [("one", "Metadata"), ("b", "Request")]


async def test_impersonated_user_stands_beside_the_one_who_asked(cluster: Running, api: Api) -> None:  # noqa: F811
    await api.post(PODS, pod("one"), Impersonate_User="system:kube-scheduler", Impersonate_Group="system:masters")
    (event,) = told(cluster)
    assert (event["user"]["username"], event["impersonatedUser"]["username"]) == (
        "kubernetes-admin",
        "system:kube-scheduler",
    )


async def test_calls_that_change_aws_are_records_as_cloudtrail_keeps_them(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, speed=50.0)
    async with running_cloud(settings) as cloud:
        group = await cloud.aws.call("ec2", "create_security_group", GroupName="g", Description="d")
        await cloud.aws.call("ec2", "describe_instances")
        queue = cloud.account.fleet_queue_url
        await cloud.aws.call("sqs", "send_message", QueueUrl=queue, MessageBody="data, no management")
        await cloud.aws.call("sqs", "set_queue_attributes", QueueUrl=queue, Attributes={"VisibilityTimeout": "31"})
        with pytest.raises(Exception, match="NotFound"):
            await cloud.aws.call("ec2", "terminate_instances", InstanceIds=["i-00000000000000000"])
        await cloud.aws.call("eks", "tag_resource", resourceArn=_arn(settings), tags={"a": "b"})
        records = entries(settings.audit)
    made, attributes, refused, tagged = records
    assert (made["eventSource"], made["eventName"]) == ("ec2.amazonaws.com", "CreateSecurityGroup")
    assert made["requestParameters"]["GroupName"] == "g"
    assert group["GroupId"]
    assert made["userIdentity"] == {"arn": cloud.account.admin_arn, "accessKeyId": cloud.account.access_key_id}
    assert "gpu-fleet-sandbox" in made["userAgent"]
    assert attributes["eventName"] == "SetQueueAttributes"
    assert (refused["eventName"], refused["errorCode"]) == ("TerminateInstances", "InvalidInstanceID.NotFound")
    assert tagged["eventName"].startswith("Post /tags/")


def test_reader_that_was_away_too_long_is_told_what_it_lost(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, kept=3)
    for number in range(5):
        log.append({"number": number})
    page = json.loads(log.since(1).encode())
    assert (page["next"], page["lost"], [each["number"] for each in page["entries"]]) == (5, 1, [2, 3, 4])
    assert json.loads(log.since(5).encode()) == {"next": 5, "lost": 0, "entries": []}
    log.close()
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2, 3, 4]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_file_that_is_full_is_put_aside(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, largest=40)
    for number in range(5):
        log.append({"number": number})
    log.close()
    assert [json.loads(line)["number"] for line in (tmp_path / FILE).read_text().splitlines()] == [3, 4]
    assert [json.loads(line)["number"] for line in (tmp_path / f"{FILE}.1").read_text().splitlines()] == [0, 1, 2]


def _epoch(text: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(text).timestamp()


def _arn(settings: Settings) -> str:
    return f"arn:aws:eks:{settings.region}:{settings.account}:cluster/{settings.cluster_name}"
