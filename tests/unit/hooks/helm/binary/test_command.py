"""Helm's command line and its private folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_fleet.core.releases.helm.output import HelmVersion
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.hooks.helm.binary.command import rollback_arguments, upgrade_arguments

HELM_4, HELM_3 = HelmVersion(4, 2, 3), HelmVersion(3, 17, 2)


def both_changes(conflicts: str, version: HelmVersion) -> tuple[list[str], list[str]]:
    """The arguments of an upgrade and of a rollback."""
    policy = ReleasePolicy(conflicts=conflicts)  # type: ignore[arg-type]
    request = ReleaseRequest("tiny", "ns", ChartRef("/tiny"), {}, policy)
    upgrade = upgrade_arguments(request, Path("/tiny"), Path("/values"), version, history=10)
    return upgrade, rollback_arguments(request, 1, version, history=10)


def test_conflicts_are_forced_on_the_server_also_where_helm_3_applied_from_the_client() -> None:
    for arguments in both_changes("force", HELM_4):
        place = arguments.index("--force-conflicts")
        assert arguments[place - 1] == "--server-side=true"


@pytest.mark.parametrize(
    ("conflicts", "version"), [("fail", HELM_4), ("fail", HELM_3), ("force", HELM_3)], ids=lambda value: str(value)
)
def test_no_other_change_says_how_to_apply(conflicts: str, version: HelmVersion) -> None:
    for arguments in both_changes(conflicts, version):
        assert not [item for item in arguments if "server-side" in item or "conflicts" in item]
