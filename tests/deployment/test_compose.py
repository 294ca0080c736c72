"""docker-compose.yaml and Dockerfile: structure only; no engine is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.trust import CONNECTIONS_VARIABLE, KUBECONFIGS_VARIABLE, NOTIFIERS_VARIABLE, Trust
from gpu_fleet.hooks.settings import trust

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW_COMPONENTS = (
    "airflow-apiserver",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "airflow-worker",
)
SECRETS = ("PASSWORD", "SECRET", "FERNET", "TOKEN")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    return value


@pytest.fixture(scope="module")
def sandbox() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.sandbox.yaml").read_text())
    return value


def test_services_of_a_deployment_are_there(compose: dict[str, Any]) -> None:
    always = {name for name, service in compose["services"].items() if not service.get("profiles")}
    assert always == {*AIRFLOW_COMPONENTS, "airflow-init", "postgres", "redis"}
    assert compose["services"]["sandbox"] == {
        "extends": {"file": "docker-compose.sandbox.yaml", "service": "sandbox"},
        "profiles": ["sandbox"],
    }


def test_sandbox_runs_without_any_variable(compose: dict[str, Any], sandbox: dict[str, Any]) -> None:
    """Compose interpolates a whole file before it chooses services, so it must not share one with required secrets."""
    text = (ROOT / "docker-compose.sandbox.yaml").read_text()
    assert re.findall(r"\$\{?\w+(?!\w*:-)", text) == []
    assert set(sandbox["volumes"]) <= set(compose["volumes"]), "extends brings no volumes"
    (service,) = sandbox["services"].values()
    assert "profiles" not in service
    assert service["build"]["target"] == "sandbox"


@pytest.mark.parametrize("name", AIRFLOW_COMPONENTS)
def test_each_airflow_component_has_package_specs_and_health_check(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert {"/opt/airflow/dags", "/opt/airflow/plugins", "/opt/airflow/include"} <= mounted
    assert service["healthcheck"]["test"]
    assert service["environment"]["GPU_FLEET_CLUSTERS_DIR"]
    assert service["environment"]["AIRFLOW__API_AUTH__JWT_SECRET"].startswith("${AIRFLOW_JWT_SECRET:?")
    assert service["depends_on"]["airflow-init"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", AIRFLOW_COMPONENTS)
def test_components_share_one_image_and_one_execution_api(compose: dict[str, Any], name: str) -> None:
    services = compose["services"]
    assert services[name]["image"] == services["airflow-apiserver"]["image"]
    url = services[name]["environment"]["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"]
    assert url == "http://airflow-apiserver:8080/execution/"


def test_no_secret_has_a_default_outside_the_sandbox_profile(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "sandbox" in (service.get("profiles") or []):
            continue
        for key, value in (service.get("environment") or {}).items():
            if any(word in key for word in SECRETS) and not key.endswith("ISSUER"):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", str(value)), f"{name}: {key} has a default or a literal value"
        for value in map(str, (service.get("environment") or {}).values()):
            for variable, fallback in re.findall(r"\$\{(\w+)(:-[^}]*)?\}", value):
                if any(word in variable for word in SECRETS):
                    assert not fallback, f"{name}: {variable} has a default"


def test_every_required_variable_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    offered = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert required <= offered
    assert required >= {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW_FERNET_KEY", "AIRFLOW_JWT_SECRET"}
    assert "GPU_FLEET_DEPLOYMENT" in required, "two deployments of one name take over each other's lock"


def test_example_fills_in_nothing_that_must_be_chosen() -> None:
    required = re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yaml").read_text())
    given = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert {name: given[name] for name in required} == dict.fromkeys(required, "")


def test_the_filled_in_example_is_never_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert ".env" in ignored
    assert not any(line.startswith(".env.") for line in ignored), "the example is"


def test_connections_that_are_always_set_are_told_of(compose: dict[str, Any]) -> None:
    """Airflow looks into the environment before its database, so these two win over what is made in the UI."""
    always = set(re.findall(r"\$\{(AIRFLOW_CONN_\w+):-", (ROOT / "docker-compose.yaml").read_text()))
    assert always == {name for name in compose["x-airflow"]["environment"] if name.startswith("AIRFLOW_CONN_")}
    for path in (".env.example", "docs/guides/deploy.md"):
        text = (ROOT / path).read_text()
        assert always <= set(re.findall(r"AIRFLOW_CONN_\w+", text)), path
        assert "UI" in text, path


@pytest.mark.parametrize("name", [*AIRFLOW_COMPONENTS, "airflow-init"])
def test_databases_name_their_driver_and_tasks_end_in_time(compose: dict[str, Any], name: str) -> None:
    environment = compose["services"][name]["environment"]
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("postgresql+psycopg2://")
    assert environment["AIRFLOW__CELERY__RESULT_BACKEND"].startswith("db+postgresql+psycopg2://")
    assert environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"


def test_ports_are_published_on_the_loopback_interface_unless_told_otherwise(
    compose: dict[str, Any], sandbox: dict[str, Any]
) -> None:
    published = {
        name: port
        for services in (compose["services"], sandbox["services"])
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    assert set(published) == {"airflow-apiserver", "flower", "sandbox"}
    for name, port in published.items():
        assert re.match(r"(\$\{GPU_FLEET_BIND:-127\.0\.0\.1\}|127\.0\.0\.1):", port), name


@pytest.mark.parametrize(
    ("given", "starts"),
    [("", False), ("admin", False), ("admin:", False), (":secret", False), ("admin:secret", True)],
)
def test_flower_does_not_start_without_credentials(
    compose: dict[str, Any], tmp_path: Path, given: str, starts: bool
) -> None:
    flower = compose["services"]["flower"]
    assert flower["environment"]["AIRFLOW__CELERY__FLOWER_BASIC_AUTH"] == "${FLOWER_BASIC_AUTH:-}"
    (tmp_path / "airflow").write_text('#!/bin/sh\necho "started: $*"\n')
    (tmp_path / "airflow").chmod(0o755)
    # As Compose has it: two dollar signs stand for one.
    command = [part.replace("$$", "$") for part in flower["command"]]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "AIRFLOW__CELERY__FLOWER_BASIC_AUTH": given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode == 0) is starts
    assert ("started: celery flower" in done.stdout) is starts
    assert ("FLOWER_BASIC_AUTH" in done.stderr) is not starts


def test_redis_demands_the_password_that_its_clients_have(compose: dict[str, Any], tmp_path: Path) -> None:
    redis = compose["services"]["redis"]
    (tmp_path / "redis-server").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "redis-server").chmod(0o755)
    command = [part.replace("$$", "$") for part in redis["command"]]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "two words"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == ["--requirepass", "two words"]
    broker = compose["x-airflow"]["environment"]["AIRFLOW__CELERY__BROKER_URL"]
    assert broker.startswith("redis://:${REDIS_PASSWORD:?")
    assert redis["environment"]["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?")


def test_what_cluster_files_may_name_has_the_packages_own_defaults(compose: dict[str, Any]) -> None:
    environment = compose["x-airflow"]["environment"]
    given = {
        name: re.sub(r"^\$\{\w+:?-(.*)\}$", r"\1", environment[name])
        for name in (NOTIFIERS_VARIABLE, CONNECTIONS_VARIABLE, KUBECONFIGS_VARIABLE)
    }
    assert trust(given) == Trust()


@pytest.mark.parametrize("name", AIRFLOW_COMPONENTS)
def test_components_share_what_runs_under_way_were_pinned_to(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    mounted = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    volume = mounted[service["environment"]["GPU_FLEET_STATE_DIR"]]
    assert volume in compose["volumes"]
    assert f"mkdir -m 0775 {service['environment']['GPU_FLEET_STATE_DIR']}" in (ROOT / "Dockerfile").read_text()


def test_worker_leaves_signal_handling_to_celery(compose: dict[str, Any]) -> None:
    environment = compose["services"]["airflow-worker"]["environment"]
    assert environment["DUMB_INIT_SETSID"] == "0"
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"


def stages() -> dict[str, list[str]]:
    """The Dockerfile's instructions by stage; the last one, which has no name, under ``""``."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    for line in filter(lambda line: line and not line.startswith("#"), map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found[line.partition(" AS ")[2]] = current = [line]
        elif found:
            current.append(line)
    return found


