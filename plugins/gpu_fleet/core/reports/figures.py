"""What was measured, as tables: a row per node, or per GPU and sharer of a node; figures of later versions, too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_fleet.core.markup.blocks import Block, Inline, Table, code, text
from gpu_fleet.core.validation.report import PoolReport

#: Figure -> column heading, where the figure's own name is not clear enough.
HEADINGS = {
    "containersPerGpu": "containers",
    "containers": "containers at once",
    "memoryFreeMiB": "memory free (MiB)",
    "memoryTotalMiB": "memory total (MiB)",
    "slowestMs": "slowest vectorAdd (ms)",
    "seconds": "together (s)",
    "expected": "expected",
    "actual": "offered",
    "physical": "physical (EC2)",
    "replicas": "shares per GPU",
    "seen": "seen by nvidia-smi",
    "held": "held by users",
    "free": "free",
    "shares": "share of the GPU",
    "aloneGflops": "one alone (GFLOP/s)",
    "togetherGflops": "all together (GFLOP/s)",
    "gflops": "GFLOP/s",
    "ratio": "together / alone",
    "asked": "required",
    "totalMiB": "memory (MiB)",
    "freeMiB": "free (MiB)",
    "capacity": "capacity",
    "cuda": "CUDA",
    "gpu": "GPU",
}
#: Check -> title of its table.
TITLES = {
    "distribution": "Distribution over GPUs, and memory each container saw free",
    "throughput": "Throughput: all sharers together against one alone",
    "fairness": "Share of its GPU that each container got",
    "gpus": "Throughput of whole GPUs",
    "memory": "Memory and multiprocessors that each container sees",
    "plugin": "Device plugin",
    "dcgm": "DCGM diagnostics",
}
#: Checks whose figures read best side by side.
GROUPS = {
    "GPUs of the nodes": ("allocatable", "room", "physical"),
    "What the probes saw": ("probes", "vectorAdd", "concurrency"),
}
#: Figures that are parts of a whole: shown in percent.
PARTS_OF_ONE = frozenset({"shares", "ratio", "asked"})
#: Names for programs; the check's message has them already.
SAID = frozenset({"pod"})
_UNITS = {"Ms": "ms", "MiB": "MiB", "Percent": "%"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def heading(name: str) -> str:
    """``perSharerPercent`` -> ``per sharer (%)``."""
    if name in HEADINGS:
        return HEADINGS[name]
    unit = next((unit for unit in _UNITS if name.endswith(unit) and name != unit), "")
    words = [word if word.isupper() else word.lower() for word in _WORDS.findall(name.removesuffix(unit))]
    return " ".join(words) + (f" ({_UNITS[unit]})" if unit else "")


def figure(value: Any) -> str:
    """A figure as shown in a cell: thousands separated, three significant decimals."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".").replace(",", " ") if abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(figure(item) for item in value[:16]) + (" …" if len(value) > 16 else "")
    if isinstance(value, Mapping):
        pairs = list(value.items())
        return ", ".join(f"{key} {figure(item)}" for key, item in pairs[:8]) + (" …" if len(pairs) > 8 else "")
    return str(value)


def figures(report: PoolReport) -> Iterator[Block]:
    """One or two tables per check that measured something."""
    names: dict[str, None] = {}
    for node in report.nodes:
        names.update(dict.fromkeys(check.name for check in node.checks if check.figures))
    for title, group in GROUPS.items():
        if any(name in names for name in group):
            yield from _tables(report, group, title)
    grouped = {name for group in GROUPS.values() for name in group}
    for name in names:
        if name not in grouped:
            yield from _tables(report, (name,), TITLES.get(name, heading(name)))
    pool_wide = [(check.name, check.figures) for check in report.pool_checks if check.figures]
    for name, found in pool_wide:
        rows = tuple((text(heading(key)), text(figure(value))) for key, value in found.items())
        yield Table(f"{TITLES.get(name, heading(name))} (whole pool)", ("figure", "value"), rows, frozenset({1}))


def _tables(report: PoolReport, names: tuple[str, ...], title: str) -> Iterator[Block]:
    found = []
    for node in report.nodes:
        values: dict[str, Any] = {}
        for check in node.checks:
            if check.name in names:
                values.update({key: value for key, value in check.figures.items() if key not in SAID})
        if values:
            found.append((node.node, values))
    single = _columns(found, of_parts=False)
    if single:
        rows = tuple(
            (code(node), *(_cell(key, values.get(key), key in values) for key in single)) for node, values in found
        )
        yield Table(title, ("node", *map(heading, single)), rows, _numeric(found, single))
    parts = _columns(found, of_parts=True)
    if parts:
        yield Table(
            title if not single else f"{title}, in detail",
            ("node", "of", *map(heading, parts)),
            tuple(_part_rows(found, parts)),
            frozenset(range(2, 2 + len(parts))),
        )


def _columns(found: list[tuple[str, dict[str, Any]]], *, of_parts: bool) -> list[str]:
    """Figures that are one value, or that are one for each part (a GPU's UUID, a sharer) of a node."""
    return list(
        dict.fromkeys(
            key for _, values in found for key, value in values.items() if isinstance(value, Mapping) is of_parts
        )
    )


def _part_rows(found: list[tuple[str, dict[str, Any]]], columns: list[str]) -> Iterator[tuple[Inline, ...]]:
    for node, values in found:
        of_parts = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        flat = {key: _flat(value) for key, value in of_parts.items()}
        for part in dict.fromkeys(part for value in flat.values() for part in value):
            cells = (_cell(key, flat.get(key, {}).get(part), part in flat.get(key, {})) for key in columns)
            yield (code(node), code(part), *cells)


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """``{gpu: {pod: share}}`` as ``{"gpu pod": share}``: one row each."""
    found: dict[str, Any] = {}
    for part, inner in value.items():
        if isinstance(inner, Mapping):
            found.update({f"{part} {name}": each for name, each in inner.items()})
        else:
            found[str(part)] = inner
    return found


def _cell(name: str, value: Any, there: bool) -> Inline:
    if name in PARTS_OF_ONE and isinstance(value, (int, float)):
        return text(f"{100 * value:.1f} %")
    return text(figure(value) if there else "–")


def _numeric(found: list[tuple[str, dict[str, Any]]], columns: list[str]) -> frozenset[int]:
    return frozenset(
        number
        for number, key in enumerate(columns, start=1)
        if all(isinstance(values.get(key), (int, float, type(None))) for _, values in found)
    )
