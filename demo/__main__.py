"""``python -m demo run|up|down|clean``; see the Makefile."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from demo import run as demo_run
from demo.borrowed import Borrowed
from demo.saved import saved_kubeconfig, stop_saved
from demo.stack import ROOT, Stack, StackError

#: The demo's fixed speed: the simulated world is this much faster than the real one.
SPEED = 1.6
BUILD = ROOT / "build" / "demo"


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 success; 1 the demo failed; 2 it could not be started; 130 interrupted."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--build-dir", type=Path, default=BUILD)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one lifecycle, with a report")
    run.add_argument("--fault", choices=["broken-plugin", "spot-interruption"])
    run.add_argument("--keep", action="store_true", help="stop after validation and leave everything running")
    run.add_argument("--speed", type=float, default=SPEED)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--kubeconfig", type=Path, help="use the API server of this kubeconfig instead of the sandbox's")
    up = commands.add_parser("up", help="start sandbox and Airflow and leave them running")
    up.add_argument("--speed", type=float, default=SPEED)
    up.add_argument("--seed", type=int, default=1)
    up.add_argument("--foreground", action="store_true", help="stay in the foreground, and stop everything at the end")
    up.add_argument("--host", default="127.0.0.1", help="address on which Airflow's UI listens")
    up.add_argument("--port", type=int, default=0, help="port of Airflow's UI; 0 for a free one")
    up.add_argument("--kubeconfig", type=Path, help="use the API server of this kubeconfig instead of the sandbox's")
    commands.add_parser("down", help="stop a demo that was left running")
    cleaner = commands.add_parser("clean", help="remove what a killed demo left on your API server")
    cleaner.add_argument("--kubeconfig", type=Path, required=True)
    args = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.command == "down":
            return down(args.build_dir)
        if args.command == "clean":
            return clean(args.kubeconfig, args.build_dir)
    except StackError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    if (args.build_dir / "stack.json").exists() and demo_run.still_running(args.build_dir):
        print("a demo is still running here; stop it with `make down`", file=sys.stderr)
        return 2
    stack = Stack(build_dir=args.build_dir, speed=args.speed, seed=args.seed)
    try:
        if args.command == "up":
            stack.bind_host, stack.port, stack.outlives = args.host, args.port, not args.foreground
            demo_run.up(stack, args.kubeconfig, foreground=args.foreground)
            return 0
        return demo_run.run(stack, fault=args.fault, keep=args.keep, kubeconfig=args.kubeconfig)
    except StackError as error:
        print(f"could not be started: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: stopping everything", file=sys.stderr)
        stack.stop()
        return 130


def down(build_dir: Path) -> int:
    """Stop what is running, and remove what it created on a borrowed API server."""
    kubeconfig = saved_kubeconfig(build_dir)
    print("stopped" if stop_saved(build_dir) else "nothing was running")
    return 0 if kubeconfig is None else clean(kubeconfig, build_dir)


def clean(kubeconfig: Path, build_dir: Path) -> int:
    cleaned = Borrowed.open(kubeconfig, build_dir / "home").clean()
    print(cleaned.text)
    return 1 if cleaned.left else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
