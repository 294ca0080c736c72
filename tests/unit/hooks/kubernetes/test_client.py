from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from gpu_fleet.core import errors
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, NODE, POD, ObjectRef
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.hooks.kubernetes.transport import seconds_ahead
from tests.unit.hooks.scripted_api import Reply, ScriptedApi, serving, status

MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "d"}, "data": {"k": "v"}}
REF = ObjectRef(CONFIG_MAP, "a", "d")


@contextmanager
def client_of(tmp_path: Path, *replies: Reply, **user: str) -> Iterator[tuple[KubeClient, ScriptedApi, list[float]]]:
    with serving(ScriptedApi(*replies)) as api:
        path = api.kubeconfig(tmp_path, **({"token": "t0"} | user))
        pauses: list[float] = []
        access = ClusterAccess("kubeconfig", None, None, None, path=str(path))
        yield KubeClient(access, sleep=pauses.append, monotonic=lambda: sum(pauses)), api, pauses


@pytest.mark.parametrize(
    "reply", [status(503, "busy"), status(500, "etcd"), Reply(cut=True)], ids=["503", "500", "cut"]
)
def test_a_read_is_repeated_until_it_works(tmp_path: Path, reply: Reply) -> None:
    with client_of(tmp_path, reply, reply, Reply(body=MAP)) as (kube, api, pauses):
        assert kube.get(REF) == MAP
        assert len(api.requests) == 3
        assert len(pauses) == 2


def test_retries_are_bounded(tmp_path: Path) -> None:
    with client_of(tmp_path, status(503, "busy")) as (kube, api, pauses):
        with pytest.raises(errors.ApiUnavailable, match="get ConfigMap d/a: busy"):
            kube.get(REF)
        assert sum(pauses) <= 20
        assert len(api.requests) > 3


def test_the_servers_clock_counts(tmp_path: Path) -> None:
    ahead = formatdate(time.time() + 3600, usegmt=True)
    with client_of(tmp_path, Reply(body=MAP, headers={"Date": ahead})) as (kube, _, _pauses):
        assert kube.now() == pytest.approx(time.time(), abs=2)
        kube.get(REF)
        assert kube.now() == pytest.approx(time.time() + 3600, abs=3)


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        (None, 0),
        ("soon", 0),
        ("Thu, 01 Jan 1970 00:16:40 GMT", 0),
        ("Thu, 01 Jan 1970 00:16:39 GMT", 0),
        ("Thu, 01 Jan 1970 00:17:40 GMT", 60),
        ("Thu, 01 Jan 1970 00:15:40 GMT", -60),
    ],
)
def test_how_far_the_server_is_ahead(date: str | None, ahead: float) -> None:
    assert seconds_ahead(date, 1000.0) == ahead


def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    with client_of(tmp_path, status(429, "slow", headers={"Retry-After": "3"}), Reply(body=MAP)) as (kube, _, pauses):
        kube.get(REF)
        assert pauses == [3.0]


def test_a_post_whose_fate_is_unknown_is_not_repeated(tmp_path: Path) -> None:
    with client_of(tmp_path, status(500, "etcd")) as (kube, api, _):
        with pytest.raises(errors.ApiUnavailable):
            kube.create(MAP)
        assert len(api.requests) == 1


def test_a_post_that_was_turned_away_is_repeated(tmp_path: Path) -> None:
    with client_of(tmp_path, status(429, "slow"), Reply(201, MAP)) as (kube, api, _):
        assert kube.create(MAP) == MAP
        assert len(api.requests) == 2


def test_an_eviction_is_never_repeated_by_the_client(tmp_path: Path) -> None:
    refused = status(429, "Cannot evict pod", "TooManyRequests", "DisruptionBudget")
    with client_of(tmp_path, refused) as (kube, api, pauses):
        with pytest.raises(errors.Throttled) as caught:
            kube.evict("d", "p", uid="u1", grace_seconds=5)
        assert caught.value.retry_after is None
        assert pauses == []
        (request,) = api.requests
        assert request.path == "/api/v1/namespaces/d/pods/p/eviction"
        assert request.body["deleteOptions"] == {"gracePeriodSeconds": 5, "preconditions": {"uid": "u1"}}


