from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import aiohttp
import pytest

from sandbox.apiserver import Running, User, running
from sandbox.pki import Pki
from sandbox.settings import Settings
from tests.sandbox.apiserver.builders import MAPS, PODS, binding, config_map, pod
from tests.sandbox.apiserver.client import Api, connect


async def tokens(token: str) -> User | None:
    known = {"admin-token": User("admin", ("system:masters",)), "low-token": User("low")}
    return known.get(token)


async def test_no_credentials(cluster: Running, tmp_path: Path) -> None:
    anonymous = cluster.pki.write_kubeconfig(tmp_path / "k", cluster.url, token="")
    async with connect(anonymous) as api:
        reply = await api.get("/api/v1/pods")
    assert (reply.code, reply.reason, reply.message) == (401, "Unauthorized", "Unauthorized")


async def test_bearer_tokens(tmp_path: Path) -> None:
    async with running(tmp_path, authenticator=tokens) as cluster:
        plain = cluster.pki.write_kubeconfig(tmp_path / "k", cluster.url, token="x")
        async with connect(plain) as api:
            answers = {
                token: (await api.get("/api/v1/pods", Authorization=f"Bearer {token}")).code
                for token in ("admin-token", "low-token", "expired")
            }
    assert answers == {"admin-token": 200, "low-token": 403, "expired": 401}


async def test_not_allowed(cluster: Running) -> None:
    async with connect(cluster.kubeconfig_for("low")) as api:
        reply = await api.get("/api/v1/pods")
        inside = await api.get(f"{PODS}/x")
        discovery = await api.get("/apis")
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == (
        'pods is forbidden: User "low" cannot list resource "pods" in API group "" at the cluster scope'
    )
    assert inside.message == (
        'pods "x" is forbidden: User "low" cannot get resource "pods" in API group "" in the namespace "default"'
    )
    assert discovery.code == 200


async def test_a_certificate_of_another_authority(cluster: Running, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "other").client("admin", ("system:masters",))
    document = cluster.kubeconfig.read_text()
    config = json.loads(document)
    config["users"][0]["user"] = {
        "client-certificate-data": base64.b64encode(stranger.certificate).decode(),
        "client-key-data": base64.b64encode(stranger.key).decode(),
    }
    path = tmp_path / "stranger.kubeconfig"
    path.write_text(json.dumps(config))
    async with connect(path) as api:
        with pytest.raises(aiohttp.ClientError):
            await api.get("/api/v1/pods")


async def test_a_role_in_one_namespace(cluster: Running, api: Api) -> None:
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    await api.post(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": rules})
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "Group", "name": "team", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    assert (await api.post(f"{rbac}/rolebindings", binding)).code == 201
    async with connect(cluster.kubeconfig_for("dev", ("team",))) as dev:
        codes = [
            (await dev.get(MAPS)).code,
            (await dev.get("/api/v1/namespaces/kube-system/configmaps")).code,
            (await dev.post(MAPS, config_map("a"))).code,
        ]
    assert codes == [200, 403, 403]


async def test_reviews(cluster: Running, api: Api) -> None:
    path = "/apis/authorization.k8s.io/v1"
    asked = {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}}
    mine = await api.post(f"{path}/selfsubjectaccessreviews", {"spec": asked})
    theirs = await api.post(f"{path}/subjectaccessreviews", {"spec": {**asked, "user": "low"}})
    assert (mine.code, mine.body["status"]) == (201, {"allowed": True})
    assert theirs.body["status"] == {"allowed": False}
    async with connect(cluster.kubeconfig_for("low")) as low:
        own = await low.post(f"{path}/selfsubjectaccessreviews", {"spec": asked})
    assert own.body["status"] == {"allowed": False}


async def test_token_of_a_service_account(cluster: Running, api: Api, tmp_path: Path) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    await api.post(accounts, {"metadata": {"name": "robot"}})
    issued = await api.post(f"{accounts}/robot/token", {"spec": {"expirationSeconds": 600}})
    assert issued.code == 201
    config = cluster.pki.write_kubeconfig(tmp_path / "robot", cluster.url, token=issued.body["status"]["token"])
    async with connect(config) as robot:
        headers = {"Authorization": f"Bearer {issued.body['status']['token']}"}
        reply = await robot.get("/api/v1/pods", **headers)
    assert reply.code == 403
    assert 'User "system:serviceaccount:default:robot"' in reply.message


