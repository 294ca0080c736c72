"""The example's training program under SIGTERM and SIGKILL: which steps are computed again, and what comes out."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "examples" / "training" / "train.py"
STEPS, EVERY, SEED, INTERRUPTIONS = 400, 50, 20261130, 20


def start(folder: Path, **settings: str) -> subprocess.Popen[str]:
    given = {"STEPS": str(STEPS), "EVERY": str(EVERY), "SEED": "7", "STEP_SECONDS": "0.001", **settings}
    return subprocess.Popen(
        [sys.executable, "-u", "-S", str(PROGRAM)],
        env={"PATH": os.environ["PATH"], "CHECKPOINTS": str(folder), **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass
class Training:
    """What one training came to, over all its processes.

    :ivar finished: every step that a process has finished, as often as one has.
    :ivar codes: how its processes ended.
    """

    finished: Counter[int] = field(default_factory=Counter)
    codes: list[int] = field(default_factory=list)
    result: str = ""
    text: str = ""

    @property
    def lost(self) -> int:
        """Steps that had to be computed again."""
        return sum(count - 1 for count in self.finished.values())

    def read(self, line: str) -> int | None:
        """The step that the line reports."""
        self.text += line
        if found := re.match(r"finished step (\d+),", line):
            self.finished[int(found[1])] += 1
            return int(found[1])
        if line.startswith("result after"):
            self.result = line
        return None


def interrupted(
    folder: Path,
    at: Sequence[int],
    number: signal.Signals = signal.SIGTERM,
    *,
    to_the_end: bool = True,
    **settings: str,
) -> Training:
    """Train, and send the signal a random moment after each of these steps; then let the training end."""
    chance = random.Random(SEED)
    training = Training()
    for step in [*at, STEPS + 1] if to_the_end else at:
        process = start(folder, **settings)
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                done = training.read(line)
                if done is not None and done >= step:
                    time.sleep(chance.uniform(0, 0.004))
                    process.send_signal(number)
                    break
            for line in process.stdout:
                training.read(line)
        training.codes.append(process.wait(timeout=30))
    return training


@pytest.fixture(scope="module")
def moments() -> list[int]:
    return sorted(random.Random(SEED).sample(range(1, STEPS - 20), INTERRUPTIONS))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = interrupted(tmp_path_factory.mktemp("undisturbed"), [])
    assert training.codes == [0]
    assert training.finished == Counter(range(1, STEPS + 1))
    return training


def test_no_finished_step_is_lost_in_twenty_interruptions(
    tmp_path: Path, moments: list[int], undisturbed: Training
) -> None:
    training = interrupted(tmp_path, moments)
    assert training.codes == [143] * INTERRUPTIONS + [0], training.text[-2000:]
    assert training.finished == Counter(range(1, STEPS + 1))
    assert training.lost == 0
    assert training.result == undisturbed.result


def test_without_the_handler_steps_are_lost_and_the_result_is_the_same(
    tmp_path: Path, moments: list[int], undisturbed: Training
) -> None:
    training = interrupted(tmp_path, moments, ON_SIGTERM="die")
    assert training.codes == [-signal.SIGTERM] * INTERRUPTIONS + [0]
    # Each interruption costs what came after the last checkpoint: half of EVERY on average.
    assert INTERRUPTIONS * EVERY / 4 < training.lost < INTERRUPTIONS * (EVERY + 10)
    assert training.result == undisturbed.result


def test_a_node_that_vanishes_costs_no_more_than_the_steps_since_the_checkpoint(
    tmp_path: Path, moments: list[int], undisturbed: Training
) -> None:
    training = interrupted(tmp_path, moments, signal.SIGKILL)
    assert training.codes == [-signal.SIGKILL] * INTERRUPTIONS + [0]
    assert max(training.finished.values()) > 1
    assert training.lost < INTERRUPTIONS * (EVERY + 10)
    assert training.result == undisturbed.result


DAMAGES = {
    "empty": "",
    "half": '{"state": {"step": 120',
    "changed": '{"state": {"step": 120, "slope": 9}, "digest": "x"}',
    "of another program": '{"state": {"epoch": 3}, "digest": "x"}',
    "no mapping": "[]",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, undisturbed: Training) -> None:
    interrupted(tmp_path, [120], to_the_end=False)
    newest = sorted(tmp_path.glob("step-*.json"))[-1]
    newest.write_text(damage, encoding="utf-8")
    training = interrupted(tmp_path, [])
    assert f"checkpoint {newest.name} is damaged" in training.text
    assert "resumed at step 100 of 400" in training.text
    assert training.result == undisturbed.result


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    interrupted(tmp_path, [])
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000000350.json", "step-000000400.json"]


def test_a_finished_training_is_not_repeated(tmp_path: Path, undisturbed: Training) -> None:
    interrupted(tmp_path, [])
    again = interrupted(tmp_path, [])
    assert (again.codes, again.finished) == ([0], Counter())
    assert again.result == undisturbed.result


def test_a_successor_waits_until_its_predecessor_has_saved(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tmp_path)
        assert process.stdout is not None
        assert "waiting for its end" in process.stdout.readline()
        fcntl.flock(lock, fcntl.LOCK_UN)
        output, _ = process.communicate(timeout=60)
    assert output.startswith("begins at step 0")
    assert process.returncode == 0


def test_a_pod_that_waits_can_be_told_to_end(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (143, "")
    assert list(tmp_path.glob("step-*")) == []


def test_an_early_warning_makes_a_checkpoint_once_and_the_training_goes_on(
    tmp_path: Path, undisturbed: Training
) -> None:
    notice = tmp_path / "interruption"
    notice.write_text("", encoding="utf-8")
    process, training = start(tmp_path, NOTICE=str(notice)), Training()
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if training.read(line) == 60:
                notice.write_text('{"kind":"RebalanceRecommendation"}', encoding="utf-8")
    assert process.wait(timeout=30) == 0
    early = re.findall(r"an interruption is likely: saving at step (\d+)", training.text)
    assert len(early) == 1
    assert int(early[0]) in range(60, 100)  # the next regular checkpoint comes at 100
    assert training.result == undisturbed.result


def test_the_program_can_be_given_to_a_container_as_an_argument() -> None:
    """``$(NAME)`` and ``$$`` in arguments are replaced by the kubelet (Kubernetes API reference, Container.args)."""
    assert "$" not in PROGRAM.read_text(encoding="utf-8")
