"""``python -m sandbox up|down|status|env|interrupt|node|weather|reservation|fault``: a small cloud on this machine.

Exit codes: 0 success; 1 failure, with a message; 2 usage error; 3 no sandbox is running; 130 Ctrl-C while starting.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from sandbox import reservations
from sandbox.state import NotRunning, SandboxError, prepare_directory, read

DEFAULT_STATE_DIR = Path("build/sandbox")
_TIMEOUT = 30.0  # seconds for one request to the control API


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        code: int = options.command(options)
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__.splitlines()[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state-dir",
        type=Path,
        default=Path(os.environ.get("SANDBOX_STATE_DIR", DEFAULT_STATE_DIR)),
        help="where state.json, certificates and logs live (default: $SANDBOX_STATE_DIR or build/sandbox)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[common], help="start it, in the foreground unless --detach")
    up.add_argument("--speed", type=_positive, default=5.0, help="divides all simulated latencies (default: 5)")
    up.add_argument("--seed", type=int, default=1, help="makes sampled latencies and ids repeatable")
    up.add_argument(
        "--kubeconfig",
        type=Path,
        help="run nodes and Karpenter against this API server instead of starting one; add the part controllers with "
        "--parts if that server has no controller manager (envtest)",
    )
    up.add_argument("--parts", type=_names, help="only these, comma-separated: aws,apiserver,controllers,nodes,…")
    up.add_argument(
        "--detach", action="store_true", help="return when it is ready, and keep it running in the background"
    )
    for port in ("aws", "kubernetes", "charts", "control"):
        up.add_argument(f"--{port}-port", type=_port, default=0, help=f"port of {port} (default: a free one)")
    up.set_defaults(command=_up)

    down = commands.add_parser("down", parents=[common], help="stop it; no error if none is running")
    down.set_defaults(command=_down)

    status = commands.add_parser("status", parents=[common], help="show what is running; exit code 3 if nothing is")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(command=_status)

    env = commands.add_parser("env", parents=[common], help='export lines, for eval "$(python -m sandbox env)"')
    env.set_defaults(command=_env)

    _add_interrupt(commands.add_parser("interrupt", parents=[common], help="interrupt instances, as EC2 would"))

    node = commands.add_parser("node", help="nodes that Karpenter does not manage")
    node_verbs = node.add_subparsers(required=True, metavar="VERB")
    node_add = node_verbs.add_parser("add", parents=[common], help="launch a node of another team's managed node group")
    node_add.add_argument("--instance-type", required=True, metavar="TYPE", help="for example g5.xlarge")
    node_add.add_argument("--group", required=True, metavar="NAME", help="the node group; created if it does not exist")
    node_add.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    node_add.add_argument("--taint", action="append", default=[], metavar="KEY=VALUE:EFFECT", help="may be repeated")
    node_add.add_argument("--spot", action="store_true", help="a spot instance (the group's capacity type is SPOT)")
    node_add.set_defaults(command=_node_add)

    weather = commands.add_parser("weather", parents=[common], help="capacity that EC2 lacks: show it, or script it")
    weather.add_argument("script", metavar="FILE", type=Path, nargs="?", help="a JSON list of spells; [] clears")
    weather.set_defaults(command=_weather)

    reservations.add_to(commands, common, _called)

    fault = commands.add_parser("fault", help="inject a fault")
    verbs = fault.add_subparsers(required=True, metavar="VERB")
    fault_set = verbs.add_parser("set", parents=[common], help="set a fault")
    fault_set.add_argument("name", metavar="NAME")
    fault_set.add_argument("params", metavar="KEY=VALUE", nargs="*", help="parameters; values are JSON or plain text")
    fault_set.add_argument("--count", type=int, help="how often it applies (default: until it is cleared)")
    fault_set.set_defaults(command=_fault_set)
    fault_clear = verbs.add_parser("clear", parents=[common], help="clear one fault, or all")
    fault_clear.add_argument("name", metavar="NAME", nargs="?")
    fault_clear.set_defaults(command=_fault_clear)
    fault_list = verbs.add_parser("list", parents=[common], help="list the faults that are set")
    fault_list.set_defaults(command=_fault_list)
    return parser


def _add_interrupt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instances", metavar="INSTANCE", nargs="*", help="instance ids; or choose by what follows")
    whom = parser.add_argument_group("whom (running instances of the cluster)")
    whom.add_argument("--pool", metavar="NAME", help="those of a NodePool or of a managed node group")
    whom.add_argument("--zone", metavar="ZONE", help="those in an availability zone, us-west-2a")
    whom.add_argument("--all-spot", action="store_true", help="spot instances only")
    whom.add_argument("--storm", type=int, metavar="N", help="N random spot instances; the same for the same --seed")
    whom.add_argument("--within", type=_duration, metavar="SECONDS", help="at random moments of that time (simulated)")
    whom.add_argument("--foreign", action="store_true", help="an instance that belongs to somebody else")
    what = parser.add_argument_group("what")
    what.add_argument("--kind", choices=["spot", "rebalance", "scheduled", "state", "reservation"], default="spot")
    what.add_argument("--action", choices=["terminate", "stop", "hibernate"], help="what EC2 does to a spot instance")
    what.add_argument("--state", choices=["stopping", "stopped", "shutting-down", "terminated"], help="of --kind state")
    what.add_argument("--start-in", type=_duration, metavar="3d", help="until a scheduled change starts (real time)")
    what.add_argument("--event-type", metavar="CODE", help="of a scheduled change, as AWS Health calls it")
    what.add_argument(
        "--notice",
        type=_duration,
        metavar="SECONDS",
        help="real time from the warning to the instance's end (default: 120, divided by the speed)",
    )
    what.add_argument(
        "--impaired", choices=["instance", "system"], help="a status check that fails from now on; there is no message"
    )
    what.add_argument("--recovered", action="store_true", help="status checks pass again, scheduled events are over")
    what.add_argument("--completed", action="store_true", help="a scheduled change that is over; there is no message")
    what.add_argument("--silent", action="store_true", help="only the message: nothing happens to the instance")
    how = parser.add_argument_group("how the message arrives (see also the faults events-… and sqs-…)")
    how.add_argument("--times", type=int, metavar="N", help="N times, with the same id")
    how.add_argument("--skew", type=float, metavar="SECONDS", help="with a time that is wrong by so much")
    how.add_argument(
        "--malformed",
        nargs="?",
        const="not-json",
        metavar="VARIANT",
        help="a body that cannot be read, instead: not-json (default), truncated, blank, list, empty, not-an-event, "
        "no-detail, wrong-types, unknown-type, huge",
    )
    parser.set_defaults(command=_interrupt)


def _duration(text: str) -> float:
    """``90``, ``90s``, ``10m``, ``2h`` or ``3d`` in seconds."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
    try:
        value = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be a time such as 90, 10m, 2h or 3d") from error
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError("must be a port number")
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# Commands


