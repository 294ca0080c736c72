"""Helm's storage: what is read from Secrets, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from gpu_fleet.core.releases import storage
from gpu_fleet.core.releases.storage import ReleaseStatus, StorageUnreadable


def secret(number: int = 1, status: str = "deployed", **payload: Any) -> dict[str, Any]:
    release = {"name": "plugin", "info": {"status": status}, "manifest": "", "version": number, **payload}
    return {
        "metadata": {
            "name": f"sh.helm.release.v1.plugin.v{number}",
            "uid": f"uid-{number}",
            "resourceVersion": "7",
            "labels": {
                "name": "plugin", "owner": "helm", "status": status, "version": str(number), "modifiedAt": "1700000000",
                storage.LABEL_DIGEST: "abc",
            },
        },
        "type": storage.SECRET_TYPE,
        "data": {"release": storage.encode_payload(release)},
    }  # fmt: skip


def test_revisions_come_oldest_first_and_by_number() -> None:
    found = storage.parse_revisions([secret(10), secret(9, "superseded"), secret(2, "superseded")], "plugin")
    assert [item.revision for item in found] == [2, 9, 10]
    assert found[-1].status is ReleaseStatus.DEPLOYED
    assert (found[-1].uid, found[-1].digest, found[-1].modified) == ("uid-10", "abc", 1700000000.0)


def test_secrets_of_other_releases_and_strangers_are_ignored() -> None:
    other = secret()
    other["metadata"]["name"] = "sh.helm.release.v1.plugin-two.v1"
    stranger = {"metadata": {"name": "my-secret", "labels": {"name": "plugin", "owner": "helm"}}}
    assert storage.parse_revisions([other, stranger], "plugin") == ()


@pytest.mark.parametrize("word", ["", "odd", "Deployed"])
def test_a_status_that_helm_does_not_define_is_unknown(word: str) -> None:
    assert storage.parse_status(word) is ReleaseStatus.UNKNOWN


def test_payload_goes_round() -> None:
    assert storage.decode_payload(secret(3, note="ü"))["note"] == "ü"


def test_payload_without_gzip_is_read_too() -> None:
    raw = json.dumps({"info": {"status": "failed"}}).encode()
    value = {"metadata": {"name": "s"}, "data": {"release": base64.b64encode(base64.b64encode(raw)).decode()}}
    assert storage.payload_status(storage.decode_payload(value)) is ReleaseStatus.FAILED


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"release": ""},
        {"release": "%%%"},
        {"release": base64.b64encode(b"%%%").decode()},
        {"release": base64.b64encode(base64.b64encode(gzip.compress(b"{}")[:9])).decode()},
        {"release": base64.b64encode(base64.b64encode(gzip.compress(b"not json"))).decode()},
        {"release": base64.b64encode(base64.b64encode(gzip.compress(b"[]"))).decode()},
        {"release": base64.b64encode(base64.b64encode(gzip.compress(b"{}"))).decode()},
    ],
    ids=["no data", "no key", "empty", "not base64", "not base64 twice", "cut", "not JSON", "a list", "no info"],
)
def test_an_undecodable_payload_is_refused_by_name(data: Any) -> None:
    with pytest.raises(StorageUnreadable, match=r"sh\.helm\.release\.v1\.plugin\.v1"):
        storage.decode_payload({"metadata": {"name": "sh.helm.release.v1.plugin.v1"}, "data": data})


def test_unlocking_changes_payload_and_label_and_keeps_the_version_for_compare_and_swap() -> None:
    locked = secret(4, "pending-upgrade", config={"a": 1})
    unlocked = storage.with_status(locked, ReleaseStatus.FAILED, "died")
    release = storage.decode_payload(unlocked)
    assert storage.payload_status(release) is ReleaseStatus.FAILED
    assert release["config"] == {"a": 1}
    assert unlocked["metadata"]["labels"]["status"] == "failed"
    assert unlocked["metadata"]["resourceVersion"] == "7"
    assert locked["metadata"]["labels"]["status"] == "pending-upgrade"
