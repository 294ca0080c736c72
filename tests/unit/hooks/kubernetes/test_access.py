from __future__ import annotations

import base64
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.errors import NotFound, SpecError
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.kubernetes import access as kubernetes_access
from gpu_fleet.hooks.kubernetes.access import ClusterAccess, resolve
from gpu_fleet.hooks.kubernetes.credentials import TOKEN_FILE_TTL_S, TokenFile
from gpu_fleet.hooks.kubernetes.kubeconfig import Kubeconfig
from gpu_fleet.hooks.kubernetes.transport import proxy_for
from sandbox.pki import Pki


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def access(path: Path | None, context: str | None = None) -> ClusterAccess:
    return ClusterAccess("kubeconfig", None, None, None, path=str(path) if path else None, context=context)


def edited(path: Path, **changes: Any) -> Path:
    """A kubeconfig whose user, cluster or top level is changed."""
    config = yaml.safe_load(path.read_text())
    config["users"][0]["user"] |= changes.pop("user", {})
    config["clusters"][0]["cluster"] |= changes.pop("cluster", {})
    path.write_text(yaml.safe_dump(config | changes))
    return path


def test_access_is_json_without_credentials() -> None:
    found = ClusterAccess.from_spec(load_cluster("demo"))
    assert found == ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")
    assert ClusterAccess.from_json(found.to_json()) == found
    assert "EKS cluster 'demo-gpu' in us-west-2" in str(found)


