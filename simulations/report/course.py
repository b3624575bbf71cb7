"""The report's account of the rounds: learning, spending, replies, bytes and time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from simulations.report import figures, wording
from simulations.report.markup import Markup, element, folded, join, paragraph, table
from simulations.report.outcome import missing
from simulations.report.results import RoundLine, Run
from simulations.report.svg import plate

Trace = Sequence[RoundLine]
LONG = 20  # rows after which a table is folded
NAMED = 5  # nodes named in a row about many


def rounds(run: Run) -> Markup:
    """Show accuracy, loss and ε over rounds, and who failed."""
    return join(
        [
            element("div", accuracy_plot(run), loss_plot(run), epsilon_plot(run), seconds_plot(run), class_="grid"),
            element("div", watched, class_="grid") if (watched := watched_plot(run)) else None,
            element("div", replies_plot(run), failures_table(run), class_="pair") if troubled_rounds(run) else None,
            rounds_table(run),
        ]
    )


def curves(run: Run, value: Callable[[RoundLine], float | None]) -> list[figures.Curve]:
    """Return a value over the rounds in which it was computed, for each seed that has some."""
    found = []
    for trace in run.traces:
        known = [(line.round, number) for line in trace if (number := value(line)) is not None]
        if known:
            found.append(figures.Curve([number for number, _ in known], [number for _, number in known]))
    return found


def accuracy_plot(run: Run) -> Markup:
    """Draw the held-out accuracy over rounds, beside what it is compared with."""
    lines = curves(run, lambda line: line.accuracy)
    if not lines:
        return missing("Accuracy over rounds")
    levels = {"no privacy": "no_dp", "alone": "local_mean"}
    accuracy = run.facts.numbers("accuracy")
    references = {name: accuracy[key] for name, key in levels.items() if key in accuracy}
    figure = figures.over_rounds(lines, label="", references=references, as_percent=True, troubled=troubled_rounds(run))
    last = figures.mean_curve(lines).values[-1]
    note = f"On held-out records; {wording.percent(last)} after the last round{faint(lines)}."
    return plate("accuracy", "Accuracy over rounds", figure, f"Accuracy over rounds: {note}", note + triangles(run))


def loss_plot(run: Run) -> Markup:
    """Draw the held-out loss over rounds."""
    lines = curves(run, lambda line: line.loss)
    if not lines:
        return missing("Loss over rounds")
    figure = figures.over_rounds(lines, label="", references={}, troubled=troubled_rounds(run))
    mean = figures.mean_curve(lines).values
    note = (
        f"Mean loss on held-out records, from {wording.plain(round(mean[0], 4))} to {wording.plain(round(mean[-1], 4))}"
    )
    return plate("loss", "Loss over rounds", figure, f"{note}.", f"{note}{faint(lines)}.{triangles(run)}")


def watched_plot(run: Run) -> Markup | None:
    """Draw the loss on the records that the training was watched by, beside the held-out one: does it overfit?"""
    values: dict[str, Callable[[RoundLine], float | None]] = {
        "held out": lambda line: line.loss,
        "validation": lambda line: line.validation_loss,
        "training": lambda line: line.train_loss,
    }
    means = {name: figures.mean_curve(lines) for name, value in values.items() if (lines := curves(run, value))}
    if len(means) < 2:
        return None
    figure = figures.together(means)
    last = ", ".join(f"{name} {wording.plain(round(curve.values[-1], 4))}" for name, curve in means.items())
    note = f"Mean loss after the last round: {last}. A training loss that falls while the others rise is overfitting."
    return plate("watched", "Training, validation and held-out loss", figure, note, note)


def seconds_plot(run: Run) -> Markup:
    """Draw how long each round took."""
    lines = curves(run, lambda line: line.seconds)
    if not lines:
        return missing("Time of each round")
    figure = figures.over_rounds(lines, label="", references={}, unit="s")
    mean = figures.mean_curve(lines).values
    note = f"Wall time of a round with all its nodes: {wording.duration(sum(mean) / len(mean))} on average"
    return plate("seconds", "Time of each round", figure, f"{note}.", f"{note}{faint(lines)}.")


def epsilon_plot(run: Run) -> Markup:
    """Draw ε over rounds under the budget."""
    lines = curves(run, lambda line: line.epsilon)
    if not lines:
        return missing("ε over rounds")
    trace = max(lines, key=lambda line: line.values[-1])
    budget = run.facts.number("privacy", "epsilon_budget")
    figure = figures.spending(trace.rounds, trace.values, budget)
    nominal = "" if wording.is_guarantee(run.facts) else ", nominal"
    spent = f"ε{wording.EQUALS}{wording.epsilon(trace.values[-1])} after round {trace.rounds[-1]}"
    limit = f", budget ε{wording.EQUALS}{wording.epsilon(budget)}" if budget is not None else ""
    note = f"The node that spent most{nominal}: {spent}{limit} ({wording.conditions(run.facts)})."
    return plate("epsilon", "ε over rounds", figure, note, note)


def replies_plot(run: Run) -> Markup:
    """Draw who replied and who failed."""
    lines = [line for line in run.rounds if line.nodes is not None]
    if not lines:
        return missing("Replies over rounds")
    failed = [len(line.failed) for line in lines]
    figure = figures.replies([line.round for line in lines], [line.nodes or 0 for line in lines], failed)
    note = f"{many_failures(sum(failed))} in {wording.many(sum(map(bool, failed)), 'round')}."
    return plate("replies", "Replies over rounds", figure, note, note)


def failures_table(run: Run) -> Markup | None:
    """List the reasons for which nodes failed, with the nodes and rounds."""
    nodes, numbers = defaultdict[str, list[str]](list), defaultdict[str, list[int]](list)
    for line in run.rounds:
        for name, reason in line.failed.items():
            nodes[reason].append(name)
            numbers[reason].append(line.round)
    if not nodes:
        return None
    rows = [
        [reason, wording.whole(len(names)), some(dict.fromkeys(names)), spans(numbers[reason])]
        for reason, names in sorted(nodes.items(), key=lambda item: -len(item[1]))
    ]
    shown = table("Nodes that failed", ["Reason", "Times", "Nodes", "Rounds"], rows, numeric=(1,))
    return shown if len(rows) <= LONG else folded(f"Nodes that failed: {len(rows)} reasons", shown)


def rounds_table(run: Run) -> Markup | None:
    """List every round."""
    if not run.rounds:
        return None
    rows = [
        [
            str(line.round),
            wording.percent(line.accuracy, 2),
            wording.NOT_COMPUTED if line.loss is None else f"{line.loss:.4f}",
            wording.epsilon(line.epsilon),
            wording.whole(line.nodes),
            wording.whole(len(line.failed)),
            wording.duration(line.seconds),
        ]
        for line in run.rounds
    ]
    columns = ["Round", "Accuracy", "Loss", "ε, worst node", "Replied", "Failed", "Time"]
    caption = f"Every round{first_seed(run)}; ε: {wording.conditions(run.facts)}"
    return folded(f"Every round as a table{first_seed(run)}", table(caption, columns, rows, numeric=range(1, 7)))


def costs(run: Run) -> Markup:
    """Show bytes and time, those of the first seed in a run of several."""
    where = first_seed(run)
    return element("div", bytes_table(run.shown, where), time_table(run.shown, where), class_="pair")


def bytes_table(run: Run, where: str) -> Markup:
    """List what was sent."""
    replied = sum(line.nodes or 0 for line in run.rounds)
    down, up = (total(run, value) for value in (lambda line: line.bytes_down, lambda line: line.bytes_up))
    nodes = run.facts.number("nodes")
    backbone = run.facts.number("bytes", "backbone_once")
    backbone_all = backbone * nodes if backbone is not None and nodes is not None else None
    parts = [part for part in (down, up, backbone_all) if part is not None]
    per_round = wording.size(run.facts.number("bytes", "per_round_per_node"))
    rows = [
        ["Head and updates, each node in each round", per_round, ""],
        ["Server to nodes, all rounds", wording.size(down), each(down, replied)],
        ["Nodes to server, all rounds", wording.size(up), each(up, replied)],
        ["Backbone, once, to a node that lacks it", wording.size(backbone), ""],
        ["In all, if every node lacks the backbone", wording.size(sum(parts)) if parts else wording.NOT_COMPUTED, ""],
    ]
    return table(f"Bytes sent{where}", ["What", "Amount", "Per reply"], rows, numeric=(1, 2))


def each(total_bytes: float | None, replied: int) -> str:
    """Write the share of one reply."""
    return wording.size(total_bytes / replied) if total_bytes is not None and replied else wording.DASH


def time_table(run: Run, where: str) -> Markup:
    """List where the time went."""
    features, training, whole = (run.facts.number("timing_s", key) for key in ("features", "rounds", "total"))
    rest = whole - (features or 0) - (training or 0) if whole is not None else None
    replied = sum(line.nodes or 0 for line in run.rounds) * max(1, len(run.seeds))
    per_reply = training / replied if training is not None and replied else None
    rows = [
        ["Features (once for each record)", wording.duration(features), part(features, whole)],
        ["Rounds", wording.duration(training), part(training, whole)],
        [
            "The rest: data, baselines, evaluation",
            wording.duration(max(rest, 0) if rest is not None else None),
            part(rest, whole),
        ],
        ["In all", wording.duration(whole), ""],
        ["Each node in each round", wording.duration(per_reply), ""],
    ]
    shown = table(f"Time spent{where}", ["On what", "Time", "Share"], rows, numeric=(1, 2))
    note = f"Engine {run.facts.text('engine') or wording.NOT_COMPUTED}; all nodes on one machine."
    return element("div", shown, paragraph(note, class_="note"))


def part(value: float | None, whole: float | None) -> str:
    """Write the share of a whole."""
    return wording.percent(max(value, 0) / whole, 0) if value is not None and whole else wording.DASH


def total(run: Run, value: Callable[[RoundLine], float | None]) -> float | None:
    """Add up what is known over rounds."""
    known = [number for line in run.rounds if (number := value(line)) is not None]
    return sum(known) if known else None


def troubled_rounds(run: Run) -> list[int]:
    """Return the rounds in which a node failed."""
    return [line.round for line in run.rounds if line.failed]


def triangles(run: Run) -> str:
    """Say what the marks at the foot are, where there are some."""
    return " Triangles: rounds in which a node failed." if troubled_rounds(run) else ""


def faint(lines: Sequence[figures.Curve]) -> str:
    """Say what the faint lines are, where there are some."""
    return f", mean of {len(lines)} seeds, each drawn faintly" if len(lines) > 1 else ""


def first_seed(run: Run) -> str:
    """Say which seed is shown, in a run of several."""
    return f", seed {run.shown.seed}" if run.seeds else ""


def many_failures(count: int) -> str:
    """Write how often a node failed."""
    return f"A node failed {wording.whole(count)} time{'' if count == 1 else 's'}"


def some(names: Sequence[str] | dict[str, None]) -> str:
    """Name a few of many nodes."""
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def spans(numbers: Sequence[int]) -> str:
    """Write numbers as ranges.

    >>> spans([3, 1, 2, 7, 7])
    '1–3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}{wording.DASH}{high}" for low, high in runs)