def test_a_token_that_cannot_be_renewed_is_refused_once(tmp_path: Path) -> None:
    with client_of(tmp_path, status(401, "Unauthorized")) as (kube, api, _):
        with pytest.raises(errors.Unauthorized):
            kube.get(REF)
        assert len(api.requests) == 1


def test_a_fresh_token_is_tried_once_after_a_401(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t1\n")
    with client_of(tmp_path, status(401, "Unauthorized"), Reply(body=MAP), tokenFile="token", token="") as (
        kube,
        api,
        _,
    ):
        assert kube.get(REF) == MAP
        assert [request.headers["Authorization"] for request in api.requests] == ["Bearer t1", "Bearer t1"]


def test_absence_is_none_for_get_and_false_for_delete(tmp_path: Path) -> None:
    with client_of(tmp_path, status(404, 'configmaps "a" not found', "NotFound")) as (kube, _, _):
        assert kube.get(REF) is None
        assert kube.delete(REF) is False
        assert kube.list(NODE) == []
        with pytest.raises(errors.NotFound):
            kube.patch(REF, {})


def test_a_missing_way_to_the_cluster_is_not_taken_for_absence(tmp_path: Path) -> None:
    kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(tmp_path / "nope")))
    for call in (lambda: kube.get(REF), lambda: kube.list(NODE), lambda: kube.delete(REF)):
        with pytest.raises(errors.NotFound, match="there is no kubeconfig"):
            call()


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    with client_of(tmp_path, Reply()) as (kube, api, _):
        address = api.url
    with pytest.raises(errors.ApiUnavailable, match=f"cannot connect to {address}"):
        kube.get(REF)


