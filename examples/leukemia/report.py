"""Charts as PNG and one HTML page of everything that a run measured."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.leukemia.evaluate import MAX_ANSWER_TOKENS, SPARE_TOKENS

__all__ = ["claim", "write_report"]

# of the report that started this project: 40% smaller leaves 0.6 of the bytes; 30% faster is 1.3 times the speed, 1/1.3 of the time
CLAIMED = {"smaller": 40, "faster": 30}  # percent
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "reading_grade")
TASKS = {
    "text": "Text: abstracts to go on with",
    "subtype": "Subtype: which disease an abstract is about",
    "summary": "Summary: an abstract to its conclusion or title",
    "question": "Questions",
    "terms": "Key terms",
    "plain": "Plain language",
    "lab": "Lab reports",
}
METRICS = {
    "bits_per_byte": "bits a byte",
    "macro_f1": "macro-F1",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "numbers_faithful": "numbers that the abstract holds",
    "entities_faithful": "entities that the abstract holds",
    "exact_match": "exact match",
    "exact_match_closed_book": "exact match, nothing to read",
    "exact_match_retrieved": "exact match, with retrieval",
    "exact_match_open": "exact match, open questions",
    "exact_match_open_retrieved": "exact match, open questions, with retrieval",
    "exact_match_open_context": "exact match, open questions, with their context",
    "f1": "F1",
    "f1_closed_book": "F1, nothing to read",
    "f1_retrieved": "F1, with retrieval",
    "f1_open": "F1, open questions",
    "f1_open_retrieved": "F1, open questions, with retrieval",
    "f1_open_context": "F1, open questions, with their context",
    "gold_recall": "own article among those retrieved",
    "sari": "SARI",
    "reading_grade": "reading grade",
}
REFERENCES = {  # what no model scored, but what its scores are to be read against: {metric: {name in the scores: in words}}
    "accuracy": {"majority": "always the most frequent label"},
    "sari": {"source_sari": "the source as it is"},
    "chrf": {"source_chrf": "the source as it is"},
    "reading_grade": {"source_grade": "the source", "expected_grade": "the expected answers"},
}
SCORE_CHARTS = {  # file: (task, metrics side by side, what the axis says)
    "text_perplexity": ("text", ("perplexity",), "perplexity a token (lower is better)"),
    "subtype_accuracy": ("subtype", ("accuracy", "macro_f1"), "share"),
    "summary_rouge_l": ("summary", ("rouge_1", "rouge_2", "rouge_l"), "ROUGE, F-measure"),
    "summary_chrf": ("summary", ("chrf",), "chrF, 0 to 100"),
    "summary_faithful": ("summary", ("numbers_faithful", "entities_faithful"), "share"),
    "question_f1": ("question", ("f1_closed_book", "f1_retrieved", "f1"), "F1 of words"),
    "open_question_f1": ("question", ("f1_open", "f1_open_retrieved", "f1_open_context"), "F1 of words"),
    "question_exact_match": ("question", ("exact_match_closed_book", "exact_match_retrieved", "exact_match"), "share"),
    "terms_f1": ("terms", ("precision", "recall", "f1"), "share"),
    "plain_sari": ("plain", ("sari", "chrf"), "SARI and chrF, 0 to 100"),
    "plain_reading_grade": ("plain", ("reading_grade",), "years of school (lower is better)"),
    "lab_accuracy": ("lab", ("accuracy", "exact_match", "f1"), "share"),
}
COLOURS = ("#7a8aa0", "#0072b2", "#c25100", "#00805a")  # told apart by those who see few colours


@dataclass(frozen=True)
class Chart:
    """A picture: its file, and what it shows in words, for those who cannot see it."""

    path: Path
    alt: str

    @property
    def data(self) -> str:
        """The PNG as the page holds it."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


