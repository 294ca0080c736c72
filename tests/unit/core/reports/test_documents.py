"""Reports of pools in every condition, in every language: complete, escaped, and readable by machines."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gpu_fleet.core.drift import Drift, Kind
from gpu_fleet.core.markup import html, markdown
from gpu_fleet.core.markup.blocks import Link, Table, clean, instant, moment
from gpu_fleet.core.pools.assets import Finding, PoolState
from gpu_fleet.core.pools.remediation import Left, Why
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.reports import junit
from gpu_fleet.core.reports.document import document
from gpu_fleet.core.reports.figures import figure, figures, heading
from gpu_fleet.core.reports.model import PoolSection, RunReport
from gpu_fleet.core.reports.remedies import REMEDIES, UNKNOWN, remedy
from gpu_fleet.core.reports.remedies import __file__ as REMEDIES_FILE
from gpu_fleet.core.reports.timing import SHOWN
from gpu_fleet.core.stages.history import StageHistory
from gpu_fleet.core.stages.moments import COMING, Moment, NodeTimes
from gpu_fleet.core.stages.summary import StageReport, summary
from gpu_fleet.core.validation.report import Outcome
from tests.unit.core.stages.stage_objects import times
from tests.unit.report_objects import (
    EVIL,
    NOW,
    broken,
    broken_node,
    busy_node,
    check,
    healthy,
    host,
    node,
    report,
    run_of,
)

RUN = "gpu_lifecycle.demo/this"


def with_stages(run: RunReport, new: tuple[NodeTimes, ...] | None = None) -> RunReport:
    """The run with the stages of its first pool's nodes: two came as usual, one joined late and is not proven."""
    late = times(3, run=RUN, slower={Moment.REGISTERED: 300.0}, without=(Moment.PROVEN, Moment.USED))
    nodes = (times(1, run=RUN), times(2, run=RUN), late, late) if new is None else new
    history = StageHistory(0.0, (*(times(100 + n) for n in range(10)), *nodes))
    stages = StageReport.from_json(summary("shared-a10g", history, RUN))
    return replace(run, pools=(replace(run.pools[0], stages=stages), *run.pools[1:]))


FIFTY = report(*(broken_node(n, "SharerStarved") if n in (3, 17) else node(n) for n in range(1, 51)))
RUNS: dict[str, RunReport] = {
    "healthy": run_of(healthy()),
    "broken": run_of(broken()),
    "idle": run_of(report()),
    "busy": run_of(report(busy_node(1))),
    "doubtful": run_of(report(node(1, check("bound", Outcome.INCONCLUSIVE, "NotRefused", "no reason")))),
    "fifty": run_of(FIFTY),
    "drifted": run_of(
        healthy(),
        drift=(Drift(Kind.CHANGED, "NodePool a10g", "spec.limits.cpu", 8, "9", "kubectl-edit").to_json(),),
    ),
    "not validated": run_of(
        pools=(PoolSection("shared-a10g", Finding("NotValidated", "DevicePluginAbsent", "no pod on the node")),)
    ),
    "a probe that died": run_of(
        pools=(PoolSection("shared-a10g", Finding("NotValidated", "NotValidated", "incomplete"), (healthy(),)),),
        state="failed",
    ),
    "failed before": run_of(pools=(), state="failed", drift=None),
    "failed after": run_of(healthy(), state="failed"),
    "nothing yet": run_of(pools=(), state="running", drift=None, started=None, ended=None),
    "unreadable": run_of(healthy(), unreadable=("validation.pool_x.sharing: report",)),
    "not compared": run_of(
        healthy(), unread=({"object": "NodePool/a10g", "reason": "Forbidden", "message": "may not read"},)
    ),
    "cluster busy": run_of(pools=(), drift=None, skipped="ClusterBusy: the lock of cluster demo is held by x/y"),
    "no permission": run_of(
        pools=(PoolSection("shared-a10g", Finding("Passed", "Validated", "m"), (healthy(),), history=None),)
    ),
    "stages": with_stages(run_of(healthy())),
    "no new node": with_stages(run_of(healthy()), new=()),
    "hostile stages": with_stages(run_of(healthy()), new=(replace(times(9, run=RUN), node=EVIL, instance_type=EVIL),)),
    "hostile": run_of(
        report(
            node(1, check("probes", Outcome.FAILED, "OutputNotJson", EVIL, gpu=EVIL, of={EVIL: 1})),
            notes=(EVIL,),
        ),
        drift=({"kind": EVIL, "object": EVIL, "field": EVIL, "wanted": EVIL, "found": [EVIL]},),
        state=EVIL,
    ),
}


