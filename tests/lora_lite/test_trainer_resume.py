"""A run that is killed, told to stop, or out of disk goes on to the very bits of the run that never was.

Each test runs real processes; one program is killed at a chosen moment by itself, or from outside.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_lite import TrainConfig, Trainer
from lora_lite.checkpoints import CheckpointError, checkpoint_steps, load_checkpoint, load_newest, save_checkpoint

ROOT = Path(__file__).parents[2]

# Trains in OUT, resuming; EVENT N: kill itself at the N-th forward pass, checkpoint write (half done) or rename.
PROGRAM = """
import os, signal, sys, time
import torch
import lora_lite.checkpoints as checkpoints
from llama_min import Llama, LlamaConfig
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora, lora_parameters

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
out, event, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0
if event != "never":
    sys.modules["matplotlib"] = None  # not installed, that is: it takes a second to import

def reached(what):
    global seen
    seen += what == event
    return what == event and seen == count

def forward(*_):
    if event == "slow":
        time.sleep(0.05)
    if reached("forward"):
        os.kill(os.getpid(), signal.SIGKILL)

def write(tensors, path, metadata, whole=checkpoints.save_file):
    if reached("full"):
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    whole(tensors, path, metadata=metadata)
    if reached("write"):
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

def rename(source, target, whole=os.replace):
    if str(target).endswith(".safetensors") and reached("rename"):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(source, target)
    if str(target).endswith(".safetensors") and reached("renamed"):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_file, checkpoints.os.replace = write, rename
torch.manual_seed(0)
model = Llama(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64))
model.register_forward_pre_hook(forward)
add_lora(model, LoRAConfig(rank=2, dropout=0.2))
torch.manual_seed(int(time.time_ns()) % 2**31)  # what was drawn before must not matter
draw = torch.Generator().manual_seed(1)
def example():
    n = int(torch.randint(3, 12, (), generator=draw))
    ids = torch.randint(0, 50, (n,), generator=draw).tolist()
    return Example(ids, [0] + [1] * (n - 1))
train, held_out = [example() for _ in range(14)], [example() for _ in range(5)]
config = TrainConfig(epochs=3, batch_size=4, micro_batch_size=2, learning_rate=0.1, evaluations=6, save_every=3,
                     keep=2, lora_plus=2.0, progress=False)
history = Trainer(model, config, out).fit(train, held_out, resume=True)
torch.save({"adapter": [p.detach() for p in lora_parameters(model)],
            "history": [(s.step, s.loss, s.grad_norm, s.learning_rate, s.eval_loss) for s in history]}, out + "/end.pt")