def _up(options: argparse.Namespace) -> int:
    from sandbox import processes
    from sandbox.cloud.options import Options, Ports, choose_parts

    charts_dir = os.environ.get("CHARTS_DIR")
    if charts_dir:  # the detached process runs in another folder
        os.environ["CHARTS_DIR"] = charts_dir = str(Path(charts_dir).resolve())
    cloud_options = Options(
        parts=choose_parts(options.parts, options.kubeconfig),
        kubeconfig=options.kubeconfig,
        charts_dir=Path(charts_dir) if charts_dir else None,
        ports=Ports(options.aws_port, options.kubernetes_port, options.charts_port, options.control_port),
    )
    directory = options.state_dir.resolve()
    prepare_directory(directory)
    if options.detach:
        found = processes.start_detached(directory, _foreground_arguments(options))
        print(f"the sandbox is ready (process {found['pid']}, log {directory / processes.LOG})")
        print(f'to use it: eval "$(python -m sandbox env --state-dir {shlex.quote(str(directory))})"')
        return 0
    return processes.run_foreground(directory, options.speed, options.seed, cloud_options)


def _foreground_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--speed", str(options.speed), "--seed", str(options.seed)]
    if options.kubeconfig is not None:
        arguments += ["--kubeconfig", str(options.kubeconfig.resolve())]
    if options.parts is not None:
        arguments += ["--parts", ",".join(options.parts)]
    for port in ("aws", "kubernetes", "charts", "control"):
        arguments += [f"--{port}-port", str(getattr(options, f"{port}_port"))]
    return arguments