@pytest.fixture(params=list(RUNS))
def run(request: pytest.FixtureRequest) -> RunReport:
    return RUNS[request.param]


# --- the verdict -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "outcome", "headline"),
    [
        ("healthy", Outcome.PASSED, "shared-a10g proven"),
        ("broken", Outcome.FAILED, "1 of 1 pool(s) failed: shared-a10g: AllocatableMismatch"),
        ("idle", Outcome.IDLE, "Nothing was proven: shared-a10g idle"),
        ("busy", Outcome.BUSY, "Nothing was proven: shared-a10g busy"),
        ("doubtful", Outcome.FAILED, "1 of 1 pool(s) failed: shared-a10g: NotRefused"),
        ("drifted", Outcome.FAILED, "shared-a10g proven; 1 difference(s) from the spec"),
        ("not compared", Outcome.INCONCLUSIVE, "shared-a10g proven; 1 object(s) could not be compared with the spec"),
        (
            "cluster busy",
            Outcome.SKIPPED,
            "Nothing was tested: ClusterBusy: the lock of cluster demo is held by x/y",
        ),
        ("not validated", Outcome.FAILED, "1 of 1 pool(s) failed: shared-a10g: DevicePluginAbsent"),
        (
            "failed before",
            Outcome.FAILED,
            "Nothing was proven: no pool was tested; but the run failed: its first failed task's log names the cause",
        ),
        (
            "failed after",
            Outcome.FAILED,
            "shared-a10g proven; but the run failed: its first failed task's log names the cause",
        ),
        ("nothing yet", Outcome.IDLE, "Nothing was proven: no pool was tested"),
    ],
)
def test_the_verdict_comes_first(name: str, outcome: Outcome, headline: str) -> None:
    run = RUNS[name]
    assert (run.outcome, run.headline()) == (outcome, headline)
    first = markdown.render(document(run)).splitlines()[:3]
    assert first[0] == f"# GPU validation of demo: {outcome}"
    assert clean(first[2].replace("\\", "").strip("*")) == headline


# --- where the time went ---------------------------------------------------------------------------------------------
def svg_of(run: RunReport) -> ElementTree.Element:
    """The page's one picture, read as strictly as an XML parser does."""
    [found] = re.findall(r"<svg.*?</svg>", html.render(document(run), "t"), re.DOTALL)
    return ElementTree.fromstring(found)  # noqa: S314  (our own)


def test_the_picture_has_a_bar_for_each_node_and_a_part_for_each_stage() -> None:
    picture = svg_of(RUNS["stages"])
    segments = [group.findtext("title") or "" for group in picture.iter("g")]
    assert len(segments) == 4 * len(COMING)
    assert segments[:6] == [
        "pod pending → NodeClaim: 3 s",
        "NodeClaim → instance launched: 2 s",
        "launched → registered: 400 s",  # the slowest node comes first
        "registered → Ready: 5 s",
        "Ready → GPUs allocatable: 30 s",
        "GPUs allocatable → proven: unknown",
    ]
    widths = {group.findtext("title"): float(group.find("rect").get("width")) for group in picture.iter("g")}  # type: ignore[union-attr, arg-type]
    assert widths["launched → registered: 400 s"] == pytest.approx(4 * widths["launched → registered: 100 s"], rel=0.01)
    assert max(float(rect.get("x", 0)) + float(rect.get("width", 0)) for rect in picture.iter("rect")) <= 960


