"""A training job that survives interruptions: the program of ``examples/dags/checkpointed_training.py``.

It needs Python alone, and fits a line to random points, so that what matters is easy to see:

* *Checkpoints*: every ``EVERY`` steps the state is written to ``CHECKPOINTS``, a folder on a volume that outlives the
  pod. A file appears there whole or not at all, and the last two are kept.
* *SIGTERM*: Kubernetes sends it when the pod has to go, and SIGKILL when its ``terminationGracePeriodSeconds`` are
  over. The step under way is finished, the state is saved, and the program ends with 143. So one step and one
  checkpoint have to fit into the grace period.
* *Resuming*: the program begins at the newest checkpoint. Data and random numbers follow from seed and step, so the
  result is the same as without interruptions.
* *One at a time*: a pod that starts while its predecessor is still saving waits for the lock.
* *An early warning*: when the file ``NOTICE`` changes (a downwardAPI volume with the annotation
  ``gpu-fleet.io/interruption``), a checkpoint is written at once, and the training goes on.

All settings are environment variables, see :class:`Settings`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO

#: What a shell reports for a process that SIGTERM has ended. A Job's podFailurePolicy knows interruptions by it.
TOLD_TO_END = 128 + signal.SIGTERM
KEPT = 2


@dataclass(frozen=True)
class Settings:
    """
    :ivar folder: ``CHECKPOINTS``; created if it is missing.
    :ivar steps: ``STEPS`` of the whole training.
    :ivar every: ``EVERY``: steps between two checkpoints.
    :ivar seed: ``SEED`` of data and start.
    :ivar step_seconds: ``STEP_SECONDS``: how long a step computes; of a real training its GPU time.
    :ivar notice: ``NOTICE``: the file that says that an interruption is likely; there need not be one.
    :ivar saves_on_sigterm: not with ``ON_SIGTERM=die``, which shows what is lost without a handler.
    """

    folder: Path
    steps: int = 1000
    every: int = 100
    seed: int = 0
    step_seconds: float = 0.1
    notice: Path | None = None
    saves_on_sigterm: bool = True

    @classmethod
    def of(cls, environment: dict[str, str]) -> Settings:
        given = environment.get
        return cls(
            folder=Path(given("CHECKPOINTS", "/checkpoints")),
            steps=int(given("STEPS", cls.steps)),
            every=int(given("EVERY", cls.every)),
            seed=int(given("SEED", cls.seed)),
            step_seconds=float(given("STEP_SECONDS", cls.step_seconds)),
            notice=Path(environment["NOTICE"]) if given("NOTICE") else None,
            saves_on_sigterm=given("ON_SIGTERM", "save") != "die",
        )


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on. Of a real training: model, optimizer, scheduler, scaler, position in
    the data, and the states of the random generators."""

    step: int = 0
    slope: float = 0.0
    offset: float = 0.0
    loss: float = 0.0


def train(state: State, seed: int) -> State:
    """One step: gradient descent on eight points of the line ``3 x + 1``, with noise."""
    chance = random.Random(f"{seed}/{state.step}")  # noqa: S311 - data, not a secret
    points = [(x, 3 * x + 1 + chance.gauss(0, 0.1)) for x in (chance.uniform(-1, 1) for _ in range(8))]
    errors = [(state.slope * x + state.offset - y, x) for x, y in points]
    return State(
        step=state.step + 1,
        slope=state.slope - 0.05 * sum(error * x for error, x in errors) / len(errors),
        offset=state.offset - 0.05 * sum(error for error, _ in errors) / len(errors),
        loss=sum(error * error for error, _ in errors) / len(errors),
    )


def digest(state: State) -> str:
    return hashlib.sha256(json.dumps(asdict(state), sort_keys=True).encode()).hexdigest()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(state: State, folder: Path) -> None:
    """Under its final name only when it is on the disk: a node may vanish at any moment."""
    path = folder / f"step-{state.step:09d}.json"
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump({"state": asdict(state), "digest": digest(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink()


def load(folder: Path) -> State:
    """The newest checkpoint that is whole, or the beginning."""
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            state = State(**found["state"])
            if found["digest"] == digest(state):
                return state
        except (OSError, ValueError, KeyError, TypeError):
            pass
        print(f"checkpoint {path.name} is damaged; trying the one before", flush=True)
    return State()


# --- being told -------------------------------------------------------------------------------------------------------


class Ending:
    """Whether this process was told to end. Its handler only notes that: it may run between any two instructions."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal.signal demands
        self.told = True


class Notice:
    """The file of the downward API; the kubelet replaces it when the annotation changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen = ""

    def is_new(self) -> bool:
        text = self._text()
        changed, self._seen = text not in ("", self._seen), text
        return changed

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8").strip() if self._path else ""
        except OSError:
            return ""


@contextmanager
def alone(folder: Path, ending: Ending | None) -> Iterator[bool]:
    """The folder for this process alone; ``False`` if it was told to end before it got it.

    The lock ends with the process that holds it. On NFS, so on EFS too, it is one of the whole file system (flock(2)).
    """
    with (folder / "lock").open("a", encoding="utf-8") as file:
        waited = False
        while not _locked(file):
            if not waited:
                print("another pod still trains here; waiting for its end", flush=True)
                waited = True
            if ending is not None and ending.told:
                yield False
                return
            time.sleep(0.1)
        yield True


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- the job ----------------------------------------------------------------------------------------------------------


def main(settings: Settings) -> int:
    # Before anything else: as process 1 of a container a program without a handler does not even notice SIGTERM.
    ending = Ending() if settings.saves_on_sigterm else None
    settings.folder.mkdir(parents=True, exist_ok=True)
    with alone(settings.folder, ending) as mine:
        return run(settings, ending) if mine else TOLD_TO_END


def run(settings: Settings, ending: Ending | None) -> int:
    state, notice = load(settings.folder), Notice(settings.notice)
    saved = state.step
    print(f"resumed at step {state.step} of {settings.steps}" if state.step else "begins at step 0", flush=True)
    while state.step < settings.steps:
        if ending is not None and ending.told:
            return end(state, saved, settings)
        time.sleep(settings.step_seconds)
        state = train(state, settings.seed)
        print(f"finished step {state.step}, loss {state.loss:.6f}", flush=True)
        if notice.is_new():
            print(f"an interruption is likely: saving at step {state.step}", flush=True)
        elif state.step % settings.every and state.step < settings.steps:
            continue
        save(state, settings.folder)
        saved = state.step
    print(f"result after {state.step} steps: {state.slope:.6f} x + {state.offset:.6f}, {digest(state)}", flush=True)
    return 0


def end(state: State, saved: int, settings: Settings) -> int:
    began = time.monotonic()
    if state.step > saved:
        save(state, settings.folder)
    print(f"told to end at step {state.step}: saved in {time.monotonic() - began:.3f} s", flush=True)
    return TOLD_TO_END


if __name__ == "__main__":
    sys.exit(main(Settings.of(dict(os.environ))))
