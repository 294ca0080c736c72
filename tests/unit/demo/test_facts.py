"""What the demo's report says about Helm releases."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

from demo.facts import releases


class FakeKubectl:
    """Answers ``get`` from a dictionary."""

    def __init__(self, **objects: list[dict[str, Any]]) -> None:
        self.objects = objects

    def get(self, kind: str, *_options: str) -> list[dict[str, Any]]:
        return self.objects.get(kind, [])


def secret(revision: int, version: str, status: str) -> dict[str, Any]:
    payload = json.dumps({"chart": {"metadata": {"name": "tiny", "version": version}}}).encode()
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
