"""What cluster files of a deployment may name."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.trust import Trust, beyond
from tests.unit.core.specs import demo_spec

NOTIFIER = "my_company.notifiers.Pager"


def fields(trust: Trust, **changes: Any) -> list[str]:
    problems = beyond(trust, demo_spec(**changes))
    assert all(problem.remedy for problem in problems)
    return [problem.field for problem in problems]


def test_the_shipped_cluster_file_needs_nothing_to_be_allowed() -> None:
    assert fields(Trust()) == []


@pytest.mark.parametrize(
    ("prefixes", "path", "taken"),
    [
        (("my_company.notifiers",), NOTIFIER, True),
        (("my_company.",), NOTIFIER, True),
        ((NOTIFIER,), NOTIFIER, True),
        (("my_company.note",), NOTIFIER, False),
        (("airflow.providers",), "airflow.providers_of_mine.Pager", False),
        ((), NOTIFIER, False),
    ],
)
def test_a_prefix_covers_whole_parts_of_a_path(prefixes: tuple[str, ...], path: str, taken: bool) -> None:
    assert Trust(notifiers=prefixes).takes_notifier(path) is taken


@pytest.mark.parametrize(
    ("conn_id", "taken"),
    [("aws_prod", True), ("prod", False), ("AWS_prod", False), ("aws_{{ cluster }}", False), ("aws_prod/x", False)],
)
def test_connections_go_by_pattern_and_are_no_templates(conn_id: str, taken: bool) -> None:
    assert Trust(connections=("aws_*",)).takes_connection(conn_id) is taken
    assert ("aws.connection" in fields(Trust(connections=("aws_*",)), aws__connection=conn_id)) is not taken


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/etc/fleet/demo", True),
        ("/etc/fleet/deep/demo", True),
        ("/etc/fleet/../shadow", False),
        ("/etc/fleet-of-others/demo", False),
        ("etc/fleet/demo", False),
        ("/home/me/config", True),
        ("/home/me/config2", False),
    ],
)
def test_kubeconfigs_are_files_or_below_folders(path: str, taken: bool) -> None:
    # A relative one would be below whatever folder a worker happens to run in, also if the deployment names one.
    trust = Trust(kubeconfigs=("/etc/fleet/", "/home/me/config", "etc/fleet"))
    access = {"mode": "kubeconfig", "path": path}
    assert ("cluster.access.path" in fields(trust, cluster__access=access)) is not taken


def test_no_kubeconfig_is_allowed_unless_the_deployment_says_so() -> None:
    assert fields(Trust(), cluster__access={"mode": "kubeconfig", "path": "/k"}) == ["cluster.access.path"]


def test_connections_in_a_notifiers_arguments_are_found_at_any_depth() -> None:
    arguments = {"smtp_conn_id": "smtp_default", "hooks": [{"aws_conn_id": "payroll"}], "conn_id": 7}
    notify = [{"notifier": "airflow.providers.x.Y", "arguments": arguments}, {"notifier": NOTIFIER}]
    assert fields(Trust(), validation={"notify": notify}) == [
        "validation.notify[0].arguments.hooks[0].aws_conn_id",
        "validation.notify[0].arguments.conn_id",
        "validation.notify[1].notifier",
    ]
