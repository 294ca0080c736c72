from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, parse_cluster
from gpu_fleet.core.spec.yaml.document import MAX_BYTES
from gpu_fleet.hooks.files.clusters import (
    CLUSTERS_DIR_VARIABLE,
    cluster_names,
    clusters_dir,
    load_cluster,
    load_fleet,
)
from tests.unit.core.specs import DEMO_FILE

DEMO = DEMO_FILE.read_text(encoding="utf-8")


#: Nested anchors: 9 ** 9 words in some hundred bytes.
BOMB = ", ".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
)


def write(folder: Path, name: str, *, cluster: str = "", text: str | None = None, suffix: str = ".yaml") -> Path:
    path = folder / f"{name}{suffix}"
    body = DEMO.replace("name: demo\n", f"name: {name}\n").replace("demo-gpu", cluster or f"eks-{name}")
    path.write_text(body if text is None else text, encoding="utf-8")
    return path


def problems(found: ClusterSpec | SpecError) -> str:
    assert isinstance(found, SpecErrors)
    return str(found)


def test_a_fleet_is_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path, "b")
    write(tmp_path, "a", suffix=".yml")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.yaml").write_text("x")
    assert cluster_names(tmp_path) == ["a", "b"]
    fleet = load_fleet(tmp_path)
    assert list(fleet) == ["a", "b"]
    assert all(isinstance(spec, ClusterSpec) for spec in fleet.values())


#: situation -> content of the file bad.yaml, what is said of it
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "only comments": (b"# nothing\n", "is empty"),
    "a list": (b"- a\n", "holds a list, not a mapping"),
    "a word": (b"hello\n", "holds a str, not a mapping"),
    "not YAML": (b"a: [1\n", "is not valid YAML"),
    "a tab": (b"a:\n\tb: 1\n", "is not valid YAML"),
    "several documents": (b"a: 1\n---\nb: 2\n", "line 2, column 1: the file: holds several documents (write one file"),
    "not UTF-8": (b"name: \xff\n", "is not UTF-8"),
    "a key twice": (b"name: bad\nname: bad\n", "line 2, column 1: the file: duplicate key 'name' (remove one)"),
    "a key twice, deep": (b"aws: {region: a, region: b}\n", "line 1, column 18: aws: duplicate key 'region'"),
    "an object tag": (b"!!python/object/apply:os.system ['true']\n", "the tag !!python/object/apply:os.system"),
    "an impossible date": (
        b"name: 2026-13-45\n",
        "name: 2026-13-45 is a date in YAML 1.1 and text in YAML 1.2 (quote it",
    ),
    "too large": (b"#" * (MAX_BYTES + 1), "at most 256 KiB"),
    "other name": (DEMO.encode(), "'demo' is not the file's name 'bad'"),
    "wrong field": (DEMO.replace("us-west-2", "Oregon").encode(), "aws.region"),
    "an unhashable key": (b"? [a]\n: b\n", "bad.yaml"),
    "an alias bomb in the labels": (
        DEMO.replace("wantedNodes: 2", f"labels: {{{BOMB}}}").encode(),
        "nodePools[0].labels.a4[1]: the file has more than 20000 values when its aliases are expanded",
    ),
    "an alias bomb in Helm values": (
        DEMO.replace("devicePlugin:\n", f"devicePlugin:\n  values: {{{BOMB}}}\n").encode(),
        "devicePlugin.values.a4[1]",
    ),
    "Helm values nested 300 levels": (
        DEMO.replace("devicePlugin:\n", f"devicePlugin:\n  values: {{a: {'[' * 300}{']' * 300}}}\n").encode(),
        "nested deeper than 40 levels",
    ),
    "Helm values that contain themselves": (
        DEMO.replace("devicePlugin:\n", "devicePlugin:\n  values: &v {a: [*v]}\n").encode(),
        "*v contains itself",
    ),
    "NaN in Helm values": (
        DEMO.replace("devicePlugin:\n", "devicePlugin:\n  values: {a: .nan}\n").encode(),
        "devicePlugin.values.a: .nan is not a number",
    ),
    "yes for a number": (DEMO.replace("wantedNodes: 2", "wantedNodes: yes").encode(), "nodePools[0].wantedNodes: yes"),
    "an octal number": (DEMO.replace("wantedNodes: 2", "wantedNodes: 010").encode(), "nodePools[0].wantedNodes: 010"),
    "ninety nodes": (DEMO.replace("wantedNodes: 2", "wantedNodes: 1:30").encode(), "nodePools[0].wantedNodes: 1:30"),
    "a number for a boolean": (
        DEMO.replace("gracePeriod: -1", "force: 1").encode(),
        "drain.force: must be true or false, not 1 (write true or false",
    ),
    "a quoted number": (
        DEMO.replace("wantedNodes: 2", 'wantedNodes: "2"').encode(),
        "nodePools[0].wantedNodes: must be a whole number, not '2'",
    ),
    "a truth for a number": (
        DEMO.replace("wantedNodes: 2", "wantedNodes: true").encode(),
        "nodePools[0].wantedNodes: must be a whole number, not True",
    ),
    "a name with a line break": (DEMO.replace("name: demo\n", 'name: "bad\\n"\n').encode(), "name: 'bad\\n'"),
    "UTF-16": (DEMO.encode("utf-16"), "is UTF-16 (save it as UTF-8)"),
}


def test_an_error_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        DEMO.replace("name: demo\n", "name: bad\n").replace("replicas: 4", "replicas: 1")
    )
    line = DEMO[: DEMO.index("replicas: 4")].count("\n") + 1
    (problem,) = load_fleet(tmp_path)["bad"].problems  # type: ignore[union-attr]
    assert problem.place == f"line {line}, column 34"
    assert f"  - {problem.place}: nodePools[0].sharing.replicas: 1 is not sharing" in problems(
        load_fleet(tmp_path)["bad"]
    )


