"""The report as its readers get it: parsed HTML, from made-up run folders."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from simulations.report import write_report
from simulations.report.page import SECTIONS, page
from simulations.report.results import Facts, Run, finite, read_run, round_line
from simulations.report.svg import theme
from tests.simulations import report_folders
from tests.simulations.report_folders import HOSTILE, result, round_lines, write_run

VOID = {"meta", "br", "hr", "col", "link", "img", "input"}
LOADING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "ping"}
FOLDERS: dict[str, Callable[[Path], Path]] = {
    name: getattr(report_folders, name)
    for name in ("ten_nodes", "thousand_nodes", "several_seeds", "all_null", "failed_rounds", "hostile")
}


class Page(HTMLParser):
    """An HTML page's elements and visible text; it fails on elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """The visible text, each run of blanks as one space."""
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder: Path) -> Page:
    """Write a folder's report and parse it."""
    parsed = Page(write_report(folder).read_text(encoding="utf-8"))
    assert not parsed.open
    return parsed


@cache
def drawn(name: str) -> Page:
    """The report of one of the made-up folders: for many tests that only read it."""
    with TemporaryDirectory() as folder:
        return report(FOLDERS[name](Path(folder) / name))


@pytest.fixture(scope="module", params=list(FOLDERS))
def written(request: pytest.FixtureRequest) -> Page:
    return drawn(request.param)


def test_page_is_self_contained(written: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "img", "form", "base"} & {
        tag for tag, _ in written.elements
    }
    for _, attributes in written.elements:
        assert not LOADING & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
        drawn = f"{attributes.get('style')} {attributes.get('clip-path')}"
        assert all(url.startswith("#") for url in re.findall(r"url\((.*?)\)", drawn))


def test_style_sheet_loads_nothing(tmp_path: Path) -> None:
    html = write_report(report_folders.ten_nodes(tmp_path / "run")).read_text(encoding="utf-8")
    style = "".join(re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL))
    assert len(re.findall("<style", html)) == 1
    assert not re.search(r"@import|url\(|https?:", style)
    assert "http://" not in html
    assert "https://" not in html


def test_identifiers_are_unique_and_references_lead_to_them(written: Page) -> None:
    names = Counter(attributes["id"] for _, attributes in written.elements if "id" in attributes)
    assert not [name for name, count in names.items() if count > 1]
    targets = {(attributes.get("href") or "")[1:] for _, attributes in written.elements if attributes.get("href")}
    targets |= {
        name for _, item in written.elements for name in re.findall(r"url\(#(.*?)\)", item.get("clip-path") or "")
    }
    assert targets <= set(names)


def test_figures_and_tables_can_be_read_out(written: Page) -> None:
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in written.all("svg"))
    assert all(cell["scope"] in ("row", "col") for cell in written.all("th"))
    assert len(written.all("caption")) == len(written.all("table"))
    assert written.all("html") == [{"lang": "en"}]


def test_figures_take_their_colours_from_the_page(written: Page) -> None:
    inside = [item for tag, item in written.elements if tag in ("path", "text", "use")]
    colours = {colour for item in inside for colour in re.findall(r"#[0-9a-f]{6}\b", item.get("style") or "")}
    assert not colours


def test_every_section_is_there(written: Page) -> None:
    assert [section["id"] for section in written.all("section")] == [name for name, _, _ in SECTIONS]
    assert len(written.all("h1")) == 1


def test_nothing_reads_as_a_programming_value(written: Page) -> None:
    assert not re.search(r"\b(NaN|nan|None(?! of this)|inf|null|Infinity|True|False)\b", written.text)


def test_main_job_shows_every_number() -> None:
    text = drawn("ten_nodes").text
    shown = [
        "95.56 %", "97.78 %", "79.03 %", "99.17 %", "88.61 %", "90.28 %", "10.00 %",  # accuracies, chance
        "0.2312", "0.9543", "0.9549",  # metrics
        "1e-5", "3.00", "8.4172", "61.5 kB", "4.18 MB", "9.23 MB", "2.41 s", "3.07 s", "21.8 s", "10.2 ms",
        "1 437", "360", "768", "2.15.0", "1.39.0", "embedded/formula-resnet", "Apache-2.0", "inprocess", "PLD",
        result()["backbone"]["digest"], result()["backbone"]["trained_on"], 'source = "digits"',
        *(f"node-{index:03d}" for index in range(10)),
    ]  # fmt: skip
    assert [number for number in shown if number not in text] == []


def test_headline_says_epsilon_with_delta_unit_and_trust() -> None:
    text = drawn("ten_nodes").text
    assert "95.6 % accuracy at nominal ε = 3.00 (δ = 1e-5, per record, local trust)" in text
    assert "16.5 points above a node alone, 5.3 points above raw pixels; privacy cost 3.6 points" in text


def test_seeded_run_carries_the_banner() -> None:
    text = drawn("ten_nodes").text
    assert "No guarantee: seeded" in text
    assert "no guarantee: seeded" in text


