"""What the demo's report says about Helm releases."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from demo.facts import releases, rollback, rollback_text


class FakeKubectl:
    """Answers ``get`` from a dictionary."""

    def __init__(self, **objects: list[dict[str, Any]]) -> None:
        self.objects = objects

    def get(self, kind: str, *_options: str) -> list[dict[str, Any]]:
        return self.objects.get(kind, [])


def secret(revision: int, version: str, status: str, description: str = "") -> dict[str, Any]:
    content = {"chart": {"metadata": {"name": "tiny", "version": version}}, "info": {"description": description}}
    payload = json.dumps(content).encode()
    stored = base64.b64encode(base64.b64encode(gzip.compress(payload))).decode()
    labels = {"owner": "helm", "name": "web", "version": str(revision), "status": status}
    return {"metadata": {"namespace": "apps", "labels": labels}, "data": {"release": stored}}


def test_newest_revision_with_its_chart_and_proof() -> None:
    proven = {"revision": 1, "digest": "d1", "run": "gpu_lifecycle.demo/one"}
    ledger = {
        "metadata": {"namespace": "apps", "name": "gpu-fleet-release-web"},
        "data": {"proven": json.dumps(proven)},
    }
    kubectl = FakeKubectl(
        secrets=[secret(2, "0.2.0", "deployed"), secret(1, "0.1.0", "superseded")], configmaps=[ledger]
    )
    assert releases(kubectl) == [  # type: ignore[arg-type]
        {
            "namespace": "apps",
            "name": "web",
            "chart": "tiny-0.2.0",
            "revision": 2,
            "status": "deployed",
            "proven_revision": 1,
            "proven_digest": "d1",
            "proven_by": "gpu_lifecycle.demo/one",
        }
    ]


def test_rollback_is_told_with_what_was_given_up_what_came_back_and_its_new_number() -> None:
    revisions = [
        secret(9, "0.1.0", "superseded", "Upgrade complete"),
        secret(11, "0.1.0", "deployed", "Rollback to 9"),
        secret(10, "0.2.0", "superseded", "Upgrade complete"),
    ]
    found = rollback(FakeKubectl(secrets=revisions), "web")  # type: ignore[arg-type]
    assert found == {"release": "web", "from": 10, "to": 9, "as": 11}
    assert rollback_text(found) == (
        "release web was rolled back from revision 10 to the content of revision 9, now revision 11"
    )


@pytest.mark.parametrize(
    "revisions",
    [
        [],
        [secret(1, "0.1.0", "deployed", "Install complete")],
        [secret(1, "0.1.0", "superseded"), secret(2, "0.2.0", "failed", "Upgrade failed: Rollback to 1 is advised")],
    ],
)
def test_without_a_rollback_the_line_says_so(revisions: list[dict[str, Any]]) -> None:
    found = rollback(FakeKubectl(secrets=revisions), "web")  # type: ignore[arg-type]
    assert found is None
    assert rollback_text(found) == "NO rollback took place"