async def test_impersonation_by_an_administrator_only(cluster: Running, api: Api) -> None:
    assert (await api.get("/api/v1/pods", Impersonate_User="low")).code == 403
    async with connect(cluster.kubeconfig_for("low")) as low:
        reply = await low.get("/api/v1/pods", Impersonate_User="admin", Impersonate_Group="system:masters")
    assert reply.message == (
        'users "admin" is forbidden: User "low" cannot impersonate resource "users" in API group "" '
        "at the cluster scope"
    )


async def test_impersonation_is_refused_by_the_first_mode_of_1_36(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", kubernetes_version="1.36")
    async with (
        running(settings.state_dir, settings=settings) as cluster,
        connect(cluster.kubeconfig_for("low")) as low,
    ):
        reply = await low.get(PODS, Impersonate_User="somebody")
        account = await low.get(f"{PODS}/p", Impersonate_User="system:serviceaccount:default:robot")
        nameless = await low.get(PODS, Impersonate_Group="system:masters")
    assert (reply.code, reply.message) == (
        403,
        'pods is forbidden: User "low" cannot impersonate-on:user-info:list resource "pods" in API group "" in the '
        'namespace "default"',
    )
    assert account.message == (
        'pods "p" is forbidden: User "low" cannot impersonate-on:serviceaccount:get resource "pods" in API group "" in '
        'the namespace "default"'
    )
    assert (nameless.code, nameless.reason) == (400, "BadRequest")
    assert nameless.message.endswith("without impersonating a user name")


async def test_a_group_needs_a_permission_of_its_own(cluster: Running, api: Api) -> None:
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    rule = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}
    await api.post(f"{rbac}/clusterroles", {"metadata": {"name": "act"}, "rules": [rule]})
    subjects = [{"kind": "User", "name": "low", "apiGroup": "rbac.authorization.k8s.io"}]
    role = {"kind": "ClusterRole", "name": "act", "apiGroup": "rbac.authorization.k8s.io"}
    await api.post(f"{rbac}/clusterrolebindings", {"metadata": {"name": "act"}, "subjects": subjects, "roleRef": role})
    async with connect(cluster.kubeconfig_for("low")) as low:
        alone = await low.get("/apis", Impersonate_User="other")
        reply = await low.get("/apis", Impersonate_User="other", Impersonate_Group="team")
    assert alone.code == 200
    assert reply.message == (
        'groups "team" is forbidden: User "low" cannot impersonate resource "groups" in API group "" '
        "at the cluster scope"
    )


async def test_kubelets_hand_in_logs(cluster: Running, api: Api) -> None:
    await api.post(PODS, pod("p"))
    await api.post(f"{PODS}/p/binding", binding("p", "n1"))
    waiting = await api.get(f"{PODS}/p/log")
    async with connect(cluster.kubeconfig_for("system:node:n1", ("system:nodes",))) as kubelet:
        assert (await kubelet.call("PUT", f"{PODS}/p/log", b"one\ntwo\nthree\n")).code == 200
    async with connect(cluster.kubeconfig_for("low")) as low:
        assert (await low.call("PUT", f"{PODS}/p/log", b"forged")).code == 403
    log = await api.get(f"{PODS}/p/log?tailLines=2&container=main")
    assert waiting.message == 'container "main" in pod "p" is waiting to start: ContainerCreating'
    assert (log.text, log.headers["Content-Type"].split(";")[0]) == ("two\nthree\n", "text/plain")


async def test_request_counts_prove_that_nothing_was_written(cluster: Running, api: Api) -> None:
    before = cluster.server.requests(writes=True)
    await asyncio.gather(*(api.get(MAPS, User_Agent="reader/1") for _ in range(3)))
    assert cluster.server.requests(writes=True) == before
    assert cluster.server.requests(verb="list", resource="configmaps", user_agent="reader") == 3
    await api.post(MAPS, config_map("a"))
    assert cluster.server.requests(writes=True) == before + 1
