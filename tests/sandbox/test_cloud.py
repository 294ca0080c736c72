"""The composed sandbox as people meet it: the command line, its files, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import state
from sandbox.cloud.interrupting import BadRequest, wanted
from sandbox.cloud.options import ALL_PARTS, choose_parts
from sandbox.state import SandboxError

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = os.environ.get("KUBECTL_BIN", "kubectl")


def _sandbox(directory: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments, "--state-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # gone, before its file was opened or after
        return False


def _await_end(*pids: int) -> None:
    while any(_alive(pid) for pid in pids):
        time.sleep(0.05)


def _state(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "state.json").read_text())
    return found


def _control(
    found: dict[str, Any], method: str, path: str, body: Any = None, token: str | None = None
) -> tuple[int, Any]:
    request = urllib.request.Request(  # noqa: S310 - http, from state.json
        found["control"]["url"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token or found['control']['token']}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A detached sandbox."""
    directory = tmp_path_factory.mktemp("sandbox") / "state"
    done = _sandbox(directory, "up", "--detach", "--speed", "50")
    assert done.returncode == 0, done.stderr
    yield directory
    _sandbox(directory, "down")


def _environment(directory: Path) -> dict[str, str]:
    """What a shell has after ``eval "$(python -m sandbox env)"``."""
    script = _sandbox(directory, "env").stdout
    done = subprocess.run(
        [
            "/bin/sh",
            "-c",
            script + '\nexec "$0" -c "import json,os; print(json.dumps(dict(os.environ)))"',
            sys.executable,
        ],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_two_system_nodes_are_ready_for_kubectl_when_up_returns(up: Path, tmp_path: Path) -> None:
    environment = {**_environment(up), "HOME": str(tmp_path)}
    done = subprocess.run(
        [KUBECTL, "get", "nodes", "-o", "json"], env=environment, capture_output=True, text=True, check=True
    )
    nodes = json.loads(done.stdout)["items"]
    ready = [next(item["status"] for item in node["status"]["conditions"] if item["type"] == "Ready") for node in nodes]
    assert ready == ["True", "True"]


def test_environment_is_all_that_clients_need(up: Path) -> None:
    environment = _environment(up)
    connection = json.loads(environment["AIRFLOW_CONN_AWS_DEMO"])
    assert connection["conn_type"] == "aws"
    assert connection["extra"]["endpoint_url"] == environment["AWS_ENDPOINT_URL"]
    assert connection["login"] == environment["AWS_ACCESS_KEY_ID"]
    mirrors = json.loads(environment["GPU_FLEET_CHART_MIRRORS"])
    for mirror in mirrors.values():
        with urllib.request.urlopen(f"{mirror}/index.yaml", timeout=10) as reply:  # noqa: S310
            assert b"nvidia-device-plugin" in reply.read()
    script = "import boto3; print(boto3.client('eks').describe_cluster(name='demo-gpu')['cluster']['endpoint'])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _state(up)["kubernetes"]["url"]


def test_token_of_the_account_opens_the_cluster_and_a_forged_one_does_not(up: Path) -> None:
    script = """
import base64, json, ssl, urllib.error, urllib.request, boto3
cluster = boto3.client("eks").describe_cluster(name="demo-gpu")["cluster"]
sts = boto3.client("sts")
add = lambda request, **_: request.headers.add_header("x-k8s-aws-id", "demo-gpu")
sts.meta.events.register("before-sign.sts.*", add)
url = sts.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
token = "k8s-aws-v1." + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")
context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificateAuthority"]["data"]).decode())
codes = []
for bearer in (token, token[:-6] + "AAAAAA"):
    headers = {"Authorization": f"Bearer {bearer}"}
    request = urllib.request.Request(cluster["endpoint"] + "/api/v1/nodes", headers=headers)
    try:
        codes.append(urllib.request.urlopen(request, context=context).status)
    except urllib.error.HTTPError as error:
        codes.append(error.code)
print(codes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=_environment(up), capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[200, 401]", done.stderr


def test_files_with_credentials_are_private(up: Path) -> None:
    assert stat.S_IMODE(up.stat().st_mode) == 0o700
    for name in ("state.json", "admin.kubeconfig", "sandbox.log"):
        assert stat.S_IMODE((up / name).stat().st_mode) == 0o600, name
    secret = _state(up)["env"]["AWS_SECRET_ACCESS_KEY"]
    for log in ("sandbox.log", "moto.log"):
        assert secret not in (up / log).read_text()


def test_status_and_faults_on_the_command_line(up: Path) -> None:
    status = _sandbox(up, "status", "--json")
    assert status.returncode == 0
    assert set(json.loads(status.stdout)["parts"]) == set(ALL_PARTS)
    assert _sandbox(up, "fault", "set", "gpu-late", "seconds=30", "pool=a b", "--count", "2").returncode == 0
    assert _sandbox(up, "fault", "list").stdout == 'gpu-late {"seconds": 30, "pool": "a b"} × 2\n'
    assert "gpu-late" in _sandbox(up, "status").stdout
    assert _sandbox(up, "fault", "clear", "gpu-late").returncode == 0
    assert _sandbox(up, "fault", "list").stdout == ""
    assert _sandbox(up, "fault", "set", "x", "nonsense").returncode == 2


def test_control_api_wants_the_token_and_sound_bodies(up: Path) -> None:
    found = _state(up)
    assert _control(found, "GET", "/status", token="guess")[0] == 401
    assert _control(found, "PUT", "/faults/x", {"count": 0}) == (400, {"error": "count is not a positive integer"})
    assert _control(found, "PUT", "/faults/x", [1])[0] == 400
    assert _control(found, "GET", "/nothing")[0] == 404
    assert _control(found, "POST", "/interrupt", {"instance": "i-1", "kind": "boredom"})[0] == 400
    assert _control(found, "POST", "/interrupt", {"instance": "i-1"}) == (404, {"error": "there is no instance i-1"})
    assert _control(found, "POST", "/parts/moto/stop")[0] == 404
    waits = _control(found, "GET", "/waits")[1]
    assert {"instance_running"} <= {wait["label"] for wait in waits}
    requests = _control(found, "GET", "/requests")[1]
    assert any(entry["user_agent"] == "sandbox-nodes" and entry["count"] > 0 for entry in requests)


def test_part_can_be_stopped_and_started_again(up: Path) -> None:
    found = _state(up)
    assert _control(found, "POST", "/parts/karpenter/stop") == (200, {"part": "karpenter", "state": "stopped"})
    assert _control(found, "POST", "/parts/karpenter/stop")[0] == 200
    assert _control(found, "GET", "/status")[1]["parts"]["karpenter"] == "stopped"
    assert _control(found, "POST", "/parts/karpenter/start") == (200, {"part": "karpenter", "state": "running"})


@pytest.mark.parametrize("part", ["apiserver", "charts"])
def test_server_is_unreachable_while_it_is_stopped_and_keeps_its_address_and_state(up: Path, part: str) -> None:
    found = _state(up)
    kept = _state(up)["kubernetes"]["kubeconfig"]
    address = (found["kubernetes"] if part == "apiserver" else found["charts"])["url"].split("//")[1].split("/")[0]
    host, port = address.rsplit(":", 1)
    assert _control(found, "POST", f"/parts/{part}/stop") == (200, {"part": part, "state": "stopped"})
    assert _control(found, "GET", "/status")[1]["parts"][part] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    assert _control(found, "POST", f"/parts/{part}/start") == (200, {"part": part, "state": "running"})
    assert _control(found, "POST", f"/parts/{part}/start")[0] == 200
    socket.create_connection((host, int(port)), timeout=5).close()
    assert _state(up)["kubernetes"]["kubeconfig"] == kept
    assert _control(found, "GET", "/status")[1]["parts"]["controllers"] == "running"


def test_interruption_on_the_command_line(up: Path) -> None:
    instance = _state(up)["aws"]["system_instance_ids"][0]
    done = _sandbox(up, "interrupt", instance, "--kind", "rebalance")
    assert (done.returncode, done.stdout) == (
        0,
        f"EC2 Instance Rebalance Recommendation for {instance} is on its way\n",
    )
    absent = _sandbox(up, "interrupt", "i-0")
    assert (absent.returncode, absent.stderr) == (1, "error: there is no instance i-0\n")


def test_interruptions_of_many_kinds_on_the_command_line(up: Path) -> None:
    first, second = _state(up)["aws"]["system_instance_ids"]
    done = _sandbox(up, "interrupt", "--pool", "system", "--kind", "scheduled", "--start-in", "3d", "--times", "2")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        f"AWS Health Event for {instance} is on its way" for instance in (first, second)
    }
    done = _sandbox(up, "interrupt", first, second, "--silent", "--skew", "-5", "--action", "stop")
    assert done.stdout.count("EC2 Spot Instance Interruption Warning for i-") == 2
    assert _sandbox(up, "interrupt", "--foreign", "--kind", "reservation").returncode == 0
    assert _sandbox(up, "interrupt", "--malformed").stdout == "2 malformed messages are on their way\n"
    assert _sandbox(up, "interrupt", "--malformed", "huge", "--times", "3").stdout.startswith("6 malformed")
    calm = _sandbox(up, "interrupt", "--storm", "2")
    assert (calm.returncode, "0 running instances of the cluster are meant" in calm.stderr) == (1, True)
    assert _sandbox(up, "interrupt").returncode == 1
    assert _sandbox(up, "interrupt", "--start-in", "soon").returncode == 2
    announced = _control(_state(up), "GET", "/interruptions")[1]
    scheduled = next(each for each in announced if each["kind"] == "scheduled")
    assert set(scheduled["instances"]) == {first, second}
    assert scheduled["ends"] - scheduled["time"] == pytest.approx(3 * 86400, abs=1)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "instance is missing"),
        ({"instances": "i-1"}, "instance is a text"),
        ({"instance": "i-1", "pool": "a"}, "leave one of them out"),
        ({"instance": "i-1", "kind": "boredom"}, "kind is one of spot"),
        ({"instance": "i-1", "action": "sell"}, "action is one of terminate"),
        ({"instance": "i-1", "kind": "state", "state": "tired"}, "state is one of stopping"),
        ({"instance": "i-1", "times": 0}, "times is not a number from 1 on"),
        ({"instance": "i-1", "notice": -1}, "notice is not a number of seconds from 0 on"),
        ({"instance": "i-1", "skew": "5"}, "skew is not a number of seconds"),
        ({"instance": "i-1", "silent": "yes"}, "silent is neither true nor false"),
        ({"storm": -1}, "storm is not a number from 0 on"),
        ({"malformed": "nicely"}, "malformed is one of not-json"),
        ({"instance": "i-1", "color": "red"}, "color is no field"),
    ],
)
def test_an_interruption_that_makes_no_sense_is_refused(body: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        wanted(body)


def test_node_of_another_team_is_interrupted_and_its_work_is_lost(up: Path) -> None:
    found = _state(up)
    environment = _environment(up)
    node = {"instanceType": "m5.large", "group": "team-c", "labels": {"team": "c"}, "spot": True}
    instance = _control(found, "POST", "/nodes", node)[1]["instance"]
    overrides = {"spec": {"nodeSelector": {"team": "c"}}}
    subprocess.run(
        [KUBECTL, "run", "work", "--image=registry.k8s.io/pause:3.10", f"--overrides={json.dumps(overrides)}"],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    subprocess.run(
        [KUBECTL, "wait", "--for=condition=Ready", "pod/work", "--timeout=60s"],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    done = _sandbox(up, "interrupt", "--pool", "team-c", "--all-spot", "--notice", "0.5")
    assert done.stdout == f"EC2 Spot Instance Interruption Warning for {instance} is on its way\n"
    deadline = time.monotonic() + 20
    while not (lost := _control(found, "GET", "/lost")[1]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [(each["namespace"], each["name"], each["instance"]) for each in lost] == [("default", "work", instance)]
    status = _sandbox(up, "status").stdout
    assert f"lost pod default/work after {lost[0]['seconds']:.0f} s on {lost[0]['node']} ({instance})" in status
    assert _control(found, "DELETE", "/lost") == (200, [])
    assert "lost pod" not in _sandbox(up, "status").stdout
    # EC2's own changes of state are events, too: the package's queue has them for this instance.
    script = f"""
import boto3, json, time
sqs = boto3.client("sqs")
url = sqs.get_queue_url(QueueName="demo-gpu-gpu-fleet")["QueueUrl"]
states, deadline = [], time.monotonic() + 30
while "terminated" not in states and time.monotonic() < deadline:
    for each in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", []):
        try:
            detail = json.loads(each["Body"])["detail"]
        except (ValueError, KeyError, TypeError):
            continue
        if detail.get("instance-id") == "{instance}":
            states.append(detail.get("state") or detail["instance-action"])
print(json.dumps(states))
"""
    read = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert sorted(json.loads(read.stdout)) == [
        "pending", "running", "shutting-down", "terminate", "terminated",
    ], read.stderr  # fmt: skip


def test_node_of_another_team_on_the_command_line(up: Path) -> None:
    done = _sandbox(
        up,
        "node",
        "add",
        "--instance-type",
        "g5.xlarge",
        "--group",
        "team-b",
        "--label",
        "team=b",
        "--taint",
        "x=y:NoSchedule",
    )
    assert done.returncode == 0, done.stderr
    instance = done.stdout.split()[1]
    status, body = _control(_state(up), "POST", "/nodes", {"instanceType": "g5.xlarge", "group": "team-b"})
    assert status == 200
    assert {body["instance"], instance} == {i for i in (body["instance"], instance) if i.startswith("i-")}
    assert _control(_state(up), "POST", "/nodes", {"group": "team-b"})[0] == 400
    assert _control(_state(up), "POST", "/nodes", {"instanceType": "no.such", "group": "b"})[0] == 400
    assert _sandbox(up, "node", "add", "--instance-type", "g5.xlarge", "--group", "b", "--label", "x").returncode == 2


def test_second_sandbox_in_one_directory_is_refused(up: Path) -> None:
    for mode in ([], ["--detach"]):
        done = _sandbox(up, "up", *mode)
        assert done.returncode == 1
        assert f"process {_state(up)['pid']}) already runs" in done.stderr


def test_port_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _sandbox(tmp_path, "up", "--parts", "charts", "--charts-port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for charts: Address already in use" in done.stderr
    assert "--charts-port" in done.stderr
    assert not (tmp_path / "state.json").exists()
    detached = _sandbox(tmp_path, "up", "--detach", "--parts", "nonsense")
    assert (detached.returncode, "unknown part nonsense" in detached.stderr) == (2, True)


def test_state_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    done = _sandbox(tmp_path / "file" / "state", "up")
    assert done.returncode == 1
    assert "cannot write the state directory" in done.stderr
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 * 2**20}))
    with pytest.raises(SandboxError, match="only 3 MB are free"):
        state.prepare_directory(tmp_path)


def test_folder_without_charts_is_named_before_anything_starts(tmp_path: Path) -> None:
    done = _sandbox(tmp_path / "state", "up", CHARTS_DIR=str(tmp_path))
    assert (done.returncode, "starting AWS" in done.stdout) == (2, False)
    assert f"error: CHARTS_DIR: no *.tgz in {tmp_path}" in done.stderr


def test_nothing_running_is_told_by_exit_codes(tmp_path: Path) -> None:
    assert (_sandbox(tmp_path, "down").returncode, _sandbox(tmp_path, "down").stdout) == (0, "no sandbox was running\n")
    for command in (["status"], ["env"], ["interrupt", "i-1"], ["fault", "list"]):
        done = _sandbox(tmp_path, *command)
        assert (done.returncode, "no sandbox is running" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("names", "kubeconfig", "parts"),
    [
        (None, None, set(ALL_PARTS)),
        (None, Path("k"), set(ALL_PARTS) - {"apiserver", "controllers"}),
        (["aws", "nodes"], Path("k"), {"aws", "nodes"}),
        (["aws", "nodes", "controllers", "apiserver"], Path("k"), {"aws", "nodes", "controllers"}),
        (["aws", "apiserver"], None, {"aws", "apiserver"}),
        (["charts"], None, {"charts"}),
        (["nodes", "aws"], None, "need the part apiserver"),
        (["apiserver"], None, "need the part aws"),
        (["aws", "gpu"], None, "unknown part gpu"),
    ],
)
def test_choice_of_parts(names: list[str] | None, kubeconfig: Path | None, parts: set[str] | str) -> None:
    if isinstance(parts, str):
        with pytest.raises(SandboxError, match=parts):
            choose_parts(names, kubeconfig)
    else:
        assert choose_parts(names, kubeconfig) == parts


def _foreground(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox", "up", "--state-dir", str(directory), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _await_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the sandbox ended without saying {text!r}")


def test_signal_ends_a_foreground_sandbox_cleanly(tmp_path: Path) -> None:
    process = _foreground(tmp_path, "--parts", "aws")
    _await_line(process, "ready")
    moto = _state(tmp_path)["pids"]["moto"]
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[0]
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    _await_end(moto)
    assert not (tmp_path / "state.json").exists()


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    process = _foreground(tmp_path, "--parts", "aws")
    _await_line(process, "starting AWS")
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[0]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert not (tmp_path / "state.json").exists()


def test_killed_sandbox_leaves_no_moto_and_can_be_started_again(tmp_path: Path) -> None:
    process = _foreground(tmp_path, "--parts", "aws")
    _await_line(process, "ready")
    moto = _state(tmp_path)["pids"]["moto"]
    process.kill()
    process.communicate(timeout=30)
    _await_end(moto)
    assert (tmp_path / "state.json").exists()  # nobody could remove it …
    assert _sandbox(tmp_path, "status").returncode == 3  # … and nobody is fooled by it
    again = _sandbox(tmp_path, "up", "--detach", "--parts", "charts")
    assert again.returncode == 0, again.stderr
    assert _sandbox(tmp_path, "down").stdout == "the sandbox is down\n"


def test_kubeconfig_of_another_server(up: Path, tmp_path: Path) -> None:
    """Parts 3 and 4 against someone else's API server: here another sandbox's."""
    admin = up / "admin.kubeconfig"
    done = _sandbox(tmp_path, "up", "--detach", "--speed", "50", "--kubeconfig", str(admin))
    assert done.returncode == 0, done.stderr
    try:
        found = _state(tmp_path)
        assert found["kubernetes"]["url"] == _state(up)["kubernetes"]["url"]
        assert set(found["parts"]) == {"aws", "nodes", "karpenter", "charts"}
        script = "import boto3; print(boto3.client('eks').describe_cluster(name='demo-gpu')['cluster']['endpoint'])"
        described = subprocess.run(
            [sys.executable, "-c", script], env=_environment(tmp_path), capture_output=True, text=True, check=True
        )
        assert described.stdout.strip() == _state(up)["kubernetes"]["url"]
        assert found["kubernetes"]["version"] == "1.35"
    finally:
        _sandbox(tmp_path, "down")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "cannot use the kubeconfig"), ("{}", "cannot use the kubeconfig"), (None, "cannot use the kubeconfig")],
)
def test_kubeconfig_that_cannot_be_used(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    done = _sandbox(tmp_path / "state", "up", "--parts", "aws", "--kubeconfig", str(path))
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
