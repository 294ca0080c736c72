"""Charts are fetched by a real helm from a repository served here."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpu_fleet.core.errors import ApiUnavailable, Invalid, SpecError
from gpu_fleet.core.releases.request import ChartRef
from gpu_fleet.hooks.helm.charts.archives import fetch_chart, identified
from tests.e2e.helm_world import helm_binary


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        """Nothing: the test's output is enough."""


class Repository:
    def __init__(self, folder: Path) -> None:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            text = b"apiVersion: v2\nname: tiny\nversion: 1.0.0\n"
            member = tarfile.TarInfo("tiny/Chart.yaml")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        (folder / "tiny-1.0.0.tgz").write_bytes(content.getvalue())
        self.sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        entry = {"apiVersion: v2", "name: tiny", "version: 1.0.0", "urls: [tiny-1.0.0.tgz]"}
        (folder / "index.yaml").write_text(
            "apiVersion: v1\nentries:\n  tiny:\n    - " + "\n      ".join(sorted(entry)) + "\n"
        )
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    monkeypatch.setenv("GPU_FLEET_CHART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPU_FLEET_CHART_MIRRORS", raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    found = Repository(folder)
    yield found
    found.stop()


def test_a_chart_is_pulled_once_and_then_taken_from_the_cache(repository: Repository) -> None:
    chart = ChartRef("tiny", "1.0.0", repository.url, repository.sha256)
    first = fetch_chart(chart)
    assert hashlib.sha256(first.read_bytes()).hexdigest() == repository.sha256
    repository.stop()
    assert fetch_chart(chart) == first


def test_a_mirror_stands_in_for_an_unreachable_registry(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_FLEET_CHART_MIRRORS", f'{{"oci://registry.invalid": "{repository.url}"}}')
    assert fetch_chart(ChartRef("tiny", "1.0.0", "oci://registry.invalid")).exists()


def test_another_archive_than_wanted_is_refused_and_not_kept(repository: Repository) -> None:
    with pytest.raises(SpecError) as caught:
        fetch_chart(ChartRef("tiny", "1.0.0", repository.url, "a" * 64))
    assert caught.value.reason == "ChartDigestMismatch"
    assert repository.sha256 in caught.value.message
    assert not list(Path(os.environ["GPU_FLEET_CHART_CACHE"]).glob("*"))


def test_a_damaged_cache_is_pulled_again(repository: Repository) -> None:
    chart = ChartRef("tiny", "1.0.0", repository.url, repository.sha256)
    cached = fetch_chart(chart)
    cached.write_bytes(b"damaged")
    assert hashlib.sha256(fetch_chart(chart).read_bytes()).hexdigest() == repository.sha256


def test_a_missing_version_is_permanent(repository: Repository) -> None:
    with pytest.raises(Invalid) as caught:
        fetch_chart(ChartRef("tiny", "9.9.9", repository.url))
    assert caught.value.reason == "ChartNotFound"


def test_an_unreachable_repository_may_be_back_later(repository: Repository) -> None:
    repository.stop()
    with pytest.raises(ApiUnavailable) as caught:
        fetch_chart(ChartRef("tiny", "1.0.0", repository.url))
    assert "mirror" in caught.value.message


def test_a_missing_local_chart_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing"):
        fetch_chart(ChartRef(str(tmp_path / "nothing")))


def test_a_directory_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        fetch_chart(ChartRef(str(tmp_path), digest="a" * 64))
    assert caught.value.field == "digest"


def local_chart(folder: Path) -> ChartRef:
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 1.0.0\n")
    (folder / "templates" / "one.yaml").write_text("kind: ConfigMap\n")
    return ChartRef(str(folder))


def test_a_local_chart_is_what_its_files_are(tmp_path: Path) -> None:
    chart = local_chart(tmp_path / "tiny")
    before = identified(chart)
    copy = identified(local_chart(tmp_path / "elsewhere" / "tiny"))
    assert len(before.content) == 64
    assert copy.content == before.content
    (tmp_path / "tiny" / ".git").mkdir()
    (tmp_path / "tiny" / ".git" / "HEAD").write_text("ref")
    (tmp_path / "tiny" / "templates" / "back").symlink_to(tmp_path / "tiny")
    os.utime(tmp_path / "tiny" / "Chart.yaml", (1, 1))
    assert identified(chart) == before
    (tmp_path / "tiny" / "templates" / "one.yaml").rename(tmp_path / "tiny" / "templates" / "two.yaml")
    renamed = identified(chart).content
    (tmp_path / "tiny" / "templates" / "two.yaml").write_text("kind: Secret\n")
    assert len({before.content, renamed, identified(chart).content}) == 3


def test_a_local_archive_is_its_sha256_and_a_remote_one_is_not_looked_at(
    repository: Repository, tmp_path: Path
) -> None:
    archive = tmp_path / "repository" / "tiny-1.0.0.tgz"
    assert identified(ChartRef(str(archive))).content == repository.sha256
    remote = ChartRef("tiny", "1.0.0", "https://charts.invalid")
    assert identified(remote) == remote


def test_a_local_chart_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    chart = local_chart(tmp_path / "tiny")
    (tmp_path / "tiny" / "broken").symlink_to(tmp_path / "nothing")
    with pytest.raises(SpecError, match="broken"):
        identified(chart)
    with pytest.raises(SpecError, match="there is no chart"):
        identified(ChartRef(str(tmp_path / "nothing")))


def test_the_lock_command_notes_what_the_repository_serves(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the device plugin is managed here, and its chart is this repository's."""
    import yaml

    from gpu_fleet.__main__ import main
    from gpu_fleet.hooks.files.clusters import load_cluster
    from gpu_fleet.hooks.helm.charts.locks import apply_locks

    value = load_cluster("demo").to_json()
    value["karpenter"]["manage"] = False
    value["devicePlugin"]["chart"] = {"repository": "https://charts.example.com", "name": "tiny", "version": "1.0.0"}
    monkeypatch.setenv("GPU_FLEET_CHART_MIRRORS", f'{{"https://charts.example.com": "{repository.url}"}}')
    folder = tmp_path / "clusters"
    folder.mkdir()
    (folder / "demo.yaml").write_text(yaml.safe_dump(value))
    assert main(["lock", str(folder), "--check"]) == 1
    assert main(["lock", str(folder)]) == 0
    assert f"+ https://charts.example.com/tiny 1.0.0 sha256:{repository.sha256}" in capsys.readouterr().out
    assert main(["lock", str(folder), "--check"]) == 0
    good = (tmp_path / "charts.lock.yaml").read_text()
    noted = good + "  source: the index of that day\n"
    (tmp_path / "charts.lock.yaml").write_text(f"others: by-version\n{noted}")
    assert main(["lock", str(folder), "--check"]) == 1, "it does not refuse other charts"
    assert main(["lock", str(folder)]) == 0
    assert (tmp_path / "charts.lock.yaml").read_text() == noted, "the digest is the same, and so is its source"
    (tmp_path / "charts.lock.yaml").write_text(noted.replace(repository.sha256, "0" * 64))
    assert main(["lock", str(folder)]) == 0
    assert (tmp_path / "charts.lock.yaml").read_text() == good, "the source was that of another digest"
    (tmp_path / "charts.lock.yaml").write_text(f"<<<<<<< ours\n{good}=======\n{good}>>>>>>> theirs\n")
    assert main(["lock", str(folder), "--check"]) == 2, "a file with merge markers is not up to date"
    assert main(["lock", str(folder)]) == 0, "what is broken is written anew"
    assert (tmp_path / "charts.lock.yaml").read_text() == good
    spec = apply_locks(load_cluster("demo", folder), folder)
    assert spec.device_plugin.chart.digest == f"sha256:{repository.sha256}"
    repository.stop()
    (tmp_path / "charts.lock.yaml").unlink()
    assert main(["lock", str(folder)]) == 2, "a chart that cannot be had is locked to nothing"
    assert not (tmp_path / "charts.lock.yaml").exists()


def test_a_local_chart_says_its_name_and_version(repository: Repository, tmp_path: Path) -> None:
    archive = tmp_path / "repository" / "tiny-1.0.0.tgz"
    assert identified(ChartRef(str(archive))).declared == ("tiny", "1.0.0")
    folder = tmp_path / "chart"
    (folder / "charts").mkdir(parents=True)
    assert identified(ChartRef(str(folder))).declared is None
    (folder / "Chart.yaml").write_text("name: other\nversion: 2.0.0\n")
    assert identified(ChartRef(str(folder))).declared == ("other", "2.0.0")
    (folder / "Chart.yaml").write_text("name: [\n")
    assert identified(ChartRef(str(folder))).declared is None
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(archive.read_bytes()[:60])
    assert identified(ChartRef(str(broken))).declared is None