def test_pages_are_joined_and_an_expired_page_begins_again(tmp_path: Path) -> None:
    first = Reply(body={"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "c1"}})
    last = Reply(body={"items": [{"metadata": {"name": "b"}}], "metadata": {}})
    with client_of(tmp_path, first, status(410, "too old", "Expired"), first, last) as (kube, api, _):
        found = kube.list(NODE, label_selector="a=b", name="x")
        assert [item["metadata"]["name"] for item in found] == ["a", "b"]
        assert all((item["apiVersion"], item["kind"]) == ("v1", "Node") for item in found)
        assert "continue=c1" in api.requests[1].path
        assert "continue" not in api.requests[2].path
        assert "fieldSelector=metadata.name%3Dx" in api.requests[0].path


def test_only_metadata_travels(tmp_path: Path) -> None:
    whole = {"items": [{"metadata": {"name": "s"}, "data": {"secret": "x"}}], "metadata": {}}
    with client_of(tmp_path, Reply(body=whole)) as (kube, api, _):
        assert kube.list_metadata(POD, "d") == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s"}}]
        assert "PartialObjectMetadataList" in api.requests[0].headers["Accept"]


def test_what_each_verb_sends(tmp_path: Path) -> None:
    with client_of(tmp_path, Reply(body=MAP)) as (kube, api, _):
        kube.apply(MAP, force=True, dry_run=True)
        kube.replace(MAP)
        kube.patch(REF, [{"op": "test"}], strategy="json", subresource="status")
        kube.delete(REF, propagation="Foreground", grace_seconds=0, uid="u1")
    applied, replaced, patched, deleted = api.requests
    assert applied.headers["Content-Type"] == "application/apply-patch+yaml"
    assert applied.path.endswith("/d/configmaps/a?fieldManager=gpu-fleet&fieldValidation=Strict&force=true&dryRun=All")
    assert (replaced.method, replaced.body) == ("PUT", MAP)
    assert patched.headers["Content-Type"] == "application/json-patch+json"
    assert patched.path.startswith("/api/v1/namespaces/d/configmaps/a/status?")
    assert deleted.body["preconditions"] == {"uid": "u1"}
    assert (deleted.body["gracePeriodSeconds"], deleted.body["propagationPolicy"]) == (0, "Foreground")


def test_a_namespaced_object_without_a_namespace_is_refused_before_any_call(tmp_path: Path) -> None:
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    with client_of(tmp_path, Reply(body=MAP)) as (kube, api, _):
        for write in (kube.create, kube.apply, kube.replace):
            with pytest.raises(errors.Invalid, match="namespace"):
                write(bare)
        assert api.requests == []


def test_unknown_kinds_are_discovered_once(tmp_path: Path) -> None:
    resources = [
        {"name": "widgets", "kind": "Widget", "namespaced": True},
        {"name": "widgets/status", "kind": "Widget", "namespaced": True},
    ]
    with client_of(tmp_path, Reply(body={"resources": resources}), Reply(body={"resources": resources})) as found:
        kube, api, _ = found
        assert kube.ref("x.io/v1", "Widget", "w", "n").kind.path("n", "w") == "/apis/x.io/v1/namespaces/n/widgets/w"
        kube.ref("x.io/v1", "Widget", "w", "n")
        assert len(api.requests) == 1
        with pytest.raises(errors.NotFound, match="has no kind Gadget in x"):
            kube.ref("x.io/v1", "Gadget", "g")


def test_a_kind_that_came_after_its_group_was_discovered(tmp_path: Path) -> None:
    """Discovery names a new CustomResourceDefinition a moment after it is established."""
    widget = {"name": "widgets", "kind": "Widget", "namespaced": True}
    gadget = {"name": "gadgets", "kind": "Gadget", "namespaced": True}
    older, newer = ({"resources": resources} for resources in ([widget], [widget, gadget]))
    with client_of(tmp_path, Reply(200, older), Reply(200, older), Reply(200, newer)) as (client, api, _):
        assert client.kind("example.com/v1", "Widget").plural == "widgets"
        with pytest.raises(errors.NotFound, match="install the CustomResourceDefinition first"):
            client.kind("example.com/v1", "Gadget")
        assert client.kind("example.com/v1", "Gadget").plural == "gadgets"
        assert client.kind("example.com/v1", "Widget").plural == "widgets"
    assert len(api.requests) == 3


def test_events_come_newest_last(tmp_path: Path) -> None:
    items = [
        {"metadata": {"name": "b"}, "lastTimestamp": "2026-01-02T00:00:00Z"},
        {"metadata": {"name": "c", "creationTimestamp": "2026-01-03T00:00:00Z"}},
        {"metadata": {"name": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z"},
    ]
    with client_of(tmp_path, Reply(body={"items": items, "metadata": {}})) as (kube, api, _):
        assert [event["metadata"]["name"] for event in kube.events("d", uid="u")] == ["a", "b", "c"]
        assert "involvedObject.uid%3Du" in api.requests[0].path


def test_logs_are_text(tmp_path: Path) -> None:
    with client_of(tmp_path, Reply(body=b"PASSED\n")) as (kube, api, _):
        assert kube.read_log("d", "p", "c", tail_lines=3) == "PASSED\n"
        assert api.requests[0].path == "/api/v1/namespaces/d/pods/p/log?tailLines=3&container=c"


def test_the_hook_keeps_one_client_per_cluster() -> None:
    access = ClusterAccess("kubeconfig", None, None, None, path="/x")
    assert KubernetesHook(access).client() is KubernetesHook(ClusterAccess.from_json(access.to_json())).client()
    assert (
        KubernetesHook(ClusterAccess("kubeconfig", None, None, None, path="/y")).client()
        is not KubernetesHook(access).client()
    )


def test_attempts_that_hang_use_up_the_retry_budget(tmp_path: Path) -> None:
    """A server that is silent until the read times out, again and again: not only the pauses count."""
    now = [0.0]

    def answer(_: object) -> Reply:
        now[0] += 8.0  # what each attempt took, by the client's clock
        return status(503, "busy")

    with serving(ScriptedApi(answer=answer)) as api:
        path = api.kubeconfig(tmp_path, token="t0")
        access = ClusterAccess("kubeconfig", None, None, None, path=str(path))
        kube = KubeClient(access, sleep=lambda _: None, monotonic=lambda: now[0])
        with pytest.raises(errors.ApiUnavailable, match="busy"):
            kube.get(REF)
        assert len(api.requests) == 3
