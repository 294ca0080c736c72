from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.apiserver import Running, running
from tests.sandbox.apiserver.client import Api, connect
from tests.sandbox.apiserver.elsewhere import VARIABLE, elsewhere
from tools.toolchain import locate


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running | None]:
    """The sandbox's server; ``None`` if the tests are for another one (``E2E_KUBECONFIG``)."""
    if os.environ.get(VARIABLE):
        yield None
        return
    async with running(tmp_path / "state") as own:
        yield own


@pytest.fixture
def cluster(server: Running | None) -> Running:
    """The sandbox's server, for tests that look behind its API."""
    if server is None:
        pytest.skip("looks behind the API of the sandbox's own server")
    return server


@pytest.fixture
async def api(server: Running | None) -> AsyncIterator[Api]:
    """An administrator."""
    if server is None:
        async with elsewhere(Path(os.environ[VARIABLE])) as client:
            yield client
        return
    async with connect(server.kubeconfig) as client:
        yield client


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Coroutine[None, None, Result]]


def _cli(binary: str, kubeconfig: Path, home: Path) -> Cli:
    environment = {
        "HOME": str(home),
        "KUBECONFIG": str(kubeconfig),
        "PATH": os.environ["PATH"],
        "XDG_CACHE_HOME": str(home / "cache"),
    }

    async def run(*arguments: str, stdin: str = "", fails: bool = False) -> Result:
        process = await asyncio.create_subprocess_exec(
            binary,
            *arguments,
            env=environment,
            cwd=home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(f"{arguments} did not end: {out.decode()}\n{err.decode()}") from None
        result = Result(process.returncode or 0, out.decode(), err.decode())
        assert (result.code != 0) is fails, f"{arguments}: {result.code}\n{result.out}\n{result.err}"
        return result

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def tools() -> dict[str, str]:
    """Paths of helm and kubectl; fetched once where there are none."""
    return locate(os.environ)


@pytest.fixture
def kubectl(cluster: Running, home: Path, tools: dict[str, str]) -> Cli:
    return _cli(tools["KUBECTL_BIN"], cluster.kubeconfig, home)


@pytest.fixture
def helm(cluster: Running, home: Path, tools: dict[str, str]) -> Cli:
    return _cli(tools["HELM_BIN"], cluster.kubeconfig, home)
