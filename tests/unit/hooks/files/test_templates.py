from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.kinds import kind_of
from gpu_fleet.hooks.files.templates import INCLUDE_DIR_VARIABLE, include_dir, read_template


@pytest.mark.parametrize("path", sorted((include_dir() / "manifests").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_manifest_template_is_one_known_object(path: Path) -> None:
    assert "{{" not in path.read_text(encoding="utf-8")
    manifest = read_template(f"manifests/{path.stem}")
    assert kind_of(manifest) is not None
    assert manifest["metadata"]["name"]


@pytest.mark.parametrize("path", sorted((include_dir() / "helm").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_values_template_is_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    assert read_template(f"helm/{path.stem}") == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("a: [", "not valid YAML"), ("- a", "no mapping"), ("", "no mapping")],
)
def test_a_broken_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    monkeypatch.setenv(INCLUDE_DIR_VARIABLE, str(tmp_path))
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(SpecError, match=said):
        read_template("x")


def test_no_import_sets_the_reader_of_templates() -> None:
    """A task sets it when it is prepared; what an import sets depends on the order of imports."""
    code = """
from gpu_fleet.core.manifests import templates
from gpu_fleet.hooks import preload
assert preload.preload(preload.MODULES["scheduler"]) == []
print("@@@", templates._reader)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.partition("@@@")[2].strip() == "None", done.stderr[-2000:]
