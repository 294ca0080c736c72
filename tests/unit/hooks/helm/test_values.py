"""Values on their way into a real helm of both majors: every character arrives as it was written."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.helm.values import values_document
from gpu_fleet.hooks.helm.binary.command import write_values
from tests.e2e.helm_world import helm_binary

#: Every character of the basic plane but halves of surrogate pairs, and the ends and a middle of each other plane.
BASIC = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code <= 0xDFFF)
OTHERS = "".join(chr(0x10000 * plane + code) for plane in range(1, 17) for code in (0, 0x8000, 0xF680, 0xFFFF))
VALUES: dict[str, Any] = {
    "basic": BASIC,
    "others": OTHERS,
    "emoji": "🚀 GPUs für alle 🎉",
    "🚀key": {"nested\u2028key": ["\x85", "\u2029 ", "\ufeffmark", "\x7f", "a\nb\r\nc", " end ", "#no", "y", "1e3"]},
}


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "echo"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: echo\nversion: 1.0.0\n")
    template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {all: {{ .Values | toJson | b64enc }}}\n"
    (folder / "templates" / "x.yaml").write_text(template)
    return folder


@pytest.mark.parametrize("major", [3, 4])
def test_every_character_survives_the_journey(chart: Path, tmp_path: Path, major: int) -> None:
    written = tmp_path / "values.yaml"
    write_values(VALUES, written)
    command = [helm_binary(major), "template", "echo", str(chart), "--values", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    encoded = done.stdout.partition("all: ")[2].partition("}")[0]
    assert json.loads(base64.b64decode(encoded)) == VALUES


def test_the_file_is_private_and_in_utf_8(tmp_path: Path) -> None:
    written = tmp_path / "values.yaml"
    write_values({"a": "🚀"}, written)
    assert written.read_bytes() == '{"a": "🚀"}'.encode()
    assert written.stat().st_mode & 0o777 == 0o600


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(SpecError, match=r"U\+D83D"):
        values_document({"a": "\ud83d"})
