"""How a run goes, for people and for programs: the progress bar, metrics.jsonl, TensorBoard, the curve.

metrics.jsonl has a line of JSON a step (`loss`, `supervised`, `grad_norm`, `learning_rate`, `tokens_per_second`, ...)
and one an evaluation (`eval_loss`, `eval_perplexity`, `eval_accuracy`), each with its `step`.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

__all__ = ["Watch", "draw_curve", "peak_memory", "read_metrics"]


class Record(Protocol):
    """What is drawn of a step."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def eval_loss(self) -> float | None: ...


class Watch:
    """Shows and writes down the numbers of a run.

    Args:
        out: the run's folder, or None to write nothing down.
        lines: of an earlier part of the run, which metrics.jsonl begins with.
        steps: how many the whole run has; `done`: how many were before.
        progress: whether to show a bar.
    """

    def __init__(
        self, out: Path | None, lines: Sequence[dict[str, Any]], steps: int, done: int, progress: bool
    ) -> None:
        self.bar = tqdm(total=steps, initial=done, desc="training", unit="step", disable=not progress)
        self.file, self.board = None, None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            partial = out / "metrics.partial"
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            os.replace(partial, out / "metrics.jsonl")
            self.file = (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
            self.board = _tensorboard(out / "tensorboard", done)

    def step(self, line: dict[str, Any]) -> None:
        """A step was done."""
        self.write(line)
        rate, loss, speed = line["learning_rate"], line["loss"], line["tokens_per_second"]
        self.bar.set_postfix_str(f"lr {rate:.2e}, loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.bar.update()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and its numbers to TensorBoard."""
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, line["step"])

    def sync(self) -> None:
        """Have everything so far on the disk itself."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """End the bar and the files."""
        self.bar.close()
        for open_one in (self.file, self.board):
            if open_one is not None:
                open_one.close()


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer that forgets what an earlier part of the run wrote past `done`, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done)


def read_metrics(out: Path, steps: int, evaluated: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a checkpoint: of the first `steps` steps and the first `evaluated` steps' scores.

    What a run wrote after that checkpoint, perhaps half a line, will be written again.
    """
    path, lines = out / "metrics.jsonl", []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break  # the line at which the process was killed
        if line["step"] < (steps if "loss" in line else evaluated):
            lines.append(line)
    there = sum("loss" in line for line in lines)
    if there < steps:
        warnings.warn(f"{path} tells of {there} of the {steps} steps so far: the curve lacks the others", stacklevel=2)
    return lines


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held so far: on its GPU, else resident; None where the system tells not."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def draw_curve(records: Sequence[Record], path: str | Path) -> bool:
    """Draw the losses of a run by step, trained on and held out; False, with a warning, where matplotlib is missing.

    Where both fall, there is more to learn; where the held-out one rises again while the other falls, the model learns
    the examples by heart (the best step is marked).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn("matplotlib is not installed: no curve is drawn (pip install matplotlib)", stacklevel=2)
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)")
    steps, losses = [r.step for r in records], [r.loss for r in records]
    axes.plot(steps, losses, color="0.8", label="training step")
    window = max(1, len(losses) // 50)
    means = [math.fsum(losses[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    if window > 1:
        axes.plot(steps, means, color="0.4", label=f"mean of {window} steps")
    scored = [(r.step, r.eval_loss) for r in records if r.eval_loss is not None]
    if scored:
        axes.plot(*zip(*scored), "o-", color="#2f6f9f", label="held out")
        best = min(scored, key=lambda pair: pair[1])
        verdict = "" if best == scored[-1] else ": overfitting after it"
        axes.axvline(best[0], color="#2f6f9f", linestyle=":", label=f"best, step {best[0]}{verdict}")
    axes.legend(frameon=False)
    partial = Path(path).with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, path)
    return True