def test_the_picture_is_read_without_eyes_and_without_colour() -> None:
    picture = svg_of(RUNS["stages"])
    ids = {element.get("id"): element for element in picture.iter() if element.get("id")}
    assert picture.get("role") == "img"
    title, description = (ids[name] for name in (picture.get("aria-labelledby") or "").split())
    assert (title.tag, description.tag) == ("title", "desc")
    assert "the slowest is ip-10-0-0-3" in (description.text or "")
    assert "'launched → registered' took 400 s" in (description.text or "")
    # Each part has its number, or a question mark and a dashed line; every second one is hatched.
    drawn = [rect.get("class") or rect.get("fill") for rect in picture.iter("rect")]
    assert {"s1", "s3", "s5", "unknown", "url(#stages-shared-a10g-h)"} <= set(drawn)
    words = [text.text for text in picture.iter("text")]
    assert {"1", "2", "3", "4", "5", "6", "?"} <= set(words)
    assert not [element for element in picture.iter() if element.get("style") or element.tag in ("style", "script")]


def test_unknown_seconds_are_said_to_be_unknown_in_table_and_json() -> None:
    run = RUNS["stages"]
    lines = markdown.render(document(run)).splitlines()
    [row] = {line for line in lines if line.startswith("| `ip-10-0-0-3.")}
    assert row.split(" | ")[2:] == ["3", "2", "400", "5", "30", "unknown", "unknown", "unknown |"]
    told = run.to_json()["pools"][0]["stages"]
    assert told["nodes"][2]["seconds"]["proof"] is None
    assert told["percentiles"]["g5.xlarge"]["join"] == {"samples": 14, "p50": 100.0, "p95": 400.0}


def test_what_got_slower_is_named_first() -> None:
    pages = {
        "late": with_stages(run_of(healthy()), new=(times(3, run=RUN, slower={Moment.REGISTERED: 300.0}),)),
        "usual": with_stages(run_of(healthy()), new=(times(3, run=RUN),)),
    }
    texts = {name: html.render(document(run), "t") for name, run in pages.items()}
    note = "Slower than usual: g5.xlarge: launched → registered took 400 s, 300 s more than usual"
    assert note in texts["late"]
    assert "Slower than usual" not in texts["usual"]
    assert texts["late"].index(note) < texts["late"].index("<svg")


def test_of_many_nodes_the_picture_shows_the_slowest() -> None:
    nodes = tuple(times(n, run=RUN, slower={Moment.READY: float(n)}) for n in range(50))
    picture = svg_of(with_stages(run_of(healthy()), new=nodes))
    labels = [text.text for text in picture.iter("text") if text.get("class") == "label"]
    assert labels == [f"ip-10-0-0-{n} (g5.xlarge)" for n in range(49, 49 - SHOWN, -1)]


def test_without_a_new_node_there_is_no_picture_but_the_history() -> None:
    page = html.render(document(RUNS["no new node"]), "t")
    assert "<svg" not in page
    assert "No node has come with this run." in page
    assert "All nodes of the pool&#x27;s history (10)" in page
    assert "Where the time went" not in html.render(document(RUNS["healthy"]), "t")


# --- what failed -----------------------------------------------------------------------------------------------------
def test_a_broken_pool_says_which_node_why_and_what_to_do() -> None:
    page = html.render(document(RUNS["broken"]), "t")
    for words in (host(2), "AllocatableMismatch", "offers 1 nvidia.com/gpu, not 4", remedy("AllocatableMismatch")):
        assert escape(words) in page
    assert "Time-slicing isolates no memory" in page
    assert "became NotReady" in page


def test_a_failure_tells_the_instance_type_of_its_node() -> None:
    """As the package describes a machine (``PoolNode.instance``), not as a test invents it."""
    text = markdown.render(document(RUNS["broken"]))
    assert f"| `{host(2)}` | g5.xlarge | `sharing` | `allocatable` |" in text


def test_figures_are_in_tables() -> None:
    tables = [block for block in figures(healthy()) if isinstance(block, Table)]
    by_caption = {table.caption: table for table in tables}
    assert list(by_caption) == [
        "GPUs of the nodes",
        "What the probes saw",
        "Distribution over GPUs, and memory each container saw free",
    ]
    assert by_caption["What the probes saw"].head == (
        "node",
        "driver",
        "CUDA",
        "GPU",
        "slowest vectorAdd (ms)",
        "containers at once",
        "together (s)",
    )
    distribution = tables[-1]
    assert distribution.head == ("node", "of", "containers", "memory free (MiB)")
    assert [cell.text for cell in distribution.rows[0]] == [
        host(1),
        "GPU-11111111-2222-3333-4444-000000000001",
        "4",
        "21 873",
    ]
    assert distribution.numeric == {2, 3}


