"""Rendering before anything is written: what is certain without the cluster, and what only the cluster knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import Invalid
from gpu_fleet.core.releases.request import ChartRef, ReleaseRequest
from gpu_fleet.hooks.helm.binary.process import Finished
from gpu_fleet.hooks.helm.preparation import check_rendering, unknown_kinds

REQUEST = ReleaseRequest("tiny", "ns", ChartRef("/tiny"))
SCHEMA = "Error: values don't meet the specifications of the schema(s) in the following chart(s):\ntiny:"
ASKS = "Error: execution error at (tiny/templates/a.yaml:2:4): You have to deploy monitoring.coreos.com/v1 first"
LOCKED = "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress"


class FakeHelm:
    """Answers with a complaint, or with a manifest where there is none."""

    def __init__(self, alone: str, in_cluster: str) -> None:
        self._alone, self._in_cluster = alone, in_cluster
        self.in_cluster: list[str] = []
        self.rendered = "kind: ConfigMap"

    def run(self, arguments: Sequence[str], **_options: Any) -> Finished:
        return self._answer(self._alone)

    def run_in_cluster(self, arguments: Sequence[str], **options: Any) -> Finished:
        assert options["quiet"], "the manifest would be in the log"
        self.in_cluster = list(arguments)
        return self._answer(self._in_cluster)

    def _answer(self, stderr: str) -> Finished:
        return Finished(1 if stderr else 0, "" if stderr else self.rendered, stderr, "", 0.1)


class FakeClient:
    def raw(self, *_arguments: str) -> dict[str, str]:
        return {"gitVersion": "v1.36.0-eks-1"}


def check(alone: str, in_cluster: str = "") -> tuple[str, FakeHelm]:
    helm = FakeHelm(alone, in_cluster)
    rendered = check_rendering(FakeClient(), REQUEST, helm, Path("/tiny"), Path("/values"))  # type: ignore[arg-type]
    return rendered, helm


def test_a_chart_that_renders_alone_needs_no_cluster() -> None:
    rendered, helm = check("")
    assert (rendered, helm.in_cluster) == ("kind: ConfigMap", [])


def test_values_against_the_schema_are_refused_without_the_cluster() -> None:
    with pytest.raises(Invalid) as caught:
        check(SCHEMA)
    assert caught.value.reason == "ValuesSchema"


def test_a_chart_that_asks_the_cluster_is_refused_only_by_its_answer() -> None:
    rendered, helm = check(ASKS)
    assert rendered == ""
    assert "--dry-run=server" in helm.in_cluster
    assert "--hide-secret" in helm.in_cluster
    with pytest.raises(Invalid, match=r"monitoring\.coreos\.com/v1"):
        check(ASKS, ASKS)


def test_a_question_that_cannot_be_put_is_left_to_the_upgrade() -> None:
    assert check(ASKS, LOCKED)[0] == ""


STRANGER = "---\n# Source: a\napiVersion: x.example.com/v1\nkind: Stranger\nmetadata: {name: a}\n"
#: What is left of an object whose beginning was cut off.
TAIL = '"quantity"\n  - {a: 1\nmetadata: [\n'


class Known(FakeClient):
    """A cluster that has no foreign kind."""

    def kinds(self, api_version: str) -> list[Any]:
        return []

    def versions(self, group: str) -> list[str]:
        return []


@pytest.mark.parametrize("manifest", [STRANGER, TAIL + STRANGER], ids=["whole", "its beginning was cut off"])
def test_kinds_that_the_cluster_lacks_are_named_also_of_a_manifest_without_its_beginning(manifest: str) -> None:
    helm = FakeHelm("", "")
    helm.rendered = manifest
    rendered = check_rendering(Known(), REQUEST, helm, Path("/tiny"), Path("/values"))  # type: ignore[arg-type]
    assert unknown_kinds(Known(), rendered) == ("Stranger (x.example.com/v1)",)  # type: ignore[arg-type]


def test_a_manifest_that_cannot_be_read_names_no_kinds() -> None:
    assert unknown_kinds(Known(), TAIL) == ()  # type: ignore[arg-type]
