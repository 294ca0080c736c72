"""Protobuf bodies. The encoder here is the test's own; real ones come from helm and kubectl in the other tests."""

from __future__ import annotations

import base64

import pytest

from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.requests.representations import protobuf
from tests.sandbox.apiserver.client import Api

SECRETS = "/api/v1/namespaces/default/secrets"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def text(number: int, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def envelope(api_version: str, kind: str, message: bytes) -> bytes:
    return b"k8s\x00" + text(1, text(1, api_version) + text(2, kind)) + text(2, message)


SECRET = envelope(
    "v1",
    "Secret",
    text(1, text(1, "s") + text(11, text(1, "owner") + text(2, "helm")) + text(8, b""))
    + text(2, text(1, "release") + text(2, b"\x00\xff"))
    + text(3, "helm.sh/release.v1"),
)


async def test_a_secret_as_helm_posts_it(api: Api) -> None:
    reply = await api.call("POST", SECRETS, SECRET, Content_Type=protobuf.CONTENT_TYPE)
    assert reply.code == 201
    assert reply.body["type"] == "helm.sh/release.v1"
    assert reply.body["data"] == {"release": base64.b64encode(b"\x00\xff").decode()}
    assert reply.body["metadata"]["labels"] == {"owner": "helm"}


async def test_delete_options(api: Api) -> None:
    await api.call("POST", SECRETS, SECRET, Content_Type=protobuf.CONTENT_TYPE)
    options = envelope("v1", "DeleteOptions", text(4, "Foreground"))
    reply = await api.call("DELETE", f"{SECRETS}/s", options, Content_Type=protobuf.CONTENT_TYPE)
    assert reply.body["metadata"]["finalizers"] == ["foregroundDeletion"]


async def test_a_kind_without_a_table(api: Api) -> None:
    body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", b"")
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    reply = await api.call("POST", path, body, Content_Type=protobuf.CONTENT_TYPE)
    assert (reply.code, reply.reason) == (415, "UnsupportedMediaType")
    assert "apiextensions.k8s.io/v1, Kind=CustomResourceDefinition" in reply.message


def test_embedded_structs_and_special_types() -> None:
    quantity = text(2, text(1, "cpu") + text(2, text(1, "500m")))
    volume = text(1, text(1, "v") + text(2, text(19, text(1, text(1, "settings")))))
    container = text(2, text(1, "c") + text(8, quantity))
    body = envelope("v1", "Pod", text(2, volume + container + varint(4 << 3) + varint(0)))
    spec = protobuf.decode(body)["spec"]
    assert spec["volumes"] == [{"name": "v", "configMap": {"name": "settings"}}]
    assert spec["containers"][0]["resources"] == {"requests": {"cpu": "500m"}}
    assert spec["terminationGracePeriodSeconds"] == 0


@pytest.mark.parametrize("body", [b"", b"{}", b"k8s\x00\xff\xff\xff", SECRET[:-4]])
def test_malformed(body: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        protobuf.decode(body)
    assert refusal.value.code in (400, 415)