"""


def start(out: Path, event: str = "never", count: int = 0) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", PROGRAM, str(out), event, str(count)]
    return subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    errors = process.communicate(timeout=600)[1]
    return process.returncode, errors


def metrics(out: Path) -> list[dict]:
    """Lines of metrics.jsonl, without what a clock or the machine says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "peak_memory")} for line in lines
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never interrupted: 12 steps, scored after every second one, 24 + 18 forward passes."""
    out = tmp_path_factory.mktemp("straight")
    code, errors = finish(start(out))
    assert code == 0, errors
    return out


def assert_same_end(out: Path, straight: Path) -> None:
    code, errors = finish(start(out))
    assert code == 0, errors
    ours, theirs = torch.load(out / "end.pt"), torch.load(straight / "end.pt")
    assert all(torch.equal(p, q) for p, q in zip(ours["adapter"], theirs["adapter"], strict=True))
    assert ours["history"] == theirs["history"] and len(ours["history"]) == 12
    assert metrics(out) == metrics(straight)
    assert not list(out.rglob("*.partial"))


def test_what_a_run_leaves(straight: Path) -> None:
    """The last two checkpoints and the best one's; the adapter is the best one's; 12 steps and 6 evaluations."""
    lines = metrics(straight)
    scores = {line["step"] + 1: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert sorted(scores) == [2, 4, 6, 8, 10, 12] and len(lines) == 18
    best = min(scores, key=scores.__getitem__)
    steps = checkpoint_steps(straight / "checkpoints")
    assert best in steps and steps[-1] == 12 and len(set(steps) - {best}) <= 2
    tensors, stored = load_checkpoint(straight / "checkpoints" / f"step-{best:08d}.safetensors")
    assert stored["state"]["best_step"] == best <= 6, "the run should overfit, or the best is not told from the last"
    adapter = torch.load(straight / "end.pt")["adapter"]
    named = [tensors[name] for name in tensors if name.startswith("parameter.")]
    assert sorted(float(p.sum()) for p in adapter) == sorted(float(p.sum()) for p in named)
    assert (straight / "curve.png").read_bytes().startswith(b"\x89PNG")
    first = json.loads((straight / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "supervised", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory"} <= set(first)


def test_killed_at_any_moment(straight: Path, tmp_path: Path) -> None:
    """Again and again, in a step, in an evaluation, in a checkpoint's write, just before and after its rename."""
    for event, count in (
        ("write", 1),  # the very first checkpoint
        ("forward", 4),  # in the middle of step 1
        ("forward", 7),  # in an evaluation
        ("write", 2),
        ("rename", 2),
        ("forward", 11),
        ("rename", 3),
    ):
        code, errors = finish(start(tmp_path, event, count))
        assert code == -signal.SIGKILL, (event, count, errors)
    assert 6 < checkpoint_steps(tmp_path / "checkpoints")[-1] < 12
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # as a power cut leaves it
    assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(asked: signal.Signals, straight: Path, tmp_path: Path) -> None:
    """It saves between two passes, does what the signal does, and loses nothing."""
    process = start(tmp_path, "slow")
    path = tmp_path / "metrics.jsonl"
    while not path.is_file() or path.read_text().count('"loss"') < 4:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(asked)
    code, errors = finish(process)
    # an uncaught KeyboardInterrupt ends Python by the signal, or with 1 where PyTorch's compiler has been imported
    assert code in ((-asked, 1) if asked == signal.SIGINT else (-asked,)), errors
    assert "KeyboardInterrupt" in errors or asked == signal.SIGTERM
    assert f"{asked.name}: saving, then stopping" in errors
    done = sum('"loss"' in line for line in path.read_text().splitlines())
    assert 4 <= done < 8 and checkpoint_steps(tmp_path / "checkpoints")[-1] == done
    assert_same_end(tmp_path, straight)