@pytest.mark.parametrize(
    ("source", "claimed", "promised"),
    [
        ("system", True, True),
        ("system", False, False),
        ("seeded", True, False),
        (None, True, False),
        ("system", "yes", False),
    ],
)
def test_only_system_noise_that_is_vouched_for_is_a_guarantee(
    tmp_path: Path, source: str | None, claimed: object, promised: bool
) -> None:
    contents = result()
    contents["privacy"] |= {"noise_source": source, "epsilon_is_guarantee": claimed}
    text = report(write_run(tmp_path / "run", contents, round_lines())).text
    assert ("guarantee:" not in text and "No guarantee" not in text) is promised
    assert ("nominal" not in text) is promised


def test_hostile_names_are_text_and_nothing_else() -> None:
    parsed = drawn("hostile")
    for name in HOSTILE:
        assert " ".join(name.replace("\ud800", "\ufffd").split()) in parsed.text


def test_confidential_run_is_marked_and_closed_to_others(tmp_path: Path) -> None:
    folder = report_folders.failed_rounds(tmp_path / "run")
    assert "Confidential" in report(folder).text
    assert stat.S_IMODE((folder / "report.html").stat().st_mode) == 0o600
    assert "Confidential" not in drawn("ten_nodes").text


def test_failures_and_open_reservations_are_listed() -> None:
    text = drawn("failed_rounds").text
    assert "budget4node-0034–6, 20" in text  # reason, times, nodes, rounds: a table's row
    assert "1 node reserved budget for rounds that were never committed" in text
    assert "Triangles: rounds in which a node failed" in text


def test_thousand_nodes_get_histograms_a_sample_and_a_folded_table() -> None:
    parsed = drawn("thousand_nodes")
    assert "Federated median" in parsed.text
    assert "24 of 1 000 nodes, evenly chosen" in parsed.text
    assert "node-999" in parsed.text
    assert not [item for item in parsed.all("details") if "open" in item]


def test_a_node_whose_classes_are_not_held_out_has_no_accuracy(tmp_path: Path) -> None:
    contents = result()
    contents["node_accuracy"]["node-004"] = {"federated": None, "alone": None}
    text = report(write_run(tmp_path / "run", contents, round_lines())).text
    assert "Not shown: 1 node of whose classes no record is held out" in text
    assert "of 9." in text


def test_many_classes_are_added_up(tmp_path: Path) -> None:
    parsed = report(write_run(tmp_path / "run", result(classes=60), round_lines()))
    assert "31 other" in parsed.text


def test_seeds_are_averaged_and_listed() -> None:
    text = drawn("several_seeds").text
    assert "95.6 % ± 0.4" in text
    assert "mean of 3 seeds" in text
    assert "95.96 %" in text  # the third seed's own
    assert "up to 3 times as much" in text


def test_what_was_not_computed_is_said() -> None:
    text = drawn("all_null").text
    assert "The federated accuracy was not computed; ε not computed." in text
    assert "No guarantee" in text


def test_empty_result_makes_a_page(tmp_path: Path) -> None:
    assert "not computed" in report(write_run(tmp_path / "run", {}, config=None)).text


def test_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    folder = report_folders.ten_nodes(tmp_path / "run")
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 31, "accur')
    assert len(read_run(folder).rounds) == 30
    report(folder)


@pytest.mark.parametrize("text", [None, "{", "[1, 2]"])
def test_folder_without_a_result_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ConfigError, match=r"expected .*found"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_same_run_gives_the_same_bytes_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    folder = report_folders.ten_nodes(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert dict(mpl.rcParams) == before


def paths(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every value in a JSON object, down to three levels."""
    below = value.items() if isinstance(value, dict) and len(path) < 3 else ()
    return [*([path] if path else []), *(found for key, item in below for found in paths(item, (*path, key)))]


SMALL = result(nodes=3, rounds=4)
NONSENSE = st.sampled_from(
    [None, True, -1, 0, 1e300, float("nan"), "", "x", [], [None], [[1]], {}, {"x": None}, {"x": 0}]
)


@given(path=st.sampled_from(paths(SMALL)), other=st.sampled_from(paths(SMALL)), value=NONSENSE)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_value_breaks_the_page(path: tuple[str, ...], other: tuple[str, ...], value: object) -> None:
    contents: dict[str, Any] = json.loads(json.dumps(SMALL))
    for place in (path, other):
        target = contents
        for key in place[:-1]:
            target = target[key] if isinstance(target.get(key), dict) else {}
        target[place[-1]] = value
    with theme():
        html = page(Run("run", None, Facts(contents), ()))
    assert not Page(html).open
    assert "nan" not in Page(html).text


@given(key=st.sampled_from(sorted(round_lines()[0])), value=NONSENSE, every=st.integers(1, 4))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_round_breaks_the_page(key: str, value: object, every: int) -> None:
    lines = [line | ({key: value} if index % every == 0 else {}) for index, line in enumerate(round_lines(3, 4))]
    rounds = tuple(round_line(line["round"], Facts(line)) for line in lines if finite(line["round"]) is not None)
    with theme():
        html = page(Run("run", None, Facts(SMALL), rounds))
    assert not Page(html).open
    assert "nan" not in Page(html).text