def _down(options: argparse.Namespace) -> int:
    from sandbox import processes

    ended = processes.stop(options.state_dir.resolve())
    print("the sandbox is down" if ended else "no sandbox was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    found = _state(options)
    status = _call(found, "GET", "/status")
    if options.json:
        print(json.dumps(status, indent=1))
    else:
        print(f"{status['cluster']}: {status['phase']}, speed {status['speed']:g}, seed {status['seed']}")
        for part, part_state in sorted(status["parts"].items()):
            restarts = status["restarts"].get(part)
            print(f"  {part:<12} {part_state}" + (f" ({restarts} restarts)" if restarts else ""))
        for name, fault in status["faults"].items():
            print(f"  fault {name} {json.dumps(fault['params'])}")
        for lost in status["lost"]:
            grace = ", in its grace period" if lost["terminating"] else ""
            pod = f"{lost['namespace']}/{lost['name']}"
            print(f"  lost pod {pod} after {lost['seconds']:.0f} s on {lost['node']} ({lost['instance']}){grace}")
    healthy = status["phase"] == "ready" and "failed" not in status["parts"].values()
    return 0 if healthy else 1


def _env(options: argparse.Namespace) -> int:
    for name, value in _state(options)["env"].items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _interrupt(options: argparse.Namespace) -> int:
    fields = {
        "instances": options.instances or None,
        "kind": options.kind,
        "pool": options.pool,
        "zone": options.zone,
        "spot": options.all_spot or None,
        "storm": options.storm,
        "within": options.within,
        "action": options.action,
        "state": options.state,
        "startsIn": options.start_in,
        "code": options.event_type,
        "notice": options.notice,
        "silent": options.silent or None,
        "completed": options.completed or None,
        "impaired": options.impaired,
        "recovered": options.recovered or None,
        "times": options.times,
        "skew": options.skew,
        "malformed": options.malformed,
        "foreign": options.foreign or None,
    }
    body = {field: value for field, value in fields.items() if value is not None}
    done = _call(_state(options), "POST", "/interrupt", body)
    if options.malformed:
        print(f"{done['messages']} malformed messages are on their way")
    elif not done["instances"]:
        print(f"{done['detail-type']} for {options.storm} random spot instances within {options.within:g} s")
    for instance in done["instances"]:
        print(f"{done['detail-type']} for {instance} is on its way")
    return 0


def _called(options: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    return _call(_state(options), method, path, body)


def _node_add(options: argparse.Namespace) -> int:
    labels = {}
    for text in options.label:
        key, separator, value = text.partition("=")
        if not separator:
            raise SandboxError(f"{text!r} must be KEY=VALUE", code=2)
        labels[key] = value
    body = {"instanceType": options.instance_type, "group": options.group, "labels": labels, "taints": options.taint}
    if options.spot:
        body["spot"] = True
    added = _call(_state(options), "POST", "/nodes", body)
    print(f"instance {added['instance']} of node group {options.group} is joining the cluster")
    return 0


def _weather(options: argparse.Namespace) -> int:
    found = _state(options)
    if options.script is not None:
        try:
            spells = json.loads(options.script.read_text())
        except (OSError, ValueError) as error:
            raise SandboxError(f"{options.script}: {error}", code=2) from error
        if not isinstance(spells, list) or not all(isinstance(spell, dict) for spell in spells):
            raise SandboxError(f"{options.script} must be a JSON list of spells", code=2)
        _call(found, "PUT", "/faults/weather", {"params": {"spells": spells}})
    for spell in _call(found, "GET", "/weather"):
        what = " ".join(spell.get(key, f"any {key}") for key in ("instanceType", "capacityType", "zone"))
        until = f"until {spell['until']:g} s" if spell.get("until") is not None else "for ever"
        print(f"{'now ' if spell['now'] else '    '} {what}: {spell['code']}, from {spell.get('from', 0):g} s {until}")
    return 0


def _fault_set(options: argparse.Namespace) -> int:
    params = reservations.pairs(options.params)
    _call(_state(options), "PUT", f"/faults/{options.name}", {"params": params, "count": options.count})
    return 0


def _fault_clear(options: argparse.Namespace) -> int:
    _call(_state(options), "DELETE", f"/faults/{options.name}" if options.name else "/faults")
    return 0


def _fault_list(options: argparse.Namespace) -> int:
    for name, fault in _call(_state(options), "GET", "/faults").items():
        count = "" if fault["count"] is None else f" × {fault['count']}"
        print(f"{name} {json.dumps(fault['params'])}{count}")
    return 0


def _state(options: argparse.Namespace) -> dict[str, Any]:
    directory = options.state_dir.resolve()
    found = read(directory)
    if found is None:
        raise NotRunning(directory)
    return found


def _call(found: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request to the control API of a running sandbox."""
    import http.client
    from urllib.parse import urlsplit

    address = urlsplit(found["control"]["url"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT)
    try:
        connection.request(
            method,
            path,
            body=json.dumps(body) if body is not None else None,
            headers={"Authorization": f"Bearer {found['control']['token']}", "Content-Type": "application/json"},
        )
        reply = connection.getresponse()
        text = reply.read().decode()
    except OSError as error:
        raise SandboxError(f"the sandbox does not answer at {found['control']['url']}: {error}") from error
    finally:
        connection.close()
    value = json.loads(text) if text else {}
    if reply.status >= 400:
        raise SandboxError(value.get("error", text))
    return value
