"""The report's parts: escaping, wording, comparisons, prose, plots' arithmetic, the terminal's table."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from simulations.report import figures, prose, wording
from simulations.report.comparisons import compare, verdict
from simulations.report.course import spans
from simulations.report.markup import element
from simulations.report.nodes import merge_rare
from simulations.report.results import Facts, Run, finite
from simulations.report.terminal import result_table
from tests.simulations.report_folders import HOSTILE, result
from tests.simulations.test_report import Page


def run_of(contents: dict[str, object], seeds: int = 0) -> Run:
    """Return a run without rounds."""
    seed = Run("seed-0", None, Facts({}), ())
    return Run("run", None, Facts(contents), (), (seed,) * seeds)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00")))
def test_any_text_comes_out_of_the_page_as_it_went_in(text: str) -> None:
    parsed = Page(element("td", text, title=text))
    assert "".join(parsed.texts) == text
    assert parsed.elements == [("td", {"title": text})]


@given(st.floats(min_value=0, max_value=1e6))
def test_epsilon_is_never_shown_smaller_than_it_is(value: float) -> None:
    shown = float(wording.epsilon(value))
    assert value - 1e-8 <= shown <= value + 0.0101


@given(st.floats(min_value=0, max_value=1e15))
def test_sizes_and_times_are_shown_within_a_percent(value: float) -> None:
    number, unit = wording.size(value).replace(",", "").split(wording.THIN)
    powers = {"B": 0, "kB": 1, "MB": 2, "GB": 3, "TB": 4}
    assert math.isclose(float(number) * 1000 ** powers[unit], value, rel_tol=0.01, abs_tol=0.5)
    assert wording.duration(value)


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=6).map(sorted))
def test_labels_beside_a_plot_never_overlap(positions: list[float]) -> None:
    placed = figures.spaced(positions, 200.0)
    assert all(above - below >= figures.LABEL_GAP - 1e-9 for below, above in pairwise(placed))


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6) | st.integers(0, 50).map(float), min_size=1, max_size=50))
def test_every_value_falls_into_a_bin(values: list[float]) -> None:
    edges = figures.bin_edges(values)
    assert int(np.histogram(values, bins=edges)[0].sum()) == len(values)


@given(st.lists(st.lists(st.integers(0, 9), min_size=60, max_size=60), min_size=1, max_size=4))
def test_adding_up_rare_classes_loses_no_record(rows: list[list[int]]) -> None:
    counts, names = merge_rare(np.array(rows, dtype=float), [str(index) for index in range(60)])
    assert counts.sum() == np.sum(rows)
    assert counts.shape[1] == len(names) == 30


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.01])
def test_best_guess_is_what_a_search_over_all_allowed_tests_finds(epsilon: float, delta: float) -> None:
    missed = np.linspace(0, 1, 200_001)  # probability to miss a member; the other error is bounded from below
    other = np.maximum.reduce(
        [0 * missed, 1 - delta - np.exp(epsilon) * missed, np.exp(-epsilon) * (1 - delta - missed)]
    )
    assert prose.best_guess(epsilon, delta) == pytest.approx(1 - float((missed + other).min()) / 2, abs=1e-5)


def test_best_guess_survives_a_huge_epsilon() -> None:
    assert prose.best_guess(1e9, 1e-5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("numbers", "written"), [([], ""), ([3], "3"), ([1, 2, 3, 5, 7, 8], "1–3, 5, 7–8"), ([2, 1, 1], "1–2")]
)
def test_rounds_are_written_as_ranges(numbers: list[int], written: str) -> None:
    assert spans(numbers) == written


@pytest.mark.parametrize("value", [None, True, "3", float("nan"), float("inf"), [1]])
def test_only_finite_numbers_count_as_numbers(value: object) -> None:
    assert finite(value) is None


def test_difference_within_the_margin_is_called_unclear() -> None:
    contents = result()
    contents["accuracy"]["no_dp"] = 0.96
    found = compare(run_of(contents), "no_dp")
    assert found is not None
    assert found.margin is not None
    assert not found.clear
    assert "privacy cost no clear difference" in verdict(run_of(contents))


def test_margin_is_the_two_proportions_by_hand() -> None:
    found = compare(run_of(result()), "local_mean")
    by_hand = 1.96 * math.sqrt(0.9556 * 0.0444 / 360 + 0.7903 * 0.2097 / 360)
    assert found is not None
    assert found.margin == pytest.approx(by_hand)


def test_spread_over_seeds_widens_the_margin() -> None:
    contents = result() | {"accuracy_std": {"federated": 0.1, "no_dp": 0.0}}
    found = compare(run_of(contents, seeds=4), "no_dp")
    assert found is not None
    assert found.margin is not None
    assert found.margin >= 1.96 * 0.1 / 2


def test_a_federation_that_did_not_pay_is_said_to_have_lost() -> None:
    contents = result()
    contents["accuracy"] = {"federated": 0.5, "local_mean": 0.8}
    assert "30.0 points below a node alone" in verdict(run_of(contents))


def test_a_world_is_at_the_same_epsilon_only_where_it_is() -> None:
    contents = result()
    assert "one training at the same ε" in printed(contents)
    assert "ε" not in verdict(run_of(contents)).partition(":")[2]
    contents["epsilon"] |= {"federated": 0.667, "no_transfer": 0.667}
    assert "one training at ε = 3.00" in printed(contents)
    assert "random weights at the same ε" in printed(contents)
    assert "above a node alone at ε = 3.00, " in verdict(run_of(contents)).replace("\N{NO-BREAK SPACE}", " ")
    assert "at the same ε" not in printed(contents | {"epsilon": None})


def test_prose_names_what_the_unit_leaves_out() -> None:
    record = dict(prose.not_protected(run_of(result())))
    assert "ε up to 6.00" in record["A whole patient with several records"]
    contents = result()
    contents["privacy"]["unit"] = "patient"
    patient = dict(prose.not_protected(run_of(contents)))
    assert "A whole patient with several records" not in patient
    assert "present at two nodes spends at both" in patient["The same patient at two nodes"]


def test_noiseless_baseline_is_confessed_only_where_it_was_trained() -> None:
    contents = result()
    assert "without any noise" in dict(prose.not_protected(run_of(contents)))["What this report shows"]
    contents["accuracy"]["no_dp"] = None
    assert "without any noise" not in dict(prose.not_protected(run_of(contents)))["What this report shows"]


def test_prose_says_what_the_backbone_was_trained_on() -> None:
    said = dict(prose.not_protected(run_of(result())))["The backbone's own training data"]
    assert "images drawn by formulas" in said


def printed(contents: dict[str, object]) -> str:
    """Return the terminal's table as text, blanks joined."""
    console = Console(file=io.StringIO(), width=200)
    console.print(result_table(contents))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_terminal_shows_accuracies_epsilon_bytes_and_time() -> None:
    text = printed(result() | {"accuracy_std": {"federated": 0.004}})
    for part in ("95.6 % ± 0.4", "99.2 %", "90.3 %", "3.00", "δ = 1e-5, per record, local trust", "61.5 kB", "21.8 s"):
        assert part in text
    assert "no guarantee: seeded" in text


def test_terminal_leaves_out_baselines_that_were_not_computed() -> None:
    assert "raw pixels" not in printed({"accuracy": {"federated": 0.9, "raw_pixels": None}})
    assert "not computed" in printed({})


def test_terminal_takes_names_as_text() -> None:
    assert "[bold]x[/bold]" in printed({"accuracy": {"federated": 0.9, "[bold]x[/bold]": 0.5}})
    assert printed({"accuracy": {name: 0.5 for name in HOSTILE if "\ud800" not in name}})