def test_a_hostile_file_costs_the_fleet_less_than_a_second(tmp_path: Path) -> None:
    """Each task's start reads the other files, too, to see whether they describe the same cluster."""
    write(tmp_path, "good")
    for number, text in enumerate(
        (
            f"# eks-good\n{BOMB.replace(', a', chr(10) + 'a')}",
            f"# eks-good\n{'[' * 200_000}",
            f"# eks-good\n{'- ' * 100_000}",
        )
    ):
        (tmp_path / f"bad{number}.yaml").write_text(text)
    started = time.process_time()
    assert isinstance(load_cluster("good", tmp_path), ClusterSpec)
    assert [name for name, spec in load_fleet(tmp_path).items() if isinstance(spec, ClusterSpec)] == ["good"]
    assert time.process_time() - started < 1


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    write(tmp_path, "good")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nothing")
    fleet = load_fleet(tmp_path)
    for name in ("pipe", "zero", "gone"):
        assert "cannot be read" in problems(fleet[name])
    assert isinstance(load_cluster("good", tmp_path), ClusterSpec)


def test_a_file_name_that_is_no_text_is_told_all_the_same(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))).write_text("a: 1\n")
    (found,) = load_fleet(tmp_path).values()
    assert "\\xff.yaml" in problems(found)
    assert str(found).encode()


def test_an_error_of_our_own_harms_one_cluster_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "good")
    write(tmp_path, "odd")

    def failing(value: dict[str, object], **known: object) -> ClusterSpec:
        if value["name"] == "odd":
            raise KeyError("x")
        return parse_cluster(value, **known)  # type: ignore[arg-type]

    monkeypatch.setattr("gpu_fleet.hooks.files.clusters.parse_cluster", failing)
    fleet = load_fleet(tmp_path)
    assert "cannot be judged: KeyError" in problems(fleet["odd"])
    assert isinstance(fleet["good"], ClusterSpec)


@pytest.mark.parametrize("situation", BAD)
def test_a_bad_file_breaks_itself_only(tmp_path: Path, situation: str) -> None:
    content, said = BAD[situation]
    (tmp_path / "bad.yaml").write_bytes(content)
    write(tmp_path, "good")
    fleet = load_fleet(tmp_path)
    assert said in problems(fleet["bad"])
    assert "bad.yaml" in problems(fleet["bad"])
    assert isinstance(fleet["good"], ClusterSpec)
    with pytest.raises(SpecError):
        load_cluster("bad", tmp_path)


def test_a_folder_in_place_of_a_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").mkdir()
    assert "cannot be read" in problems(load_fleet(tmp_path)["bad"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "bad").chmod(0)
    assert "cannot be read: Permission denied" in problems(load_fleet(tmp_path)["bad"])


def test_one_cluster_in_two_files_of_a_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "a", suffix=".yml")
    assert "a.yaml and a.yml describe the same cluster" in problems(load_fleet(tmp_path)["a"])
    with pytest.raises(SpecError, match="describe the same cluster"):
        load_cluster("a", tmp_path)


def test_one_eks_cluster_in_two_files_is_refused_in_both(tmp_path: Path) -> None:
    write(tmp_path, "a", cluster="same")
    write(tmp_path, "b", cluster="same")
    write(tmp_path, "c")
    fleet = load_fleet(tmp_path)
    assert "also described by b" in problems(fleet["a"])
    assert "also described by a" in problems(fleet["b"])
    # A task parses its own Dag alone, and must find the one that was stored.
    with pytest.raises(SpecError, match="also described by b"):
        load_cluster("a", tmp_path)
    assert isinstance(fleet["c"], ClusterSpec)


def test_one_queue_in_two_files_is_refused_in_both(tmp_path: Path) -> None:
    """A message goes to one reader: each cluster would miss some of its interruptions."""
    for name in ("a", "b"):
        path = write(tmp_path, name)
        path.write_text(path.read_text().replace(f"queue: eks-{name}-gpu-fleet", "queue: shared"))
    write(tmp_path, "c")
    fleet = load_fleet(tmp_path)
    assert "interruptions.queue: queue shared in us-west-2 is also named by b" in problems(fleet["a"])
    assert "also named by a" in problems(fleet["b"])
    with pytest.raises(SpecError, match="also named by b"):
        load_cluster("a", tmp_path)
    assert isinstance(fleet["c"], ClusterSpec)
    assert isinstance(load_cluster("c", tmp_path), ClusterSpec)


def test_clusters_of_a_name_in_two_regions_are_two_clusters(tmp_path: Path) -> None:
    write(tmp_path, "a", cluster="same")
    path = write(tmp_path, "b", cluster="same")
    path.write_text(path.read_text().replace("us-west-2", "eu-west-1"))
    assert all(isinstance(spec, ClusterSpec) for spec in load_fleet(tmp_path).values())


def test_a_missing_cluster_and_a_missing_folder_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no cluster file .*nope\.yaml"):
        load_cluster("nope", tmp_path)
    for call in (load_fleet, cluster_names):
        with pytest.raises(SpecError, match=CLUSTERS_DIR_VARIABLE):
            call(tmp_path / "nope")


def test_the_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLUSTERS_DIR_VARIABLE, raising=False)
    assert clusters_dir() == DEMO_FILE.parent
    write(tmp_path, "moved")
    monkeypatch.setenv(CLUSTERS_DIR_VARIABLE, str(tmp_path))
    assert cluster_names() == ["moved"]
    assert load_cluster("moved").name == "moved"


def test_an_empty_folder_is_an_empty_fleet(tmp_path: Path) -> None:
    assert load_fleet(tmp_path) == {}