def test_a_client_certificate_leaves_no_file_behind(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    endpoint = resolve(access(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1/")))
    assert endpoint.server == "https://127.0.0.1:1"
    assert endpoint.credentials.headers() == {}
    assert endpoint.credentials.renew() is False
    assert endpoint.ssl_context is not None
    assert endpoint.ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert os.listdir(scratch) == []


@pytest.mark.parametrize(
    ("part", "entry", "remedy"),
    [
        ("user", {"as": "system:admin"}, "rights that it needs"),
        ("user", {"as-groups": ["system:masters"]}, "these groups"),
        ("user", {"as-uid": "1"}, "kubeconfig of that user"),
        ("user", {"as-user-extra": {"scopes": ["x"]}}, "kubeconfig of that user"),
        ("user", {"username": "admin", "password": "secret-word"}, "certificate or a token"),
        ("cluster", {"proxy-url": "http://proxy.example:3128"}, "HTTPS_PROXY"),
        ("cluster", {"tls-server-name": "other.example"}, "server's certificate"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_helm_would_honour_and_this_client_would_not_is_refused(
    pki: Pki, tmp_path: Path, part: str, entry: dict[str, Any], remedy: str
) -> None:
    path = edited(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1"), **{part: entry})
    with pytest.raises(SpecError, match=f"{part}'s {next(iter(entry))} is not honoured") as caught:
        resolve(access(path))
    assert remedy in caught.value.remedy
    assert "secret-word" not in str(caught.value)


def test_a_token_is_sent_as_bearer(pki: Pki, tmp_path: Path) -> None:
    endpoint = resolve(access(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1", token="t1")))
    assert endpoint.credentials.headers() == {"Authorization": "Bearer t1"}


def test_files_are_found_beside_the_kubeconfig(pki: Pki, tmp_path: Path) -> None:
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1")
    config = yaml.safe_load(path.read_text())
    user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    for entry, key in (
        (user, "client-certificate"),
        (user, "client-key"),
        (cluster, "certificate-authority"),
    ):
        (tmp_path / key).write_bytes(base64.b64decode(entry.pop(f"{key}-data")))
        entry[key] = key
    (tmp_path / "token").write_text("t2\n")
    user["tokenFile"] = "token"
    path.write_text(yaml.safe_dump(config))
    assert resolve(access(path)).credentials.headers() == {"Authorization": "Bearer t2"}


def test_a_tokens_file_is_at_hand_for_a_while_and_then_read_again(tmp_path: Path) -> None:
    now = [0.0]
    token = tmp_path / "token"
    token.write_text("t1\n")
    credentials = TokenFile(token, tmp_path / "k", monotonic=lambda: now[0])
    assert credentials.ready() is None
    assert credentials.headers() == {"Authorization": "Bearer t1"}
    token.write_text("t2\n")
    now[0] += TOKEN_FILE_TTL_S - 1
    assert credentials.ready() == {"Authorization": "Bearer t1"}
    now[0] += 1
    assert credentials.ready() is None
    credentials.headers()
    assert credentials.ready() == {"Authorization": "Bearer t2"}
    assert credentials.renew()
    assert credentials.ready() is None, "what was refused is not sent again"


def test_the_environment_names_the_file_if_the_spec_does_not(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:7")
    monkeypatch.setenv("KUBECONFIG", f"{path}{os.pathsep}/other")
    try:
        assert resolve(access(None)).server == "https://127.0.0.1:7"
    finally:
        kubernetes_access.forget(access(None))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nope"):
        resolve(access(tmp_path / "nope"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": {"exec": {"command": "aws"}}}, "plugin"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, "plugin"),
        ({"current-context": "nope"}, "no context 'nope'"),
        ({"contexts": [{"name": "sandbox", "context": {"cluster": "nope"}}]}, "no cluster 'nope'"),
        ({"cluster": {"server": ""}}, "no server address"),
    ],
)
def test_what_cannot_be_used_is_said(pki: Pki, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = edited(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1"), **changes)
    with pytest.raises(SpecError, match=message):
        resolve(access(path))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("part", "entry", "says"),
    [
        ("cluster", {"certificate-authority-data": "x"}, "certificate-authority-data"),
        ("cluster", {"certificate-authority-data": encoded("no certificate")}, "certificate-authority"),
        ("cluster", {"certificate-authority-data": None, "certificate-authority": "no-ca.crt"}, "no-ca.crt"),
        ("user", {"client-key-data": base64.b64encode(b"\xff").decode()}, "client-key-data"),
        ("user", {"client-key-data": encoded("no key")}, "client-certificate and client-key"),
        ("user", {"client-certificate-data": None, "client-certificate": "."}, "client-certificate"),
    ],
)
def test_material_that_is_missing_or_bad_is_named(
    pki: Pki, tmp_path: Path, part: str, entry: dict[str, Any], says: str
) -> None:
    path = edited(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1"), **{part: entry})
    with pytest.raises(SpecError, match=rf"^cluster\.access\.path: kubeconfig {path}: .*{says}.* \(.+\)$") as caught:
        resolve(access(path))
    assert caught.value.remedy


def test_a_token_file_that_cannot_be_read_is_named(pki: Pki, tmp_path: Path) -> None:
    path = edited(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1"), user={"tokenFile": "no-token"})
    credentials = resolve(access(path)).credentials
    for _ in range(2):
        with pytest.raises(SpecError, match=r"^cluster\.access\.path: kubeconfig .*tokenFile .*no-token"):
            credentials.headers()
        (tmp_path / "no-token").write_bytes(b"\xff")


def test_a_binary_file_is_no_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"cannot read kubeconfig"):
        resolve(access(tmp_path / "k"))


@pytest.mark.parametrize("content", ["", "- a\n", "a: [\n", "just text"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "k"
    path.write_text(content)
    with pytest.raises(SpecError, match="kubeconfig"):
        resolve(access(path))


def test_another_context_can_be_named(pki: Pki, tmp_path: Path) -> None:
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1")
    assert resolve(access(path, "sandbox")).server == "https://127.0.0.1:1"
    with pytest.raises(SpecError, match="no context 'other'"):
        resolve(access(path, "other"))


def test_an_endpoint_is_resolved_once_until_it_is_forgotten(pki: Pki, tmp_path: Path) -> None:
    found = access(pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1"))
    first = resolve(found)
    assert resolve(found) is first
    kubernetes_access.forget(found)
    assert resolve(found) is not first


class Later:
    """The module :mod:`time` after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


@pytest.mark.parametrize("part", ["token", "server", "client certificate"])
def test_a_changed_kubeconfig_is_followed_within_a_minute(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1", token="t1")
    before = path.read_text()
    first = resolve(access(path))
    clock = Later(0.0)
    monkeypatch.setattr(kubernetes_access, "time", clock)
    match part:
        case "token":
            edited(path, user={"token": "t2"})
        case "server":
            edited(path, cluster={"server": "https://127.0.0.1:2"})
        case _:
            other = yaml.safe_load(pki.write_kubeconfig(tmp_path / "other", "https://127.0.0.1:1").read_text())
            edited(path, user=other["users"][0]["user"])
    assert path.read_text() != before
    assert resolve(access(path)) is first, "it is not read for each call"
    clock.seconds = 60.0
    second = resolve(access(path))
    assert second is not first
    assert kubernetes_access.known(access(path)) is second
    clock.seconds = 120.0
    assert resolve(access(path)) is second, "an unchanged kubeconfig keeps its endpoint"


def test_a_kubeconfig_that_cannot_be_read_at_a_check_changes_nothing(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is being replaced, say: nothing shows that it has changed, and what was read still works."""
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1", token="t1")
    first = resolve(access(path))
    path.rename(tmp_path / "away")
    monkeypatch.setattr(kubernetes_access, "time", Later(60.0))
    assert resolve(access(path)) is first


def test_no_secret_is_kept_for_the_comparison(pki: Pki, tmp_path: Path) -> None:
    path = pki.write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1", token="secret-word")
    resolve(access(path))
    assert "secret-word" not in repr(kubernetes_access._cache[access(path)])
    assert "secret-word" not in repr(Kubeconfig.read(str(path), None))


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_for("https://k.example:443") is None
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "k.internal")
    assert proxy_for("https://k.example:443") == "http://proxy:3128"
    assert proxy_for("https://k.internal") is None
