"""A run as JUnit XML: a test suite per pool and probe, a test case per node and check.

A check that failed is a ``failure``, one that could not be decided an ``error``; what was not asked, or could not be
tried because users' pods use the GPUs, is ``skipped``. The dialect is that of the Jenkins JUnit plugin, which
GitLab and others read as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from gpu_fleet.core.markup.blocks import clean
from gpu_fleet.core.reports.figures import figure, heading
from gpu_fleet.core.reports.model import PoolSection, RunReport
from gpu_fleet.core.reports.remedies import remedy
from gpu_fleet.core.validation.report import Check, Outcome, PoolReport

_COUNTED = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def render(run: RunReport) -> str:
    """The run as an XML document."""
    root = Element("testsuites", name=clean(f"GPU validation of {run.cluster}"))
    for pool in run.pools:
        suites = [_probe(root, run, report) for report in pool.reports]
        # A probe that died without a report, say: nothing in the others tells that the pool is bad.
        if not suites or (pool.bad and not any(map(_red, suites))):
            _verdict(root, run, pool)
    if run.drift is not None or run.unread:
        _drift(root, run)
    if run.skipped and not run.pools:
        suite = _suite(root, run, "run")
        _case(suite, run.cluster, "validated", "skipped", *run.skipped.split(": ", 1))
        _count(suite)
    if run.failed and not any(_red(suite) for suite in root):
        suite = _suite(root, run, "run")
        words = "the run failed for a cause outside the pools; the log of its first failed task names it"
        _case(suite, run.cluster, "run", "error", "RunFailed", words)
        _count(suite)
    for name in ("tests", *_COUNTED.values()):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _red(suite: Element) -> bool:
    return any(suite.get(count, "0") != "0" for count in ("failures", "errors"))


def _probe(root: Element, run: RunReport, report: PoolReport) -> Element:
    suite = _suite(root, run, f"{report.pool}.{report.probe}")
    started = max(0.0, min(report.started_at, 253_402_300_799.0))
    suite.set("timestamp", datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    suite.set("time", f"{max(0.0, report.finished_at - report.started_at):.3f}")
    prefix = f"{run.cluster}.{report.pool}.{report.probe}"
    for node in report.nodes:
        for check in node.checks:
            _check(suite, f"{prefix}.{node.node}", check)
        if not node.checks:
            _case(
                suite, f"{prefix}.{node.node}", "checks", "error", "NothingChecked", "no check took place on this node"
            )
    for check in report.pool_checks:
        _check(suite, f"{prefix}.pool", check)
    if not report.nodes:
        _case(suite, f"{prefix}.pool", "nodes", "skipped", "Idle", report.why_idle)
    _count(suite)
    return suite


def _check(suite: Element, classname: str, check: Check) -> None:
    kinds = {Outcome.PASSED: None, Outcome.FAILED: "failure", Outcome.INCONCLUSIVE: "error"}
    kind = kinds.get(check.outcome, "skipped")
    case = _case(suite, classname, check.name, kind, check.reason, check.message)
    if check.figures:
        lines = (f"{heading(name)}: {clean(figure(value))}" for name, value in check.figures.items())
        SubElement(case, "system-out").text = "\n".join(lines)


def _verdict(root: Element, run: RunReport, pool: PoolSection) -> None:
    """A pool that was not (completely) validated is an error; an idle one, or one torn down on purpose, is not."""
    suite = _suite(root, run, pool.name)
    kind = "error" if pool.bad else "skipped"
    _case(suite, f"{run.cluster}.{pool.name}", "validated", kind, pool.finding.reason, pool.finding.message)
    _count(suite)


def _drift(root: Element, run: RunReport) -> None:
    suite = _suite(root, run, "drift")
    for item in run.drift or ():
        what = f"{item.get('kind', '')}: wanted {figure(item.get('wanted'))}, found {figure(item.get('found'))}"
        name = f"{item.get('object', '')} {item.get('field') or ''}".strip()
        _case(suite, f"{run.cluster}.drift", name, "failure", "Drifted", what)
    for item in run.unread:
        words = f"{item.get('reason', '')}: {item.get('message', '')}"
        _case(suite, f"{run.cluster}.drift", str(item.get("object", "")), "error", "DriftUnknown", words)
    if not run.drift and not run.unread:
        _case(suite, f"{run.cluster}.drift", "as the spec wants it", None, "", "")
    _count(suite)


def _suite(root: Element, run: RunReport, name: str) -> Element:
    suite = SubElement(root, "testsuite", name=clean(name), time="0")
    properties = SubElement(suite, "properties")
    for key, value in (("cluster", run.cluster), ("dag_id", run.dag_id), ("run_id", run.run_id)):
        SubElement(properties, "property", name=key, value=clean(value))
    return suite


def _case(suite: Element, classname: str, name: str, kind: str | None, reason: str, message: str) -> Element:
    case = SubElement(suite, "testcase", classname=clean(classname), name=clean(name) or "?", time="0")
    if kind is not None:
        words = clean(f"{reason}: {message}")
        result = SubElement(case, kind, message=words)
        if kind != "skipped":
            result.set("type", clean(reason))
            result.text = f"{words}\nWhat to do: {remedy(reason)}"
    return case


def _count(suite: Element) -> None:
    cases: Iterable[Element] = suite.findall("testcase")
    suite.set("tests", str(len(list(cases))))
    for kind, name in _COUNTED.items():
        suite.set(name, str(len(suite.findall(f"testcase/{kind}"))))
