"""Starts and stops the sandbox and ``airflow standalone`` as child processes, each in its own process group.

Everything lives in one build directory; ports are free ones chosen at start; secrets are random, per directory, and
only in the children's environment and in ``stack.json`` (mode 0600).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from demo import saved
from demo.processes import stop_group

ROOT = Path(__file__).resolve().parent.parent
#: Free disk below which the demo refuses to start: Airflow's database and logs take about 150 MB.
MINIMUM_DISK_MB = 500


class StackError(Exception):
    """The stack could not be started or kept up; the message names the part, the log and the remedy."""


@dataclass
class Stack:
    """One sandbox and one Airflow.

    :ivar build_dir: everything that is written goes here.
    :ivar speed: the sandbox's speed (see ``sandbox.settings``).
    :ivar clusters_dir: the folder of cluster specs; ``None`` for ``include/clusters``.
    :ivar outlives: it continues after the process that started it has ended.
    :ivar bind_host: the address on which Airflow's UI listens.
    :ivar port: its port, 0 for a free one.
    :ivar kubeconfig: of an API server to borrow; ``None`` for the sandbox's own.
    :ivar sandbox_parts: the sandbox's parts to run, ``()`` for the default.
    :ivar extra_env: added to both children's environment (``HELM_BIN`` for example).
    """

    build_dir: Path
    speed: float
    seed: int = 1
    clusters_dir: Path | None = None
    dags_dir: Path = ROOT / "dags"
    extra_env: dict[str, str] = field(default_factory=dict)
    outlives: bool = False
    bind_host: str = "127.0.0.1"
    port: int = 0
    kubeconfig: Path | None = None
    sandbox_parts: tuple[str, ...] = ()

    airflow_process: subprocess.Popen[bytes] | None = None
    sandbox_process: subprocess.Popen[bytes] | None = None
    airflow_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    # --- paths -------------------------------------------------------------------------------------------------------
    @property
    def airflow_home(self) -> Path:
        return self.build_dir / "airflow"

    @property
    def sandbox_dir(self) -> Path:
        return self.build_dir / "sandbox"

    @property
    def database(self) -> Path:
        return self.airflow_home / "airflow.db"

    # --- life --------------------------------------------------------------------------------------------------------
    def start(self, *, say: Any = print) -> None:
        """Start both and wait until they answer.

        :raises StackError: with the part, its log file and the remedy; nothing is left running then.
        """
        self._check_disk()
        for part in (self.airflow_home, self.sandbox_dir):
            shutil.rmtree(part, ignore_errors=True)
        try:
            self.build_dir.mkdir(parents=True, exist_ok=True)
            self.airflow_home.mkdir(mode=0o700)
        except OSError as error:
            raise StackError(f"cannot write {self.build_dir}: {error.strerror}; make it writable") from error
        try:
            say("starting the sandbox (AWS, Kubernetes, Karpenter, GPU nodes)")
            self._start_sandbox()
            say("starting Airflow (standalone, SQLite)")
            self._start_airflow()
            self._wait_for_sandbox()
            self.environment.update(self._sandbox_environment())
            self._wait_for_airflow()
            self._wait_for_system_nodes()
            self._save()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both, first politely, then for good. Safe to call twice."""
        for process in (self.airflow_process, self.sandbox_process):
            if process is not None:
                stop_group(process)
        self.airflow_process = self.sandbox_process = None
        saved.forget(self.build_dir)

    def check(self) -> None:
        """Raise if a part has died meanwhile."""
        for name, process, log in self._parts():
            if process is not None and process.poll() is not None:
                raise StackError(
                    f"the {name} ended with exit code {process.returncode}; the end of {log}:\n{tail(log)}"
                )

    # --- parts -------------------------------------------------------------------------------------------------------
    def _parts(self) -> list[tuple[str, subprocess.Popen[bytes] | None, Path]]:
        return [
            ("sandbox", self.sandbox_process, self.build_dir / "sandbox.log"),
            ("Airflow", self.airflow_process, self.build_dir / "airflow.log"),
        ]

    def _check_disk(self) -> None:
        where = self.build_dir
        while not where.exists():
            where = where.parent
        free = shutil.disk_usage(where).free // 2**20
        if free < MINIMUM_DISK_MB:
            raise StackError(f"only {free} MB free at {where}, {MINIMUM_DISK_MB} MB are needed; free some disk space")

    def _spawn(self, args: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        warden = [sys.executable, "-m", "demo.warden", "0" if self.outlives else str(os.getpid())]
        paths = [str(ROOT), *env.get("PYTHONPATH", "").split(os.pathsep)]
        env = {**env, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}
        with log.open("wb") as out:
            return subprocess.Popen(
                [*warden, *args],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )

    def _start_sandbox(self) -> None:
        env = {**os.environ, **self.extra_env, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.sandbox_process = self._spawn(
            [
                sys.executable,
                *("-m", "sandbox", "up"),
                *("--state-dir", str(self.sandbox_dir)),
                *("--speed", str(self.speed)),
                *("--seed", str(self.seed)),
                *(("--kubeconfig", str(self.kubeconfig)) if self.kubeconfig else ()),
                *(("--parts", ",".join(self.sandbox_parts)) if self.sandbox_parts else ()),
            ],
            self.build_dir / "sandbox.log",
            env,
        )

    def _wait_for_sandbox(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not (self.sandbox_dir / "state.json").exists():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"the sandbox did not come up in {timeout:.0f} s; see {self.build_dir / 'sandbox.log'}"
                )
            time.sleep(0.2)

    def _wait_for_system_nodes(self, timeout: float = 120) -> None:
        """The cluster's own nodes, on which Karpenter runs, join while Airflow starts; a lifecycle expects them."""
        deadline = time.monotonic() + timeout
        while self.sandbox_state()["phase"] != "ready":
            self.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"the sandbox's system nodes are not Ready after {timeout:.0f} s; see "
                    f"{self.build_dir / 'sandbox.log'}"
                )
            time.sleep(0.2)

    def sandbox_state(self) -> dict[str, Any]:
        """The sandbox's state.json: addresses, credentials of the fake account, pids."""
        value: dict[str, Any] = json.loads((self.sandbox_dir / "state.json").read_text())
        return value

    def _sandbox_environment(self) -> dict[str, str]:
        environment: dict[str, str] = self.sandbox_state()["env"]
        return environment

    def _start_airflow(self) -> None:
        self._wait_for_sandbox()
        free, worker_logs, trigger_logs = free_ports(3)
        port = self.port or free
        if not port_is_free(port):
            raise StackError(f"port {port} is in use; stop what listens there, or choose another port")
        self.airflow_url = f"http://localhost:{port}"
        bin_dir = str(Path(sys.executable).parent)
        settings = {
            "CORE__DAGS_FOLDER": str(self.dags_dir),
            "CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "8",
            "CORE__MAX_ACTIVE_TASKS_PER_DAG": "8",
            "CORE__MAX_TEMPLATED_FIELD_LENGTH": "65536",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "API__PORT": str(port),
            "API__HOST": self.bind_host,
            "API__BASE_URL": self.airflow_url,
            "API__SECRET_KEY": secrets.token_urlsafe(64),
            "API__WORKERS": "1",
            "API_AUTH__JWT_SECRET": secrets.token_urlsafe(72),
            "LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs),
            # The supervisor of a task may notice its end only after this time (5 s by default). A task that meanwhile
            # resumed from its deferral, or was answered, then looks failed to the scheduler, which repeats it.
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.05",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        env = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "AWS_", "KUBECONFIG"))}
        env |= {f"AIRFLOW__{key}": value for key, value in settings.items()}
        env |= self._sandbox_environment() | self.extra_env
        # Task code must find its AWS account in the Airflow connection alone, as in production.
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "KUBECONFIG", "SANDBOX_CONTROL"):
            env.pop(key, None)
        env["AIRFLOW_HOME"] = str(self.airflow_home)
        env["GPU_FLEET_STATE_DIR"] = str(self.airflow_home / "gpu_fleet")
        env["PATH"] = f"{bin_dir}:{env.get('PATH', '')}"
        env["AWS_EC2_METADATA_DISABLED"] = "true"
        env["PYTHONWARNINGS"] = "default"
        if self.clusters_dir is not None:
            env["GPU_FLEET_CLUSTERS_DIR"] = str(self.clusters_dir)
        if self.kubeconfig is not None:
            env["GPU_FLEET_ALLOWED_KUBECONFIGS"] = str(self.kubeconfig)
        self.environment = {key: value for key, value in env.items() if key.startswith(("AIRFLOW", "GPU_FLEET"))}
        self.airflow_process = self._spawn(
            [str(Path(bin_dir) / "airflow"), "standalone"], self.build_dir / "airflow.log", env
        )

    def _wait_for_airflow(self, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        last = "no answer yet"
        while time.monotonic() < deadline:
            self.check()
            try:
                health = httpx.get(f"{self.airflow_url}/api/v2/monitor/health", timeout=5).json()
                parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
                sick = [part for part in parts if health.get(part, {}).get("status") != "healthy"]
                if not sick:
                    # The API server builds the tasks' API at the first request, which takes many seconds; without this
                    # request the first task would wait for it.
                    httpx.get(f"{self.airflow_url}/execution/health", timeout=120).raise_for_status()
                    return
                last = f"not healthy yet: {', '.join(sick)}"
            except (httpx.HTTPError, ValueError) as error:
                last = f"{type(error).__name__}"
            time.sleep(0.5)
        raise StackError(f"Airflow is not ready after {timeout:.0f} s ({last}); see {self.build_dir / 'airflow.log'}")

    def password(self) -> str:
        """The generated password of the user ``admin``."""
        passwords = json.loads((self.airflow_home / "simple_auth_manager_passwords.json.generated").read_text())
        return str(passwords["admin"])

    def _save(self) -> None:
        processes = {"airflow": self.airflow_process, "sandbox": self.sandbox_process}
        pids = {name: process.pid for name, process in processes.items() if process is not None}
        saved.save(self.build_dir, self.airflow_url, pids, self.kubeconfig)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the port of the loopback interface."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a text file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
