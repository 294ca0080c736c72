"""Whatever is in a cluster file: a spec, or a SpecError that names it, in bounded time.

Quick and always the same in ``make unit``; ten times as much, and other files each time, with ``-m full``.
"""

from __future__ import annotations

import copy
import json
import random
import time
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, parse_cluster
from gpu_fleet.core.spec.yaml.document import MAX_BYTES, read_document
from tests.unit.core.spec.test_strict import FULL, LEAVES
from tests.unit.core.specs import DEMO_FILE

DEMO = DEMO_FILE.read_bytes()
QUICK = settings(max_examples=150, derandomize=True, deadline=None, database=None)
LONG = settings(
    max_examples=1500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
#: Seconds of computing that one file may cost the process in which all clusters are parsed.
MOST_SECONDS = 1.0


def told(error: SpecError) -> SpecError:
    """Something that fits into a log and into Airflow's database."""
    assert error.field
    assert len(str(error).encode()) < 100_000
    return error


def judged(raw: bytes) -> ClusterSpec | SpecError:
    """What becomes of a file, without the net that catches everything for the other clusters' sake."""
    started = time.process_time()
    try:
        document = read_document(raw)
        if not isinstance(document.value, dict):
            return SpecError("not a mapping", field="the file")
        spec = parse_cluster(document.value, where="fuzz.yaml", place=document.place)
        again = ClusterSpec.model_validate(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
        assert again.digest == spec.digest
        return spec
    except SpecError as error:
        return told(error)
    finally:
        assert time.process_time() - started < MOST_SECONDS


#: Parts of YAML that mean something, among others that do not.
TOKENS = st.sampled_from(
    ["a", "name", "b: ", "- ", "? ", ": ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: *a",
     "<<: ",
     "'", '"', "|\n", ">-\n", "!!python/name:x ", "!!binary ", "!!set ", "!x ", "---\n", "...\n", "# x\n",
     "%YAML 1.1\n",
     "\t", "\r\n", "\x00", "\ufeff", "\u2028", "010", "0x10", "1:30", "1_000", ".nan", ".inf", "yes", "~", "2026-01-01",
     "1e999", "9" * 30, "\\ud800", "ö", "🦉"]
)  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(TOKENS, max_size=60).map(lambda parts: "".join(parts).encode()),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**18, 10**25), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "a\n", "9" * 5000 + "h", "x" * 5000, "arn:aws:iam::1:role/x", "g5.*", "@daily", "0 6 30 2 *",
                     "R R R R R", "H H * * *", "0 6 L * *", "? ? ? ? ?", "1-60/9 * * * *", "* * * * 7#6", "Never",
                     "0s"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """The demo cluster's file with pieces cut, doubled and inserted."""
    raw = DEMO
    for _ in range(draw(st.integers(1, 4))):
        begin, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 40))
        piece = draw(st.one_of(TOKENS.map(lambda token: token.encode("utf-8", "surrogatepass")), st.binary(max_size=6)))
        raw = raw[:begin] + piece + raw[begin + length :]
    return raw


@st.composite
def mutated_mappings(draw: st.DrawFn) -> dict[str, Any]:
    """A file with every field written, some with other values or keys."""
    value = copy.deepcopy(FULL)
    paths = list(LEAVES)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths))
        depth = draw(st.integers(1, len(path)))
        target: Any = value
        try:
            for part in path[: depth - 1]:
                target = target[part]
            if draw(st.booleans()) or not isinstance(target, dict):
                target[path[depth - 1]] = draw(VALUES)
            else:
                target[draw(st.text(max_size=8))] = target.pop(path[depth - 1])
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this part away
    return value


class TestQuick:
    @QUICK
    @given(BYTES)
    def test_bytes(self, raw: bytes) -> None:
        judged(raw)

    @QUICK
    @given(mutated_bytes())
    def test_a_file_that_was_cut_and_pasted(self, raw: bytes) -> None:
        judged(raw)

    @QUICK
    @given(mutated_mappings())
    def test_a_file_with_other_values(self, value: dict[str, Any]) -> None:
        judged(yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))

    @QUICK
    @given(mutated_mappings())
    def test_a_mapping_that_comes_from_elsewhere(self, value: dict[str, Any]) -> None:
        try:
            assert parse_cluster(value).digest
        except SpecErrors as error:
            told(error)