def test_throughput_shares_and_memory_are_told_for_each_container() -> None:
    """The figures as core/validation/throughput.py has them."""
    uuid = "GPU-11111111-2222-3333-4444-000000000001"
    checks = (
        check("fairness", Outcome.PASSED, "SharedFairly", "m", shares={uuid: {"probe-a": 0.51, "probe-b": 0.49}}),
        check(
            "throughput",
            Outcome.PASSED,
            "LittleLost",
            "m",
            aloneGflops=15234.2,
            togetherGflops={uuid: 14980.1},
            ratio=0.983,
            asked=0.7,
        ),
        check("memory", Outcome.PASSED, "NotIsolated", "m", totalMiB={"probe-a": 23028}, freeMiB={"probe-a": 21873}),
    )
    text = markdown.render(document(run_of(report(type(node(1))(host(1), {}, checks), probe="throughput"))))
    assert f"| `{host(1)}` | `{uuid} probe-a` | 51.0 % |" in text
    assert f"| `{host(1)}` | 15 234.2 | 98.3 % | 70.0 % |" in text
    assert f"| `{host(1)}` | `{uuid}` | 14 980.1 |" in text
    assert "| node | of | memory (MiB) | free (MiB) |" in text


def test_figures_of_a_later_probe_fit_in() -> None:
    one = check("later", Outcome.PASSED, "Fair", "m", sharers={"0": 1.5, "1": 1.25}, aloneGflops=5.75, ok=True)
    later = report(type(node(1))(host(1), {}, (one,)), pool_checks=(check("spread", Outcome.PASSED, "R", "m", low=1),))
    captions = [table.caption for table in figures(later) if isinstance(table, Table)]
    assert captions == ["later", "later, in detail", "spread (whole pool)"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1 234 567"),
        (0.25, "0.25"),
        (2.0, "2"),
        (float("nan"), "nan"),
        (1e300, "1e+300"),
        ([1, 2], "1, 2"),
        ({"a": 1}, "a 1"),
        ("x", "x"),
    ],
)
def test_a_figure_for_people(value: Any, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [("perSharerPercent", "per sharer (%)"), ("memoryUsedMiB", "memory used (MiB)"), ("tookMs", "took (ms)")],
)
def test_headings_from_names(name: str, shown: str) -> None:
    assert heading(name) == shown


def test_a_large_pool_lists_some_failures_and_folds_the_rest() -> None:
    run = run_of(report(*(broken_node(number) for number in range(1, 51))))
    text = markdown.render(document(run))
    assert "and 30 more" in text
    assert text.count("<details>") == 2
    assert text.count(host(50)) >= 1


# --- remedies --------------------------------------------------------------------------------------------------------
def test_every_reason_of_the_probe_programs_has_a_remedy() -> None:
    programs = Path(REMEDIES_FILE).parents[4] / "include" / "probes"
    text = "".join(path.read_text() for path in programs.glob("*.*"))
    reasons = set(re.findall(r"report [0-9] ([A-Z]\w+)|Trouble\(\"([A-Z]\w+)", text))
    found = {shell or python for shell, python in reasons}
    assert found >= {"NoDcgm", "WrongResult", "NoNvidiaSmi"}
    assert not found - REMEDIES.keys()


def test_every_reason_has_a_remedy() -> None:
    assert all(sentence.endswith((".", "?")) for sentence in REMEDIES.values())
    assert set(REMEDIES) >= NODE_CAUSES
    assert "selector" in remedy("DevicePluginAbsent")
    assert remedy("DevicePluginNeverHeardOf") == REMEDIES["DevicePluginNotRegistered"]
    assert remedy("NeverHeardOf") == UNKNOWN


# --- texts -----------------------------------------------------------------------------------------------------------
def test_texts_are_one_line_without_control_characters() -> None:
    assert clean("a\x00b\n\tc \x1b[31mred\x1b[0m \u202eevil \ud800") == "ab c red evil"
    assert len(clean("x" * 9000)) == 2001