def test_image_is_for_the_platform_of_its_helm() -> None:
    for name, (base, *_) in stages().items():
        if base.split()[-1] in stages() or base.split()[1] in stages():
            continue
        assert base.startswith("FROM --platform=linux/amd64 "), name


def test_only_root_makes_folders_in_the_root_and_no_stage_ends_as_root() -> None:
    for name, lines in stages().items():
        users = ["airflow"] if name != "helm" else ["root"]
        for line in lines:
            if line.startswith("USER "):
                users.append(line.split()[1])
            if re.search(r"\bmkdir /\w+( |$)", line):
                assert users[-1] == "root", line
        assert name == "helm" or users[-1] == "airflow", name


def test_build_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "what is not named does not come in: .env, .git, build"
    copied = {
        line.split()[-2]
        for stage in stages().values()
        for line in stage
        if line.startswith("COPY ") and "--from=" not in line
    }
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert "**/.env" in lines


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_with_its_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = re.findall(r"^([a-z0-9].*?)(?=^[a-z0-9]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert len(entries) > 50
    for entry in entries:
        first = entry.splitlines()[0]
        assert re.match(r"[\w.\-]+(\[[\w,\-]+\])?==[\w.+!]+ ", first), first
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), first
    assert "://" not in text, "no address of an index: it is the installing machine's"


def test_nothing_is_installed_without_its_hash() -> None:
    for path in ("Dockerfile", "Makefile"):
        text = re.sub(r"\\\n", " ", (ROOT / path).read_text())
        installs = re.findall(r"^.*\bpip (?:install|sync)\b.*$", text, flags=re.MULTILINE)
        assert installs
        for line in installs:
            assert "--require-hashes" in line, line


def test_image_has_the_pinned_airflow_and_checks_helm() -> None:
    text = (ROOT / "Dockerfile").read_text()
    pinned = re.search(r"^apache-airflow==(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert f"ARG AIRFLOW_VERSION={pinned[1]}" in text
    digest = re.search(r"HELM_SHA256=([0-9a-f]{64})", text)
    assert digest is not None
    assert digest[1] in (ROOT / "tools" / "toolchain.py").read_text(), "image and toolchain must pin the same helm"
    assert "sha256sum --check" in text
    assert not re.search(r"curl[^\n]*\|\s*(ba)?sh", text)