def test_a_full_disk(straight: Path, tmp_path: Path) -> None:
    """No file may grow past 8 kB from the third checkpoint on: an error that names the one before it, whole."""
    code, errors = finish(start(tmp_path, "full", 3))
    assert code == 1 and "CheckpointError" in errors
    last = checkpoint_steps(tmp_path / "checkpoints")[-1]
    assert f"the last whole checkpoint is step-{last:08d}.safetensors" in errors
    load_checkpoint(tmp_path / "checkpoints" / f"step-{last:08d}.safetensors")
    assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    """It is passed over aloud for the one before; where none is whole, there is nothing to go on from."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"p": torch.full((100,), float(step))}, {"step": step}, keep=2, best=0)
    path = tmp_path / "step-00000002.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-50] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "bit": data, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="step-00000002.safetensors is damaged .*going back"):
        tensors, state = load_newest(tmp_path)
    assert state == {"step": 1} and torch.equal(tensors["p"], torch.ones(100))
    (tmp_path / "step-00000001.safetensors").write_bytes(b"x")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        load_newest(tmp_path)


def test_which_checkpoints_are_kept(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"half": torch.ones(3, dtype=torch.bfloat16)}, {}, keep=2, best=min(step, 2))
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    # a run that went back to 2, because 4 and 5 are damaged, is at 3
    save_checkpoint(tmp_path, 3, {"half": torch.ones(3, dtype=torch.bfloat16)}, {}, keep=1, best=2)
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    from tests.lora_lite.test_trainer import EXAMPLES, model, trainer

    first = trainer(model(), out=tmp_path, batch_size=5)
    first.fit(EXAMPLES)
    with pytest.raises(ValueError, match="holds a run that is at step 1: resume it"):
        trainer(model(), out=tmp_path, batch_size=5).fit(EXAMPLES)
    assert len(trainer(model(), out=tmp_path, batch_size=5, micro_batch_size=1).fit(EXAMPLES, resume=True)) == 1
    with pytest.raises(ValueError, match="began otherwise: batch_size, seed differ"):
        trainer(model(), out=tmp_path, batch_size=4, seed=1).fit(EXAMPLES, resume=True)
    with pytest.raises(ValueError, match="the data differ"):
        trainer(model(), out=tmp_path, batch_size=5).fit(EXAMPLES[::-1], resume=True)
    for change in ({"alpha": 64.0}, {"dropout": 0.5}, {"rank": 3}):
        with pytest.raises(ValueError, match="the adapters differ"):
            trainer(model(**change), out=tmp_path, batch_size=5).fit(EXAMPLES, resume=True)
    other = model()
    with torch.no_grad():
        other.model.norm.weight[0] = 2
    with pytest.raises(ValueError, match="the base differ"):
        trainer(other, out=tmp_path, batch_size=5).fit(EXAMPLES, resume=True)


class Normed(nn.Module):
    """A language model with a batch norm, whose moving averages change with every pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(50, 8), nn.BatchNorm1d(8), nn.Linear(8, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # (B, T) -> (B, T, 50)
        return self.head(self.norm(self.embedding(ids).transpose(1, 2)).transpose(1, 2))


def test_moving_averages_go_on_and_the_best_are_kept(tmp_path: Path) -> None:
    from tests.lora_lite.test_trainer import EXAMPLES

    settings = TrainConfig(
        epochs=6, batch_size=5, learning_rate=0.05, evaluations=3, save_every=1, keep=9, progress=False
    )

    def run(out: Path) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Normed()
        Trainer(model, settings, out).fit(EXAMPLES, EXAMPLES[:2], resume=True)
        return model.state_dict()

    straight = run(tmp_path)
    for file in ("checkpoints/step-00000005.safetensors", "checkpoints/step-00000006.safetensors"):
        (tmp_path / file).unlink()
    again = run(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in straight.items())
    tensors, state = load_checkpoint(tmp_path / "checkpoints" / "step-00000006.safetensors")
    best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
    assert best.keys() == straight.keys() and state["state"]["best_step"] > 0
    assert all(torch.equal(best[name], value) for name, value in straight.items())
    counted = [load_checkpoint(tmp_path / "checkpoints" / f"step-0000000{step}.safetensors")[0] for step in (2, 6)]
    passes = [int(tensors["parameter.norm.num_batches_tracked"]) for tensors in counted]
    assert passes == [2, 6]  # an evaluation moves nothing


def test_a_run_goes_on_without_its_metrics(tmp_path: Path) -> None:
    from tests.lora_lite.test_trainer import EXAMPLES, model, trainer

    settings = {"out": tmp_path, "epochs": 4, "batch_size": 5, "evaluations": 2, "save_every": 1, "keep": 9}
    trainer(model(), **settings).fit(EXAMPLES, EXAMPLES[:1])
    for step in (3, 4):
        (tmp_path / "checkpoints" / f"step-0000000{step}.safetensors").unlink()
    place = tmp_path / "checkpoints" / "step-00000002.safetensors"
    tensors, state = load_checkpoint(place)  # as one is that was saved before the evaluation of its step
    state["state"]["evaluated"] = 0
    save_checkpoint(place.parent, 2, tensors, state, keep=9, best=0)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.warns(UserWarning, match="metrics.jsonl tells of 0 of the 2 steps so far"):
        history = trainer(model(), **settings).fit(EXAMPLES, EXAMPLES[:1], resume=True)
    assert [step.step for step in history] == [2, 3]


def test_asked_to_stop_while_the_last_curve_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is whole, and the caller still hears of Ctrl-C."""
    from tests.lora_lite.test_trainer import EXAMPLES, model, trainer

    def draw(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lora_lite.trainer.draw_curve", draw)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(model(), out=tmp_path, batch_size=5, epochs=3).fit(EXAMPLES)
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint_steps(tmp_path / "checkpoints")[-1] == 3


def test_asked_to_stop_within_a_step_that_moved_averages(tmp_path: Path) -> None:
    """The second pass of a step asks for the stop: the averages that its first pass moved are not saved."""
    from tests.lora_lite.test_trainer import EXAMPLES

    settings = TrainConfig(epochs=3, batch_size=4, micro_batch_size=1, progress=False)

    def run(out: Path, stop_at: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model, passes = Normed(), []

        def count(*_: object) -> None:
            if model.training:
                passes.append(1)
                if len(passes) == stop_at:
                    signal.raise_signal(signal.SIGINT)

        model.register_forward_hook(count)
        Trainer(model, settings, out).fit(EXAMPLES[:4], resume=True)
        return model.state_dict()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", 6)
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint_steps(tmp_path / "stopped" / "checkpoints")[-1] == 1
    again, straight = run(tmp_path / "stopped", 0), run(tmp_path / "straight", 0)
    assert all(torch.equal(again[name], value) for name, value in straight.items())
