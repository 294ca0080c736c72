"""``python -m sandbox.apiserver --state-dir D [--port N]``: only the API server, for development."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from sandbox.apiserver.server import running
from sandbox.settings import Settings


async def _main(state_dir: Path, port: int, version: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    settings = Settings(state_dir=state_dir, kubernetes_version=version)
    async with running(state_dir, port=port, settings=settings) as cluster:
        print(f"serving {cluster.url}\nexport KUBECONFIG={cluster.kubeconfig}", flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.apiserver", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="certificates and admin.kubeconfig go here")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free port")
    parser.add_argument("--kubernetes-version", default="1.35")
    options = parser.parse_args()
    asyncio.run(_main(options.state_dir.resolve(), options.port, options.kubernetes_version))


if __name__ == "__main__":
    main()
