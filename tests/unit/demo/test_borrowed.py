"""Somebody else's API server: what keeps the demo away from it, and what of it is the demo's."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.belongings import CLOUD, CLOUD_OF_DEMO, Thing, belonging
from demo.borrowed import Borrowed, Cleaned, has_controllers, refusals
from demo.saved import saved_kubeconfig
from demo.stack import ROOT, Stack, StackError

Json = dict[str, Any]
REMEDY = "make demo-clean"
NODE_LABELS = {CLOUD: CLOUD_OF_DEMO}


def thing(api: str, kind: str, name: str, namespace: str = "", **more: Any) -> Json:
    meta: Json = {"name": name, "uid": f"uid-{kind}-{namespace}-{name}", **more.pop("meta", {})}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": api, "kind": kind, "metadata": meta, **more}


def node(name: str, *, ours: bool = False, cordoned: bool = False) -> Json:
    labels = NODE_LABELS if ours else {}
    return thing("v1", "Node", name, meta={"labels": labels}, spec={"unschedulable": True} if cordoned else {})


def told(*items: Json) -> str:
    return "; ".join(refusals(map(Thing.of, items), REMEDY))


OTHERS = [
    thing("v1", "Namespace", "team-a"),
    thing("v1", "ConfigMap", "kube-root-ca.crt", "team-a"),
    thing("apps/v1", "Deployment", "coredns", "kube-system", meta={"labels": {"app.kubernetes.io/instance": "dns"}}),
    thing("node.k8s.io/v1", "RuntimeClass", "gvisor"),
    thing("v1", "Secret", "sh.helm.release.v1.web.v1", "team-a", meta={"labels": {"owner": "helm", "name": "web"}}),
    thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "foos.example.com"),
    node("worker", cordoned=True),
    thing("v1", "Pod", "theirs", "team-a", spec={"nodeName": "worker"}),
]


def test_server_with_other_things_only_is_used() -> None:
    assert told(*OTHERS) == ""
    assert belonging(map(Thing.of, OTHERS)) == []


@pytest.mark.parametrize(
    "item",
    [
        thing("karpenter.sh/v1", "NodePool", "theirs"),
        thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "nodepools.karpenter.sh"),
        thing("v1", "Namespace", "gpu-fleet-system"),
        thing("v1", "Namespace", "nvidia-device-plugin"),
        thing("node.k8s.io/v1", "RuntimeClass", "nvidia"),
        thing("rbac.authorization.k8s.io/v1", "ClusterRole", "karpenter", meta={"labels": {
            "app.kubernetes.io/instance": "karpenter"
        }}),
        thing("v1", "Secret", "sh.helm.release.v1.karpenter.v1", "kube-system", meta={"labels": {
            "owner": "helm", "name": "karpenter"
        }}),
    ],
    ids=lambda item: f"{item['kind']} {item['metadata']['name']}",
)  # fmt: skip
def test_server_that_holds_what_the_demo_would_make_is_refused_and_the_object_named(item: Json) -> None:
    refusal = told(*OTHERS, item)
    assert item["metadata"]["name"] in refusal
    assert "use a cluster without Karpenter" in refusal


def test_node_that_takes_pods_is_refused_with_the_command_that_helps() -> None:
    assert "kubectl cordon kind-control-plane" in told(node("kind-control-plane"))
    assert told(node("kind-control-plane", cordoned=True)) == ""


def test_former_demo_that_left_something_is_told_apart_from_a_real_installation() -> None:
    data = {"by": "ada@laptop", "since": "2026-01-01T00:00:00+00:00"}
    mark = thing("v1", "ConfigMap", "gpu-fleet-demo", "kube-system", data=data)
    refusal = told(mark, thing("v1", "Namespace", "gpu-fleet-system"), node("ip-10-0-0-4", ours=True))
    assert "ada@laptop" in refusal
    assert refusal.endswith(REMEDY)


def test_everything_on_the_sandboxs_nodes_goes_and_nodes_go_after_their_pods() -> None:
    items = [
        *OTHERS,
        node("ip-10-0-0-4", ours=True),
        thing("v1", "Pod", "kindnet-x", "kube-system", spec={"nodeName": "ip-10-0-0-4"}),
        thing("coordination.k8s.io/v1", "Lease", "ip-10-0-0-4", "kube-node-lease"),
        thing("coordination.k8s.io/v1", "Lease", "worker", "kube-node-lease"),
        thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "nodeclaims.karpenter.sh"),
        thing("v1", "Namespace", "training"),
        thing("apps/v1", "Deployment", "trainer", "training"),
        thing("v1", "ConfigMap", "gpu-fleet-release-karpenter", "kube-system", meta={"labels": {
            "gpu-fleet.io/component": "ledger"
        }}),
    ]  # fmt: skip
    assert [each.name for each in belonging(map(Thing.of, items))] == [
        "Namespace training",
        "Deployment training/trainer",
        "ConfigMap kube-system/gpu-fleet-release-karpenter",
        "Lease kube-node-lease/ip-10-0-0-4",
        "Pod kube-system/kindnet-x",
        "Node ip-10-0-0-4",
        "CustomResourceDefinition nodeclaims.karpenter.sh",
    ]


@pytest.mark.parametrize(
    ("renewed", "expected"),
    [("2026-01-01T00:00:50.000000Z", True), ("2025-12-31T00:00:00.000000Z", False), (None, False)],
)
def test_controllers_are_recognised_by_a_lease_that_is_renewed(renewed: str | None, expected: bool) -> None:
    """envtest has none; a control plane that was restored from a backup has an old one."""
    now = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    spec = {"renewTime": renewed} if renewed else {}
    lease = thing("coordination.k8s.io/v1", "Lease", "kube-controller-manager", "kube-system", spec=spec)
    assert has_controllers([Thing.of(lease)], now) is expected
    assert not has_controllers([], now)


# --- what is done there ----------------------------------------------------------------------------------------------
class Server:
    """Stands for kubectl: objects by address; a deletion happens at once unless a finalizer is in its way."""

    def __init__(self, *items: Json) -> None:
        self.items = {Thing.of(item).address: item for item in items}
        self.calls: list[tuple[str, ...]] = []

    def run(self, *args: str, stdin: str | None = None) -> str:
        self.calls.append(args)
        if args[0] == "api-resources":
            return "pods\nnodes\nevents\npods.metrics.k8s.io\n"
        if args[0] == "create":
            item = json.loads(stdin or "")
            address = Thing.of(item).address
            if address in self.items:
                raise RuntimeError("AlreadyExists")
            self.items[address] = {**item, "metadata": {**item["metadata"], "uid": "mark"}}
        if args[0] == "delete" and args[1] == "configmap":
            self.items.pop(("configmap", args[2], "-n", args[4]), None)
        return ""

    def run_quietly(self, *args: str) -> str:
        self.calls.append(args)
        if args[0] == "auth":
            return "yes\n"
        address = tuple(args[1:5]) if "-n" in args[:5] else tuple(args[1:3])
        item = self.items.get(address)
        if item is not None and args[0] == "patch":
            item["metadata"].pop("finalizers", None)
        if item is not None and args[0] == "delete" and not item["metadata"].get("finalizers"):
            del self.items[address]
        return ""

    def get(self, what: str, *args: str) -> list[Json]:
        if what == "configmap":
            found = self.items.get(("configmap", args[0], "-n", args[2]))
            return [found] if found else []
        assert what == "pods,nodes"
        return list(self.items.values())


def borrowed(server: Server, tmp_path: Path) -> Borrowed:
    return Borrowed(tmp_path / "config", server, "https://127.0.0.1:6443", "1.34")  # type: ignore[arg-type]


def test_what_the_demo_made_is_removed_and_nothing_else(tmp_path: Path) -> None:
    server = Server(*OTHERS)
    mine = borrowed(server, tmp_path)
    mine.claim()
    for item in (
        thing("karpenter.sh/v1", "NodeClaim", "stuck", meta={"finalizers": ["karpenter.sh/termination"]}),
        thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "nodeclaims.karpenter.sh"),
        thing("v1", "Namespace", "training"),
        node("ip-10-0-0-4", ours=True),
    ):
        server.items[Thing.of(item).address] = item
    cleaned = mine.clean()
    assert (cleaned.left, cleaned.gone, cleaned.before) == ([], [], len(OTHERS))
    assert len(cleaned.removed) == 4
    assert list(server.items.values()) == OTHERS
    assert f"the {len(OTHERS)} objects from before the demo are all there" in cleaned.text


def test_second_demo_on_the_same_server_is_refused_and_the_first_ones_mark_stays(tmp_path: Path) -> None:
    server = Server(*OTHERS)
    borrowed(server, tmp_path).claim()
    with pytest.raises(StackError, match=r"a demo of .+ has been there since"):
        borrowed(server, tmp_path).claim()
    assert ("configmap", "gpu-fleet-demo", "-n", "kube-system") in server.items


def test_clean_does_nothing_where_no_demo_has_been(tmp_path: Path) -> None:
    """It may be a production cluster that runs gpu-fleet."""
    server = Server(thing("karpenter.sh/v1", "NodePool", "theirs"), thing("v1", "Namespace", "gpu-fleet-system"))
    with pytest.raises(StackError, match="no demo has been on"):
        borrowed(server, tmp_path).clean()
    assert not [call for call in server.calls if call[0] in ("delete", "patch")]


def test_what_is_left_and_what_is_missing_is_said() -> None:
    text = Cleaned(["Pod a"], ["Node b"], 7, ["Secret team-a/s"]).text
    assert "LEFT there: Node b" in text
    assert "the 7 objects from before the demo are there but for Secret team-a/s" in text


def test_cluster_file_reaches_the_server_by_its_kubeconfig(tmp_path: Path) -> None:
    file = tmp_path / "demo.yaml"
    file.write_text((ROOT / "include" / "clusters" / "demo.yaml").read_text())
    borrowed(Server(), tmp_path).write_spec(file)
    cluster = yaml.safe_load(file.read_text())["cluster"]
    assert cluster == {
        "name": "demo-gpu",
        "version": "1.34",
        "access": {"mode": "kubeconfig", "path": str(tmp_path / "config")},
    }


@pytest.mark.parametrize(
    ("user", "message"), [(None, "there is no kubeconfig"), ({"exec": {"command": "aws"}}, "credential plugin")]
)
def test_kubeconfig_that_the_sandbox_cannot_use_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: Json | None, message: str
) -> None:
    path = tmp_path / "config"
    if user is not None:
        path.write_text("")
    answers = {
        "version": {"serverVersion": {"major": "1", "minor": "34+"}},
        "config": {"users": [{"user": user}], "clusters": [{"cluster": {"server": "https://x"}}]},
    }
    monkeypatch.setattr("demo.kubectl.Kubectl.run", lambda _self, *args, **_: json.dumps(answers[args[0]]))
    with pytest.raises(StackError, match=message):
        Borrowed.open(path, tmp_path / "home")


def test_context_that_is_switched_meanwhile_leads_nobody_to_another_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("")
    answers = {
        "version": {"serverVersion": {"major": "1", "minor": "34+"}},
        "config": {"users": [{"user": {"token": "t"}}], "clusters": [{"cluster": {"server": "https://x"}}]},
    }
    monkeypatch.setattr("demo.kubectl.Kubectl.run", lambda _self, *args, **_: json.dumps(answers[args[0]]))
    found = Borrowed.open(tmp_path / "config", tmp_path / "home")
    assert (found.version, found.server, found.given) == ("1.34", "https://x", tmp_path / "config")
    assert found.cluster()["access"]["path"] == str(found.kubeconfig) == str(tmp_path / "borrowed.kubeconfig")
    assert found.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert json.loads(found.kubeconfig.read_text()) == answers["config"]


def test_make_down_knows_which_server_to_clean(tmp_path: Path) -> None:
    assert saved_kubeconfig(tmp_path) is None
    Stack(build_dir=tmp_path, speed=1.0, kubeconfig=Path("/etc/config"))._save()
    assert saved_kubeconfig(tmp_path) == Path("/etc/config")
    Stack(build_dir=tmp_path, speed=1.0)._save()
    assert saved_kubeconfig(tmp_path) is None
