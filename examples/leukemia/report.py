"""Charts as PNG and one HTML page of everything that a run measured."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

__all__ = ["NOTICE", "write_report"]

NOTICE = (
    "A teaching and research tool, no medical device: nothing here is medical advice, and no answer of these models "
    "may guide the care of a patient."
)


def write_report(metrics: dict[str, Any], out: Path) -> None:
    """Write the charts and report.html into `out`; the page holds its pictures and needs no other file."""
    from jinja2 import Environment, FileSystemLoader

    pictures = _charts(metrics, out)
    embedded = {path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in pictures}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.jinja").render(m=metrics, pictures=embedded)
    (out / "report.html").write_text(page, encoding="utf-8")


def _charts(metrics: dict[str, Any], out: Path) -> list[Path]:
    """The PNG files; drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []

    def figure(name: str, title: str, ylabel: str, width: float = 5.2) -> tuple[Any, Any]:
        fig = Figure(figsize=(width, 3.6), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.add_subplot()
        axes.set_title(title)
        axes.set_ylabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        paths.append(out / f"{name}.png")
        return fig, axes

    def bars(name: str, title: str, ylabel: str, values: dict[str, float], form: str) -> None:
        fig, axes = figure(name, title, ylabel)
        drawn = axes.bar(list(values), list(values.values()), color=COLOURS[: len(values)], width=0.6)
        axes.bar_label(drawn, labels=[form.format(value) for value in values.values()], padding=2)
        axes.margins(y=0.15)
        fig.savefig(paths[-1], dpi=120)

    sizes = {name: size / 2**20 for name, size in metrics["size_bytes"].items() if name != "adapter"}
    bars("model_size", "Weights on disk", "MiB", sizes, "{:.2f}")
    times = metrics["inference"]
    bars("prefill_time", "Time to read 128 tokens", "ms", {k: v["prefill_ms"] for k, v in times.items()}, "{:.1f}")
    decode = {k: v["decode_ms_per_token"] for k, v in times.items()}
    bars("decode_time", "Time to write a token", "ms", decode, "{:.2f}")

    titles = {
        "perplexity": ("Held-out perplexity (lower is better)", "perplexity a token"),
        "subtype_accuracy": ("Subtype classification", "accuracy"),
        "title_rouge_l": ("Titles", "ROUGE-L"),
    }
    for key, (title, ylabel) in titles.items():
        scores = {name: row[key] for name, row in metrics["scores"].items() if row[key] is not None}
        if not scores:
            continue
        fig, axes = figure(key, title, ylabel)
        for place, (name, score) in enumerate(scores.items()):
            value, low, high = score["value"], score["low"], score["high"]
            axes.bar(place, value, color=COLOURS[place], width=0.6)
            if low is not None:
                axes.errorbar(place, value, [[value - low], [high - value]], color="black", capsize=4)
            axes.annotate(f"{value:.3g}", (place, 0), (0, 4), textcoords="offset points", ha="center", color="white")
        axes.set_xticks(range(len(scores)), list(scores))
        if key == "subtype_accuracy":
            majority = metrics["scores"]["base"]["subtype_majority"]
            axes.axhline(majority, color="grey", linestyle="--", linewidth=1)
            axes.annotate(
                "most frequent label", (0.99, majority), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
            axes.set_ylim(0, 1.05)
        fig.savefig(paths[-1], dpi=120)

    for stage, steps in metrics["training"].items():
        fig, axes = figure(f"training_{stage}", f"Training on {stage}", "loss (nats a token)", width=7)
        axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color="0.75", label="training step")
        scored = [s for s in steps if s["eval_loss"] is not None]
        if scored:
            axes.plot(
                [s["step"] for s in scored], [s["eval_loss"] for s in scored], "o-", color=COLOURS[1], label="held out"
            )
        axes.set_xlabel("step")
        axes.legend(frameon=False)
        fig.savefig(paths[-1], dpi=120)
    return paths


COLOURS = ("#7a8aa0", "#2f6f9f", "#c8772e", "#4d8f5b")