def test_times_for_people() -> None:
    assert moment(NOW) == "2026-09-21 14:13:20"
    assert moment(float("inf")) == moment(1e300) == "?"
    assert instant("2026-09-21T15:00:00+01:00") == "2026-09-21 14:00:00 UTC"
    assert (instant(None), instant("soon")) == ("–", "soon")


# --- HTML ------------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Tags as a browser would see them: unbalanced ones and everything that could act are noted."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        self.problems += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


def test_html_is_whole_self_contained_and_safe(run: RunReport) -> None:
    page = Page(html.render(document(run), EVIL, [Link("Markdown", "report.md")]))
    assert page.problems == []
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "img", "link", "form", "base"} & set(names)
    assert not any(attributes.get("src") or attributes.get("style") for _, attributes in page.tags)
    addresses = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert all(re.match(r"(/dags/|/gpu-fleet/|report\.md$)", address) for address in addresses)


def test_html_is_accessible(run: RunReport) -> None:
    # A picture has titles of its own, which another test reads.
    page = Page(re.sub(r"<svg.*?</svg>", "", html.render(document(run), "t"), flags=re.DOTALL))
    names = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert names.count("h1") == names.count("main") == names.count("title") == 1
    assert names.count("caption") == names.count("table")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert all(
        attributes.get("aria-label")
        for _, attributes in page.tags
        if attributes.get("role") in ("region", "navigation")
    )


def test_the_style_is_for_light_and_dark_and_named_by_its_digest() -> None:
    page = html.render([], "t")
    assert "prefers-color-scheme: dark" in page
    assert f"<style>{html.STYLE}</style>" in page
    assert html.STYLE_SOURCE.startswith("'sha256-")


# --- Markdown --------------------------------------------------------------------------------------------------------
def test_markdown_tables_have_as_many_cells_as_columns(run: RunReport) -> None:
    lines = markdown.render(document(run)).splitlines()
    width = 0
    for line in lines:
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width, line


def test_markdown_has_no_markup_from_a_cluster() -> None:
    text = markdown.render(document(RUNS["hostile"]))
    assert "<script" not in re.sub(r"`[^`]*`", "", text)
    assert re.findall(r"<(?!/?(?:details|summary)>)", re.sub(r"`[^`]*`", "", text)) == []


# --- JUnit -----------------------------------------------------------------------------------------------------------
def parsed(run: RunReport) -> ElementTree.Element:
    root = ElementTree.fromstring(junit.render(run))  # noqa: S314  (made here)
    assert root.tag == "testsuites"
    return root


def test_junit_counts_add_up(run: RunReport) -> None:
    root = parsed(run)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(root.get(attribute, "-1")) == len(root.findall(f".//{tag}"))
        for suite in root:
            assert int(suite.get(attribute, "-1")) == len(suite.findall(f"testcase/{tag}"))
    assert int(root.get("tests", "-1")) == len(root.findall(".//testcase"))
    assert all(case.get("name") and case.get("classname") for case in root.iter("testcase"))
    assert all(len([child for child in case if child.tag != "system-out"]) <= 1 for case in root.iter("testcase"))


@pytest.mark.parametrize(
    ("name", "failures", "errors"),
    [
        ("healthy", 0, 0),
        ("broken", 1, 0),
        ("idle", 0, 0),
        ("busy", 0, 0),
        ("doubtful", 0, 1),
        ("fifty", 2, 0),
        ("drifted", 1, 0),
        ("not validated", 0, 1),
        ("hostile", 2, 0),
        ("not compared", 0, 1),
        ("cluster busy", 0, 0),
        ("a probe that died", 0, 1),
        ("failed before", 0, 1),
        ("failed after", 0, 1),
    ],
)
def test_ci_is_red_for_the_right_cause(name: str, failures: int, errors: int) -> None:
    root = parsed(RUNS[name])
    assert (root.get("failures"), root.get("errors")) == (str(failures), str(errors))


def test_junit_has_a_case_per_node_and_check() -> None:
    suite = parsed(RUNS["broken"])[0]
    assert suite.get("name") == "shared-a10g.sharing"
    assert suite.get("timestamp") == "2026-09-21T14:13:20"
    cases = {(case.get("classname"), case.get("name")): case for case in suite.iter("testcase")}
    assert len(cases) == 11 + 11 + 1
    failed = cases[f"demo.shared-a10g.sharing.{host(2)}", "allocatable"]
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("type") == "AllocatableMismatch"
    assert remedy("AllocatableMismatch") in (failure.text or "")
    assert "driver: 570.124.06" in (cases[f"demo.shared-a10g.sharing.{host(1)}", "probes"].findtext("system-out") or "")


