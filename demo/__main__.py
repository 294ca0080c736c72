"""``python -m demo run|up|down``; see the Makefile."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from demo import run as demo_run
from demo.stack import ROOT, Stack, StackError, stop_saved

#: The demo's fixed speed: the simulated world is this much faster than the real one.
SPEED = 1.6
BUILD = ROOT / "build" / "demo"


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 all went as it should; 1 it did not; 2 it could not be started; 130 interrupted."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--build-dir", type=Path, default=BUILD)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one lifecycle, with a report")
    run.add_argument("--fault", choices=["broken-plugin"])
    run.add_argument("--keep", action="store_true", help="stop after validation and keep everything up")
    run.add_argument("--speed", type=float, default=SPEED)
    run.add_argument("--seed", type=int, default=1)
    up = commands.add_parser("up", help="start sandbox and Airflow and leave them running")
    up.add_argument("--speed", type=float, default=SPEED)
    up.add_argument("--seed", type=int, default=1)
    up.add_argument("--foreground", action="store_true", help="stay, and stop everything at the end")
    up.add_argument("--host", default="127.0.0.1", help="where Airflow's UI listens")
    up.add_argument("--port", type=int, default=0, help="its port; 0 for a free one")
    commands.add_parser("down", help="stop what was left running")
    args = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, _interrupt)
    if args.command == "down":
        print("stopped" if stop_saved(args.build_dir) else "nothing was running")
        return 0
    if (args.build_dir / "stack.json").exists() and demo_run.still_running(args.build_dir):
        print("a demo is still running here; stop it with `make down`", file=sys.stderr)
        return 2
    stack = Stack(build_dir=args.build_dir, speed=args.speed, seed=args.seed)
    try:
        if args.command == "up":
            stack.bind_host, stack.port, stack.outlives = args.host, args.port, not args.foreground
            stack.start()
            demo_run.say_where(stack)
            if args.foreground:
                demo_run.stay(stack)
            return 0
        return demo_run.run(stack, fault=args.fault, keep=args.keep)
    except StackError as error:
        print(f"could not be started: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: stopping everything", file=sys.stderr)
        stack.stop()
        return 130


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
