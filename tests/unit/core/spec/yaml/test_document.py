"""Files as people and editors write them, and as somebody would who wants to stop the DAG processor."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec.yaml.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, read_document


def bomb(levels: int = 12, width: int = 9, leaf: str = "x") -> str:
    """Nested anchors: ``width ** levels`` leaves in a few hundred bytes."""
    lines = [f"a0: &a0 [{', '.join([leaf] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def mapping_bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}, m: *a{n - 1}}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


#: situation -> bytes, what the problem says, where it is, what to write
REFUSED: dict[str, tuple[str | bytes, str, str, str]] = {
    "an alias bomb of lists": (bomb(), "more than 20000 values when its aliases", "line 5, column", "use no aliases"),
    "an alias bomb of mappings": (mapping_bomb(), "more than 20000 values", "line ", "use no aliases"),
    "an alias bomb in a pool's labels": (
        f"nodePools:\n- labels:\n    {bomb().replace(chr(10), chr(10) + '    ')}",
        "more than 20000 values",
        "line 7",
        "use no aliases",
    ),
    "an alias bomb of a long text": (
        f"t: &t {'x' * 60_000}\nl: [{', '.join(['*t'] * 40)}]\n",
        "more than 1024 KiB when its aliases",
        "line 2, column",
        "use no aliases",
    ),
    "an alias bomb of merge keys": (
        "a0: &a0 {k0: v, k1: v, k2: v, k3: v}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], x{n}: *a{n - 1}}}\n" for n in range(1, 9)),
        "more than 20000 values",
        "line ",
        "use no aliases",
    ),
    "flow lists nested 300 levels": ("a: " + "[" * 300 + "]" * 300, f"deeper than {MAX_DEPTH}", "line 1", "flatten"),
    "block lists nested 300 levels": ("- " * 300 + "a", f"deeper than {MAX_DEPTH}", "line 1", "flatten it"),
    "100000 open brackets": ("[" * 100_000, f"deeper than {MAX_DEPTH}", "line 1", "flatten it"),
    "100000 open braces": ("{a: " * 50_000, f"deeper than {MAX_DEPTH}", "line 1", "flatten it"),
    "mappings nested 300 levels": (
        "".join(f"{' ' * n}k:\n" for n in range(300)),
        f"deeper than {MAX_DEPTH}",
        f"line {MAX_DEPTH + 1}",
        "flatten it",
    ),
    "a list that contains itself": ("a: &a [1, *a]\n", "*a contains itself", "line 1, column 11", "remove the alias"),
    "a mapping that contains itself": ("a: &a {b: *a}\n", "*a contains itself", "line 1", "remove the alias"),
    "two that contain each other": ("a: &a [&b [*a]]\n", "*a contains itself", "line 1", "remove the alias"),
    "an alias of nothing": ("a: *b\n", "no anchor &b comes before", "line 1, column 4", "define it"),
    "an anchor twice": ("a: &a 1\nb: &a 2\n", "the anchor &a is defined twice", "line 2", "rename one"),
    "many values": ("[" + "1," * (MAX_NODES + 1) + "]", "more than 20000 values", "line 1", "write fewer"),
    "a key twice": ("a:\n  b: 1\n  b: 2\n", "duplicate key 'b'", "line 3, column 3", "remove one"),
    "a key twice, once in quotes": ("{a: 1, 'a': 2}", "duplicate key 'a'", "line 1, column 8", "remove one"),
    "a merge key twice": ("a: &a {}\nb: {<<: *a, <<: *a}\n", "duplicate key '<<'", "line 2", "<<: [*a, *b]"),
    "a merge of a word": ("a: {<<: b}\n", "<< takes a mapping", "line 1", "<<: *anchor"),
    "a merge of a list of words": ("a: {<<: [b]}\n", "<< takes a mapping", "line 1", "<<: *anchor"),
    "a list as a key": ("? [a]\n: b\n", "a list or mapping cannot be a key", "line 1", "write a word"),
    "an alias of a list as a key": ("a: &a []\n? *a\n: b\n", "*a is not a word", "line 2", "write the key"),
    "a number as a key": ("a: {8080: b}\n", "the key 8080 is not text", "line 1, column 5", 'quote it: "8080"'),
    "a boolean as a key": ("a: {true: b}\n", "the key true is not text", "line 1", 'quote it: "true"'),
    "on as a key": ("on: b\n", "on is true in YAML 1.1", "line 1", "write true"),
    "no key": ("?\n: b\n", "a key is missing", "line 1", "before the ':'"),
    "a key of a page": (f"{'k' * 600}: 1\n", "a key has 600 characters", "line 1", "at most 512"),
    "a Python object": ("a: !!python/name:os.system\n", "the tag !!python/name:os.system", "line 1", "remove it"),
    "a Python call": ("!!python/object/apply:os.system [x]\n", "the tag !!python/object", "line 1", "remove it"),
    "binary": ("a: !!binary aGk=\n", "the tag !!binary", "line 1, column 4", "remove it"),
    "a tagged date": ("a: !!timestamp 2026-01-01\n", "the tag !!timestamp", "line 1", "remove it"),
    "a set": ("a: !!set {b}\n", "the tag !!set", "line 1", "remove it"),
    "an ordered map": ("a: !!omap [b: 1]\n", "the tag !!omap", "line 1", "remove it"),
    "a tagged number": ("a: !!int 010\n", "the tag !!int", "line 1", "remove it"),
    "a tag of one's own": ("a: !secret b\n", "the tag !secret", "line 1", "remove it"),
    "several documents": ("a: 1\n---\na: 2\n", "several documents", "line 2, column 1", "one file per cluster"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "is UTF-16", "", "save it as UTF-8"),
    "UTF-16 without a mark": ("a: 1\n".encode("utf-16-le"), "may be UTF-16", "line 1", "UTF-8"),
    "UTF-32": ("a: 1\n".encode("utf-32"), "is UTF-32", "", "save it as UTF-8"),
    "Latin-1": ("a: 1\nb: ö\n".encode("latin-1"), "is not UTF-8 (byte 8)", "line 2", "save it as UTF-8"),
    "a NUL": (b"a: 1\nb: \0\n", "control character '\\x00'", "line 2", "remove it"),
    "an escape": (b"a: 1\nb: \x1b[0m\n", "control character '\\x1b'", "line 2", "remove it"),
    "a NUL in quotes": ('a: "\\0"\n', "holds a NUL", "line 1", "remove it"),
    "half a surrogate pair": ('a: "\\ud800"\n', "", "line 1", ""),
    "a tab": ("a:\n\tb: 1\n", "is not valid YAML", "line 2", "spaces"),
    "an open bracket": ("a: [1\n", "is not valid YAML", "line 2", "correct it"),
    "too many bytes": (b"#" * (MAX_BYTES + 1), "is too large", "", "at most 256 KiB"),
}

#: What a person wrote and YAML 1.1 read as something else.
AMBIGUOUS = {
    "yes": "write true", "Yes": "write true", "ON": "write true", "no": "write false", "off": "write false",
    "010": "plain number", "-012": "plain number", "08": "plain number", "0x10": "plain number",
    "0o10": "plain number", "0b101": "plain number", "1_000": "plain number", "1_0.5": "plain number",
    "1:30": "plain number", "190:20:30": "plain number", "1:30.5": "plain number", "1e3": "plain number",
    "1.5e3": "plain number", "12e5": "plain number", "-.5": "plain number", "00.5": "plain number",
    ".inf": "finite", "-.Inf": "finite", ".nan": "finite", ".NaN": "finite", "1.0e+999": "shorter",
    f"{2**63}": "smaller", f"-{2**63 + 1}": "smaller", "9" * 5000: "smaller", "0." + "1" * 5000: "shorter",
    "2026-01-01": "quote it", "2026-01-01T10:00:00Z": "quote it", "2026-1-1 10:00:00": "quote it", "=": "quote it",
}  # fmt: skip

#: What all versions of YAML read alike.
PLAIN: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "true": True, "True": True, "FALSE": False,
    "0": 0, "-0": 0, "7": 7, "+7": 7, "-12": -12, f"{2**63 - 1}": 2**63 - 1, f"{-(2**63)}": -(2**63),
    "1.5": 1.5, "1.": 1.0, ".5": 0.5, "-1.5": -1.5, "1.5e+3": 1500.0, "1.30": 1.3,
    "1.14.1": "1.14.1", "v1": "v1", "10%": "10%", "5m": "5m", "g5.xlarge": "g5.xlarge", "y": "y", "n": "n",
    "8080:80": "8080:80", "nvcr.io/x:1.2": "nvcr.io/x:1.2", "2026-01": "2026-01", "!!str 010": "010", "'yes'": "yes",
    '"0x10"': "0x10", "! 12": "12", "nan": "nan", "inf": "inf", "'2026-01-01'": "2026-01-01", "'~'": "~", "ö": "ö",
}  # fmt: skip


@pytest.mark.parametrize("situation", REFUSED)
def test_a_hostile_or_broken_file_is_refused_with_its_place(situation: str) -> None:
    content, said, place, remedy = REFUSED[situation]
    raw = content if isinstance(content, bytes) else content.encode()
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        read_document(raw)
    assert time.process_time() - started < 1
    assert said in caught.value.message
    assert caught.value.place.startswith(place)
    assert bool(caught.value.place) == bool(place)
    assert remedy in caught.value.remedy
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_what_is_another_value_in_another_version_of_yaml_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_document(f"nodePools:\n- name: a\n- wantedNodes: {text}\n".encode())
    assert caught.value.field == "nodePools[1].wantedNodes"
    assert caught.value.place == "line 3, column 16"
    assert AMBIGUOUS[text] in caught.value.remedy
    assert '"' in caught.value.remedy  # how to write it as text


@pytest.mark.parametrize("text", PLAIN)
def test_what_all_versions_of_yaml_agree_on_is_taken(text: str) -> None:
    value = read_document(f"a: {text}\n".encode()).value["a"]
    assert value == PLAIN[text]
    assert type(value) is type(PLAIN[text])


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"", None),
        (b"# only a comment\n", None),
        (b"---\n", None),
        (b"\xef\xbb\xbfa: 1\n", {"a": 1}),
        (b"a: 1\r\nb: |\r\n  x\r\n", {"a": 1, "b": "x\n"}),
        (b"%YAML 1.1\n---\na: 1\n...\n", {"a": 1}),
        (b"a: &a [1, {b: c}]\nd: *a\n", {"a": [1, {"b": "c"}], "d": [1, {"b": "c"}]}),
        (b"a: &a k\n*a : 1\n", {"a": "k", "k": 1}),
        (b"a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        (b"a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}\n",
         {"a": {"x": 1}, "b": {"x": 2, "y": 2}, "c": {"x": 1, "y": 2, "z": 3}}),
        (b"a: {'<<': 1}\n", {"a": {"<<": 1}}),
    ],
)  # fmt: skip
def test_a_usual_file_is_read(raw: bytes, value: Any) -> None:
    assert read_document(raw).value == value


FILE = b"""\
name: demo
labels:
  example.com/team: a
  example.com: b
pools:
- &one
  name: one
  sharing: {mode: x}
- <<: *one
  name: two
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("name", "line 1, column 1"),
        ("labels.example.com/team", "line 3, column 3"),
        ("labels.example.com", "line 4, column 3"),
        ("labels", "line 2, column 1"),
        ("pools[0].sharing.mode", "line 8, column 13"),
        ("pools[0].sharing.replicas", "line 8, column 3"),
        ("pools[1].name", "line 10, column 3"),
        ("pools[1].sharing.mode", "line 8, column 13"),
        ("pools[2].name", "line 5, column 1"),
        ("surprise", ""),
        ("the file", ""),
    ],
)
def test_a_field_is_found_in_its_file(path: str, place: str) -> None:
    assert read_document(FILE).place(path) == place


def test_an_empty_file_has_no_places() -> None:
    assert read_document(b"").place("name") == ""


def test_a_bomb_costs_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SpecError):
            read_document(bomb(30, 12).encode())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