@pytest.mark.full
class TestLong:
    @LONG
    @given(BYTES)
    def test_bytes(self, raw: bytes) -> None:
        judged(raw)

    @LONG
    @given(mutated_bytes())
    def test_a_file_that_was_cut_and_pasted(self, raw: bytes) -> None:
        judged(raw)

    @LONG
    @given(mutated_mappings())
    def test_a_file_with_other_values(self, value: dict[str, Any]) -> None:
        judged(yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))


def test_the_demo_cluster_is_no_error() -> None:
    """Else the fuzz would be looking at errors alone."""
    assert isinstance(judged(DEMO), ClusterSpec)
    assert isinstance(judged(yaml.safe_dump(FULL).encode()), ClusterSpec)


POOL = "{name: p, taints: [{key: a, effect: NoSchedule}]}"
LARGE = {
    "unknown keys": "\n".join(f"k{n}: 1" for n in range(9_000)),
    "pools": f"{DEMO.decode()}\nx: [{', '.join([POOL] * 1_500)}]".replace("x:", "nodePools2:"),
    "a hundred pools of a hundred types": DEMO.decode().split("nodePools:")[0]
    + "nodePools:\n"
    + "".join(f"- {{name: p{n}, instanceTypes: [{', '.join(['g5.xlarge'] * 100)}]}}\n" for n in range(99)),
    "instance types": DEMO.decode().replace("[g5.xlarge]", f"[{', '.join(['g5.xlarge'] * 19_000)}]"),
    "labels": DEMO.decode().replace("wantedNodes: 2", "labels: {" + ", ".join(f"a{n}: b" for n in range(9_000)) + "}"),
    "a long word": f"name: {'a' * (MAX_BYTES - 10)}",
    "a long schedule": DEMO.decode().replace("schedule: null", f"schedule: '{'0,' * 100_000}0 6 * * *'"),
    "a long duration": DEMO.decode().replace("timeout: 10m", f"timeout: {'1h' * 100_000}"),
    "a long name": DEMO.decode().replace("name: demo\n", f"name: {'a-' * 100_000}_\n"),
    "a long role": DEMO.decode().replace("KarpenterNodeRole-demo-gpu", f"arn:aws:iam::1:role/{'a/' * 100_000}"),
    "a long repository": DEMO.decode().replace("oci://public.ecr.aws/karpenter", f"oci://{'a/' * 100_000}"),
    "comments": "#" * (MAX_BYTES - 1),
    "line breaks": "\n" * (MAX_BYTES - 1),
    "spaces": " " * (MAX_BYTES - 1),
    "quotes": '"' * (MAX_BYTES - 1),
    "question marks": "? " * (MAX_BYTES // 2 - 1),
    "anchors": "".join(f"&a{n} " for n in range(30_000)),
    "anchors of values": "[" + ",".join(f"&a{n} 1" for n in range(19_000)) + "]",
    "escapes": 'a: "' + "\\n" * 100_000 + '"',
    "folded lines": "a: >\n" + " x\n" * 80_000,
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_the_largest_file_is_judged_in_a_second(what: str) -> None:
    raw = LARGE[what].encode()
    assert len(raw) <= MAX_BYTES, len(raw)
    assert isinstance(judged(raw), SpecError)


def test_a_thousand_alias_graphs_are_judged_in_a_second_each() -> None:
    """Random graphs of anchors and aliases, most of them with more paths than there are atoms."""
    chance = random.Random(0)
    for _ in range(300):
        lines = ["a0: &a0 {x: 1}"]
        for n in range(1, chance.randint(2, 40)):
            used = [f"*a{chance.randrange(n)}" for _ in range(chance.randint(0, 8))]
            if chance.random() < 0.3 and used:
                lines.append(f"a{n}: &a{n} {{<<: *a0, y: {used[0]}}}")
            else:
                lines.append(f"a{n}: &a{n} [{', '.join(used)}]")
        assert isinstance(judged("\n".join(lines).encode()), SpecError)