def write_report(metrics: dict[str, Any], out: Path) -> None:
    """Write the charts and report.html into `out`; the page holds its pictures and needs no other file."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "metric": _metric, "score": _score}
    charts = tqdm(_charts(metrics, out), desc="drawing", unit=" chart", delay=1)
    page = environment.get_template("report.html.jinja").render(
        m=metrics,
        charts={chart.path.stem: chart for chart in charts},
        tables={task: _table(metrics["scores"], task) for task in TASKS},
        claim=claim(metrics),
        tasks=TASKS,
        score_charts=SCORE_CHARTS,
        most_tokens=MAX_ANSWER_TOKENS,
        spare_tokens=SPARE_TOKENS,
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def claim(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """What quantization was claimed to save, beside what int8 saves of float32 and bfloat16, a row a measure."""
    sizes, times = metrics["size_bytes"], metrics["inference"]
    prompt = metrics["prompt_tokens"]
    measures = {
        "weights on disk": ("smaller", sizes),
        f"time to read {prompt} tokens": ("faster", _column(times, "prefill_ms")),
        "time to write a token": ("faster", _column(times, "decode_ms_per_token")),
    }
    rows = []
    for name, (kind, values) in measures.items():
        row = {"measure": name, "claimed": f"{CLAIMED[kind]}% {kind}"}
        for peer in ("float32", "bfloat16"):
            row[peer] = _saved(kind, values["int8"], values[peer]) if peer in values else "not measured"
        rows.append(row)
    return rows


def _saved(kind: str, ours: float, theirs: float) -> str:
    """How much smaller or faster in words, and whether that is what was claimed."""
    if kind == "smaller":
        percent, other, times = 100 * (1 - ours / theirs), "larger", ""
    else:
        percent, other, times = 100 * (theirs / ours - 1), "slower", f" ({theirs / ours:.2f} times the speed)"
    verdict = "at least what was claimed" if percent >= CLAIMED[kind] else "less than was claimed"
    return f"{abs(percent):.1f}% {kind if percent >= 0 else other}{times}: {verdict}"


def _column(table: Mapping[str, Mapping[str, float]], key: str) -> dict[str, float]:
    return {name: row[key] for name, row in table.items()}


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _metric(name: str) -> str:
    return METRICS.get(name, name.replace("_", " ")) + (" (lower is better)" if name in LOWER_IS_BETTER else "")


def _score(score: Any) -> str:
    """A value with its interval and n, a plain value, or that there is none."""
    if score is None:
        return "no items"
    if not isinstance(score, Mapping):
        return _number(score)
    known = score["low"] != score["high"]  # neither None nor resamples that are all alike
    interval = f" [{_number(score['low'])}, {_number(score['high'])}]" if known else ""
    return f"{_number(score['value'])}{interval}, n={score['n']}"


def _table(scores: Mapping[str, Mapping[str, Any]], task: str) -> list[tuple[str, dict[str, float], list[Any]]]:
    """A row a metric: its name, what it is to be read against, and the score of each model."""
    rows = {model: row.get(task) or {} for model, row in scores.items()}
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "confusion")
    metrics = names.keys() - {name for against in REFERENCES.values() for name in against}
    return [(n, _references(rows, n), [row.get(n) for row in rows.values()]) for n in names if n in metrics]


def _references(rows: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, float]:
    """What a metric of a task is to be read against, in words and its value; all models were asked the same."""
    names = REFERENCES.get(metric, {})
    return {names[name]: row[name] for row in rows.values() for name in names if row.get(name) is not None}


def _charts(metrics: dict[str, Any], out: Path) -> Iterator[Chart]:
    """Draw one chart after the other."""
    scores, times = metrics["scores"], metrics["inference"]
    sizes = {name: metrics["size_bytes"][name] / 2**20 for name in times}
    yield _items(out / "items.png", metrics["data"]["items"])
    yield _bars(out / "model_size.png", "Weights on disk", "MiB", sizes)
    yield _bars(out / "prefill_time.png", "Time to read a prompt", "ms", _column(times, "prefill_ms"))
    yield _bars(out / "decode_time.png", "Time to write a token", "ms", _column(times, "decode_ms_per_token"))
    for stem, (task, names, label) in SCORE_CHARTS.items():
        rows = {model: row.get(task) or {} for model, row in scores.items()}
        there = [name for name in names if any(row.get(name) is not None for row in rows.values())]
        if there:
            yield _grouped(out / f"{stem}.png", TASKS[task], label, rows, there)
    confusions = {name: row["subtype"]["confusion"] for name, row in scores.items() if row.get("subtype")}
    if confusions:
        yield _confusions(out / "confusion.png", confusions)
    for stage, steps in metrics["training"].items():
        yield _curve(out / f"training_{stage}.png", stage, steps)


def _axes(title: str, label: str, width: float = 5.2, columns: int = 1) -> Any:
    """Axes of a new figure, drawn without a screen; a list of them where there are several columns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for axes in all_axes:
        axes.set(title=title, ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    return all_axes if columns > 1 else all_axes[0]


def _save(axes: Any, path: Path, alt: str) -> Chart:
    axes.figure.savefig(path)
    return Chart(path, alt)


def _bars(path: Path, title: str, label: str, values: dict[str, float]) -> Chart:
    """A bar a model, its value above it."""
    axes = _axes(title, label)
    bars = axes.bar(
        list(values), list(values.values()), color=[COLOURS[place] for place in (1, 3, 2)][-len(values) :], width=0.6
    )
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.margins(y=0.15)
    told = ", ".join(f"{name} {value:.3g} {label}" for name, value in values.items())
    return _save(axes, path, f"Bar chart. {title}: {told}.")


def _items(path: Path, counts: dict[str, dict[str, int]]) -> Chart:
    """Items of each task, the sides on top of each other."""
    axes = _axes("Items", "items", width=7)
    floor = [0] * len(counts)
    for side, colour in zip(("train", "validation", "test"), COLOURS):
        heights = [row[side] for row in counts.values()]
        axes.bar(list(counts), heights, bottom=floor, label=side, color=colour, width=0.6)
        floor = [below + height for below, height in zip(floor, heights)]
    axes.margins(y=0.25)
    axes.legend(frameon=False, ncols=3, loc="upper left")
    told = "; ".join(f"{task} {row['train']}, {row['validation']}, {row['test']}" for task, row in counts.items())
    return _save(axes, path, f"Stacked bar chart. Items of each task in train, validation and test: {told}.")


def _grouped(path: Path, title: str, label: str, rows: dict[str, dict[str, Any]], names: Sequence[str]) -> Chart:
    """A group of bars a metric, a bar a model, each with its confidence interval."""
    axes = _axes(title, label, width=max(5.2, 2.3 * len(names)))
    width, told = 0.8 / len(rows), []
    for number, (model, row) in enumerate(rows.items()):
        for place, name in enumerate(names):
            if row.get(name) is None:
                continue
            score, x = row[name], place + (number - (len(rows) - 1) / 2) * width
            axes.bar(x, score["value"], width, color=COLOURS[number % len(COLOURS)])
            top = score["value"]
            if score["low"] != score["high"]:
                reach = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
                axes.errorbar(x, score["value"], reach, color="black", capsize=3, linewidth=1)
                top = score["high"]
            axes.annotate(
                f"{score['value']:.2f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
            told.append(f"{_metric(name)}, {model}: {_score(score)}")
        axes.bar(0, 0, color=COLOURS[number % len(COLOURS)], label=model)  # the legend's
    for place, name in enumerate(names):  # a line across the bars of its metric alone
        for (words, value), line in zip(_references(rows, name).items(), ("--", ":")):
            axes.hlines(value, place - 0.5, place + 0.5, "black", line, linewidth=1, label=words)
            told.append(f"{words}: {_number(value)}")
    axes.set_xticks(range(len(names)), [_metric(name).removesuffix(" (lower is better)") for name in names])
    axes.margins(y=0.25)
    handles, words = axes.get_legend_handles_labels()
    once = dict(zip(words, handles))  # two metrics may be read against the same
    axes.legend(once.values(), once.keys(), frameon=False, fontsize=8, loc="upper left", ncols=2)
    return _save(axes, path, f"Bar chart with 95% intervals. {title}. {'; '.join(told)}.")


def _confusions(path: Path, confusions: dict[str, dict[str, dict[str, int]]]) -> Chart:
    """A matrix a model: rows are true labels, columns chosen ones, the shade is the share of a row."""
    figure = _axes("", "", width=4.2 * len(confusions), columns=max(2, len(confusions)))[0].figure
    told = []
    for axes, (model, table) in zip(figure.axes, confusions.items()):
        labels, rows = list(table), [list(row.values()) for row in table.values()]
        axes.imshow([[count / max(1, sum(row)) for count in row] for row in rows], cmap="Blues", vmin=0, vmax=1)
        for y, row in enumerate(rows):
            for x, count in enumerate(row):
                colour = "white" if count > 0.6 * sum(row) else "black"
                axes.text(x, y, count, ha="center", va="center", fontsize=8, color=colour)
        axes.set(title=model, xlabel="chosen", ylabel="true")
        axes.set_xticks(range(len(labels)), labels, rotation=45)
        axes.set_yticks(range(len(labels)), labels)
        right = sum(table[label].get(label, 0) for label in labels)
        told.append(f"{model}: {right} of {sum(map(sum, rows))} on the diagonal")
    for axes in figure.axes[len(confusions) :]:
        axes.remove()
    figure.savefig(path)
    return Chart(path, f"Confusion matrices, also in the tables below. {'; '.join(told)}.")


def _curve(path: Path, stage: str, steps: list[dict[str, Any]]) -> Chart:
    """Loss by step, on what is trained on and on what is held out."""
    axes = _axes(f"Training on {stage}", "loss (nats a token)", width=7)
    axes.set_xlabel("step")
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color="0.6", label="training step")
    scored = [step for step in steps if step["eval_loss"] is not None]
    alt = f"Line chart. Training on {stage}: {len(steps)} steps, loss from {steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}"
    if scored:
        losses = [step["eval_loss"] for step in scored]
        axes.plot([step["step"] for step in scored], losses, "o-", color=COLOURS[1], label="validation")
        alt += f"; validation from {losses[0]:.3f} to {losses[-1]:.3f}, at best {min(losses):.3f}"
    axes.legend(frameon=False)
    return _save(axes, path, f"{alt}.")