def test_remediation_is_told() -> None:
    remediation = {
        "policy": "quarantine",
        "quarantined": [host(2)],
        "released": [host(7)],
        "replaced": [],
        "left": [Left(host(3), Why.BUDGET_SPENT, "1 of 1 node(s)").to_json()],
    }
    section = PoolSection(
        "shared-a10g",
        Finding("Passed", "ValidatedWithout", "1 node(s) passed", (host(2),)),
        (broken(),),
        was=PoolState.READY,
        now=PoolState.READY,
        remediation=remediation,
    )
    text = markdown.render(document(run_of(pools=(section,))))
    for words in ("policy quarantine", f"`{host(2)}` | quarantined", f"`{host(7)}` | released", "`BudgetSpent`"):
        assert words in text
    assert "take no pods until they pass again" in text


def test_drifted_nodes_are_named_and_are_no_failure() -> None:
    message = (
        "node a of pool shared-a10g has been drifted because amiAlias changed (x -> y); holds 2 GPU pods (ml/a, ml/b)"
    )
    section = PoolSection("shared-a10g", Finding("Passed", "Validated", "fine"), drifted=({"message": message},))
    report = run_of(pools=(section,))
    text = markdown.render(document(report))
    assert "amiAlias changed" in text
    assert "holds 2 GPU pods" in text
    assert report.outcome == "Passed"


def test_nodes_of_an_older_template_are_told_with_their_difference() -> None:
    section = PoolSection(
        "shared-a10g",
        Finding("Passed", "Validated", "fine"),
        (healthy(),),
        older={host(9): ("sharing time-slicing-4 -> time-slicing-8",)},
    )
    text = markdown.render(document(run_of(pools=(section,))))
    assert "Nodes of an older template" in text
    assert host(9) in text
    assert "do not count as capacity of the pool" in text
    assert "Nodes of an older template" not in markdown.render(document(run_of()))


def reasons_in_sources() -> set[str]:
    """Every reason that a rule of core/ can fail or doubt with, as far as it stands there in words."""
    found = set()
    core = Path(REMEDIES_FILE or "").resolve().parents[1]
    for path in [*(core / "validation").glob("*.py"), *(core / "probes").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "id", getattr(call.func, "attr", "")).lstrip("_")
            given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
            given += call.args[1:2] if name in ("failed", "doubt") else call.args[:1] if name == "Trouble" else []
            found |= {each.value for value in given for each in ast.walk(value) if isinstance(each, ast.Constant)}
    return {str(reason) for reason in found}


def test_every_reason_of_the_rules_has_a_remedy() -> None:
    reasons = reasons_in_sources()
    assert len(reasons) > 25
    assert reasons - set(REMEDIES) == set()


def test_a_gated_pools_report_says_which_nodes_take_pods_and_why_others_do_not() -> None:
    closed = [{"node": "n2", "status": "False", "reason": "DifferentGpus", "message": "two <UUIDs>"}]
    done = {"pool": "shared-a10g", "admitted": ["n1"], "closed": closed}
    section = PoolSection("shared-a10g", Finding("Failed", "DifferentGpus", "m"), admission=done)
    page = markdown.render(document(run_of(pools=(section,))))
    assert "### Admission" in page
    (opened,) = [line for line in page.splitlines() if line.startswith("| `n1`")]
    (kept,) = [line for line in page.splitlines() if line.startswith("| `n2`")]
    assert "opened" in opened
    assert "stays closed" in kept
    assert "DifferentGpus" in kept
    assert "<UUIDs>" not in kept, "texts of pods are escaped"


def test_a_gated_pool_without_new_nodes_says_nothing_of_admission() -> None:
    done = {"pool": "shared-a10g", "admitted": [], "closed": []}
    section = PoolSection("shared-a10g", Finding("Passed", "Validated", "fine"), admission=done)
    assert "Admission" not in markdown.render(document(run_of(pools=(section,))))
