"""The plugin's routes in Airflow's own API server: who may see what, and that nothing breaks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.unit.report_objects import host

pytestmark = pytest.mark.slow  # starts Airflow's API server in a process of its own

ROOT = Path(__file__).resolve().parents[3]
RUN = "scheduled__2026-09-21T14%3A13%3A00%2B00%3A00"
REPORT = f"/gpu-fleet/reports/gpu_revalidate.demo/{RUN}"
LIFECYCLE = "/gpu-fleet/reports/gpu_lifecycle.demo/manual__1"
HISTORY = "/gpu-fleet/history/demo/shared-a10g"
FORMS = {
    "": "text/html",
    "/report.html": "text/html",
    "/report.md": "text/markdown",
    "/report.json": "application/json",
    "/junit.xml": "application/xml",
}
EVERY_PATH = [*(REPORT + form for form in FORMS), HISTORY, f"{HISTORY}/history.json"]
JSON, HTML = "*/*", "text/html"

#: name -> (user, path, accept, status). One process answers them all.
CASES: dict[str, tuple[str, str, str, int]] = {
    **{f"anonymous {path}": ("", path, JSON, 401) for path in EVERY_PATH},
    **{f"without role {path}": ("nobody", path, JSON, 403) for path in EVERY_PATH},
    **{f"viewer {path}": ("viewer", path, JSON, 200) for path in EVERY_PATH},
    "anonymous unknown path": ("", "/gpu-fleet/nothing", JSON, 404),
    "no API documentation": ("admin", "/gpu-fleet/openapi.json", JSON, 404),
    "unknown run": ("viewer", "/gpu-fleet/reports/gpu_revalidate.demo/nope", JSON, 404),
    "unknown DAG": ("viewer", "/gpu-fleet/reports/nope/nope", JSON, 404),
    "all DAGs at once": ("viewer", f"/gpu-fleet/reports/~/{RUN}", JSON, 404),
    "another DAG than allowed": ("limited", REPORT, JSON, 403),
    "another DAG than allowed, named twice": ("limited", f"{REPORT}?dag_id=gpu_lifecycle.demo", JSON, 403),
    "the allowed DAG": ("limited", LIFECYCLE, JSON, 200),
    "history without permission for assets": ("limited", HISTORY, JSON, 403),
    "unknown pool": ("viewer", "/gpu-fleet/history/demo/nope", JSON, 404),
    "hostile pool": ("viewer", "/gpu-fleet/history/demo/%3Cscript%3E", HTML, 404),
    "too many verdicts": ("viewer", f"{HISTORY}?limit=100000", JSON, 422),
    "one verdict": ("viewer", f"{HISTORY}/history.json?limit=1", JSON, 200),
    "run without reports": ("viewer", "/gpu-fleet/reports/gpu_revalidate.demo/without_reports", JSON, 200),
    "reports kept elsewhere": ("viewer", "/gpu-fleet/reports/gpu_revalidate.demo/elsewhere", JSON, 200),
    "hostile report": ("viewer", "/gpu-fleet/reports/gpu_revalidate.demo/hostile", JSON, 200),
    "anonymous in a browser": ("", REPORT, HTML, 401),
    "unknown run in a browser": ("viewer", "/gpu-fleet/reports/gpu_revalidate.demo/nope", HTML, 404),
    "plugins": ("admin", "/api/v2/plugins", JSON, 200),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "s" * 64,
    }
    requests = [list(case[:3]) for case in CASES.values()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.ui.serve", json.dumps(requests)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**dict(zip(CASES, found["answers"], strict=True)), "imported": found["imported"]}


@pytest.mark.parametrize("name", CASES)
def test_status(answers: dict[str, Any], name: str) -> None:
    assert answers[name]["status"] == CASES[name][3], answers[name]["text"][:500]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1].startswith("/gpu-fleet/")])
def test_every_answer_has_the_security_headers(answers: dict[str, Any], name: str) -> None:
    headers = answers[name]["headers"]
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_report(answers: dict[str, Any], form: str) -> None:
    answer = answers[f"viewer {REPORT}{form}"]
    assert answer["headers"]["content-type"].split(";")[0] == FORMS[form]
    assert host(2) in answer["text"]
    assert "AllocatableMismatch" in answer["text"]


def test_junit_can_be_parsed(answers: dict[str, Any]) -> None:
    root = ElementTree.fromstring(answers[f"viewer {REPORT}/junit.xml"]["text"])  # noqa: S314  (made here)
    assert (root.get("failures"), root.get("errors")) == ("1", "0")


def test_history_leaves_out_what_the_reader_may_not_see(answers: dict[str, Any]) -> None:
    everything = json.loads(answers[f"viewer {HISTORY}/history.json"]["text"])["verdicts"]
    assert [(each["state"], each["became"], each["dagId"]) for each in everything] == [
        ("Ready", True, ""),
        ("NotReady", True, "gpu_revalidate.demo"),
        ("Ready", True, "gpu_lifecycle.demo"),
    ]
    assert len(json.loads(answers["one verdict"]["text"])["verdicts"]) == 1
    assert "Not shown: you need the permission to read assets." in answers["the allowed DAG"]["text"]


def test_nothing_from_a_cluster_acts_in_a_page(answers: dict[str, Any]) -> None:
    for name in ("hostile report", f"viewer {HISTORY}", "hostile pool"):
        assert "<script" not in answers[name]["text"]
    assert "&lt;script&gt;" in answers["hostile report"]["text"]


def test_what_is_missing_is_said(answers: dict[str, Any]) -> None:
    assert "has no report of any pool yet" in answers["run without reports"]["text"]
    assert "validation.pool_x.publish: report" in answers["reports kept elsewhere"]["text"]


def test_a_browser_is_told_how_to_go_on(answers: dict[str, Any]) -> None:
    page = answers["anonymous in a browser"]
    assert page["headers"]["content-type"].startswith("text/html")
    assert f'href="/api/v2/auth/login?next={REPORT}"' in page["text"]
    assert "nope" in answers["unknown run in a browser"]["text"]
    assert json.loads(answers["unknown run"]["text"]) == {
        "detail": "there is no run 'nope' of DAG 'gpu_revalidate.demo'"
    }


def test_airflow_lists_the_plugin_whole(answers: dict[str, Any]) -> None:
    plugins = json.loads(answers["plugins"]["text"])["plugins"]
    mine = next(plugin for plugin in plugins if plugin["name"] == "gpu_fleet")
    assert [app["url_prefix"] for app in mine["fastapi_apps"]] == ["/gpu-fleet"]
    assert mine["operator_extra_links"] == ["<gpu_fleet.operators.links.ReportLink object>"]
