"""The demo's report: what was built, proven, published and removed, what it cost, and where the time went."""

from __future__ import annotations

from typing import Any

from demo.timeline import Timeline

Report = dict[str, Any]


def timeline_json(split: Timeline, started: float) -> dict[str, Any]:
    """The critical path with its figures, all in seconds."""
    return {
        "total_s": round(split.total, 1),
        "waiting_for_a_person_s": round(split.person, 1),
        "waiting_for_a_failure_s": round(split.patience, 1),
        "injected_waits_s": round(split.injected, 1),
        "own_work_s": round(split.work, 1),
        "airflow_s": round(split.airflow, 1),
        "airflow_allowed_s": round(split.allowed, 1),
        "ratio": round(split.ratio, 3),
        "tasks_on_path": split.tasks,
        "deferrals_on_path": split.deferrals,
        "critical_path": [
            {
                "task": step.span.task_id,
                "at_s": round(step.span.started - started, 1),
                "gap_s": round(step.gap, 2),
                "seconds": round(step.seconds, 1),
                "injected_s": round(step.injected, 1),
                "patience_s": round(step.patience, 1),
                "deferrals": step.span.deferrals,
            }
            for step in split.steps
        ],
    }


def render(report: Report) -> str:
    """The report as text for the terminal."""
    lines: list[str] = ["", "=" * 100, "GPU fleet demo: report", "=" * 100]
    lines += _nodes(report.get("nodes", []))
    lines += _releases(report.get("releases", []))
    lines += _validation(report.get("validation", {}))
    lines += _drain(report.get("drain", {}))
    lines += _cost(report.get("cost"))
    lines += _leaks(report.get("leaks"))
    lines += _interruption(report.get("interruption"))
    for name, split in report.get("timelines", {}).items():
        lines += _timeline(name, split)
    if "peak_pss_mb" in report:
        lines += ["", f"memory  peak PSS of sandbox and Airflow together: {report['peak_pss_mb'] / 1024:.2f} GiB"]
    lines += ["", f"outcome {report['outcome']}", ""]
    return "\n".join(lines)


def table(rows: list[list[str]]) -> list[str]:
    """Left-aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _nodes(nodes: list[dict[str, Any]]) -> list[str]:
    if not nodes:
        return ["", "nodes   none"]
    rows = [["node", "pool", "instance type", "capacity", "physical GPUs", "shared as", "allocatable"]]
    for node in nodes:
        rows.append(
            [
                node["name"],
                node["pool"],
                node["instance_type"],
                node["capacity_type"],
                str(node["physical"]),
                f"x {node['replicas']}",
                str(node["allocatable"]),
            ]
        )
    physical = sum(node["physical"] for node in nodes)
    allocatable = sum(node["allocatable"] for node in nodes)
    return ["", f"nodes   {len(nodes)} with {physical} physical GPUs, offered as {allocatable}", *table(rows)]


def _releases(releases: list[dict[str, Any]]) -> list[str]:
    if not releases:
        return []
    rows = [["release", "chart", "revision", "status", "proven revision", "proven by"]]
    for release in releases:
        rows.append(
            [
                f"{release['namespace']}/{release['name']}",
                release["chart"],
                str(release.get("revision", "")),
                release.get("status", ""),
                str(release.get("proven_revision") or "none"),
                str(release.get("proven_by") or ""),
            ]
        )
    return ["", "Helm releases", *table(rows)]


def _validation(validation: dict[str, Any]) -> list[str]:
    lines = ["", "validation"] if validation else []
    for pool, verdicts in validation.items():
        for verdict in verdicts:
            mark = "pass" if verdict["passed"] else "FAIL"
            lines.append(f"  {mark}  {pool:<16} {verdict['probe']:<12} {verdict['message']}")
    return lines


def _drain(drain: dict[str, Any]) -> list[str]:
    lines = ["", "drain"] if drain else []
    for pool, outcome in drain.items():
        lines.append(f"  {pool:<16} {outcome}")
    return lines


def _cost(cost: dict[str, Any] | None) -> list[str]:
    if not cost:
        return []
    lines = ["", f"cost    {cost['prices']}"]
    for item in cost["items"]:
        each = "unknown" if item["usd_per_hour"] is None else f"at most {item['usd_per_hour']:.3f} USD/h"
        lines.append(f"  {item['count']} x {item['instance_type']:<14} {each} each")
    if cost["usd_per_hour"] is not None:
        lines.append(f"  together at most {cost['usd_per_hour']:.2f} USD/h while they run")
        lines.append(f"  at most {cost['usd']:.2f} USD for the whole run, in simulated time")
    return lines


def _leaks(leaks: list[Any] | None) -> list[str]:
    if leaks is None:
        return ["", "leaks   not checked: the capacity was kept"]
    if not leaks:
        return ["", "leaks   none: no instance, volume, network interface, launch template, profile or object is left"]
    return ["", f"leaks   {len(leaks)} found", *[f"  {leak}" for leak in leaks]]


def _timeline(name: str, split: dict[str, Any]) -> list[str]:
    rows = [["at", "gap", "took", "injected", "task"]]
    for step in split["critical_path"]:
        rows.append(
            [
                f"{step['at_s']:.1f}",
                f"{step['gap_s']:.2f}",
                f"{step['seconds']:.1f}",
                f"{step['injected_s']:.1f}" if step["injected_s"] else "",
                step["task"]
                + (" (deferred)" if step["deferrals"] else "")
                + (f" (failed after {step['patience_s']:.1f} s of patience)" if step["patience_s"] else ""),
            ]
        )
    waiting = split["total_s"] - split["waiting_for_a_person_s"]
    patience = split["waiting_for_a_failure_s"]
    failure = f" + waiting until a failure was certain {patience:.1f}" if patience else ""
    without = " without that wait" if patience else ""
    return [
        "",
        f"critical path of {name}, in seconds",
        *table(rows),
        f"  run {waiting:.1f} s = injected waits {split['injected_waits_s']:.1f}{failure} + own work "
        f"{split['own_work_s']:.1f} + Airflow {split['airflow_s']:.1f}; run{without} / injected waits = "
        f"{split['ratio']:.2f}",
        f"  Airflow may take 2.5 s x {split['deferrals_on_path']} deferrals + 0.4 s x {split['tasks_on_path']} tasks "
        f"= {split['airflow_allowed_s']:.1f} s",
    ]


def _interruption(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    return [
        "",
        "interruption",
        f"  {found['headline']}",
        f"  node {found['node']} cordoned {found['cordoned_after_s']} s after the message, first eviction after "
        f"{found['first_eviction_after_s']} s, empty after {found['empty_after_s']} s",
        f"  {found['placement']}",
        f"  the pool was whole and proven again {found['whole_again_after_s']} s after the message",
        f"  pods lost with the machine: {len(found['lost']) or 'none'}",
    ]
