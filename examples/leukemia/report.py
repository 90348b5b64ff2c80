"""Charts as PNG and one HTML page of everything that a run measured."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

__all__ = ["write_report"]


def write_report(metrics: dict[str, Any], out: Path) -> None:
    """Write the charts and report.html into `out`; the page holds its pictures and needs no other file."""
    from jinja2 import Environment, FileSystemLoader

    pictures = _charts(metrics, out)
    embedded = {path.stem: base64.b64encode(path.read_bytes()).decode("ascii") for path in pictures}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.jinja").render(m=metrics, pictures=embedded)
    (out / "report.html").write_text(page, encoding="utf-8")


def _charts(metrics: dict[str, Any], out: Path) -> list[Path]:
    """Draw every chart and return the PNG files."""
    sizes = {name: size / 2**20 for name, size in metrics["size_bytes"].items() if name != "adapter"}
    prefill = {name: times["prefill_ms"] for name, times in metrics["inference"].items()}
    decode = {name: times["decode_ms_per_token"] for name, times in metrics["inference"].items()}
    paths = [
        _bars(out / "model_size.png", "Weights on disk", "MiB", sizes),
        _bars(out / "prefill_time.png", "Time to read a prompt", "ms", prefill),
        _bars(out / "decode_time.png", "Time to write a token", "ms", decode),
    ]
    titles = {
        "perplexity": ("Held-out perplexity (lower is better)", "perplexity a token", None),
        "subtype_accuracy": ("Subtype classification", "accuracy", metrics["scores"]["base"]["subtype_majority"]),
        "title_rouge_l": ("Titles", "ROUGE-L", None),
    }
    for key, (title, label, baseline) in titles.items():
        scores = {name: row[key] for name, row in metrics["scores"].items() if row[key] is not None}
        if scores:
            paths.append(_intervals(out / f"{key}.png", title, label, scores, baseline))
    for stage, steps in metrics["training"].items():
        paths.append(_curve(out / f"training_{stage}.png", f"Training on {stage}", steps))
    return paths


def _colour(name: str) -> str:
    """One colour a kind of model, the same in every chart."""
    return "#c8772e" if "int8" in name else "#2f6f9f" if "LoRA" in name else "#7a8aa0"


def _axes(title: str, label: str, width: float = 5.2) -> Any:
    """Axes of a new figure, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _bars(path: Path, title: str, label: str, values: dict[str, float]) -> Path:
    """A bar a model, its value above it."""
    axes = _axes(title, label)
    bars = axes.bar(list(values), list(values.values()), color=[_colour(name) for name in values], width=0.6)
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.margins(y=0.15)
    axes.figure.savefig(path)
    return path


def _intervals(path: Path, title: str, label: str, scores: dict[str, Any], baseline: float | None) -> Path:
    """A bar a model with its confidence interval, and a line at what is reached without any model."""
    axes = _axes(title, label)
    for name, score in scores.items():
        bar = axes.bar(name, score["value"], color=_colour(name), width=0.6)
        axes.bar_label(bar, fmt="%.3g", label_type="center", color="white")
        if score["low"] is not None:
            below, above = score["value"] - score["low"], score["high"] - score["value"]
            axes.errorbar(name, score["value"], [[below], [above]], color="black", capsize=4)
    if baseline is not None:
        axes.axhline(baseline, color="black", linestyle="--", linewidth=1, label="always the most frequent label")
        axes.legend(frameon=False, loc="upper left")
        axes.set_ylim(0, 1.2)
    axes.figure.savefig(path)
    return path


def _curve(path: Path, title: str, steps: list[dict[str, Any]]) -> Path:
    """Loss by step, on what is trained on and on what is held out."""
    axes = _axes(title, "loss (nats a token)", width=7)
    axes.set_xlabel("step")
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color="0.7", label="training step")
    scored = [step for step in steps if step["eval_loss"] is not None]
    if scored:
        losses = [step["eval_loss"] for step in scored]
        axes.plot([step["step"] for step in scored], losses, "o-", color="#2f6f9f", label="validation")
    axes.legend(frameon=False)
    axes.figure.savefig(path)
    return path
