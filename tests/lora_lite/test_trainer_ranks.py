"""Several processes train what one does: the same losses, the same adapter, each example once an epoch."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_min import load_llama
from lora_lite import Example, LoRAConfig, add_lora
from lora_lite.checkpoints import checkpoint_steps
from lora_lite.ranks import shard_base
from lora_lite.trainer import deal
from quant_lite import quantize_

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "leukemia" / "data" / "tiny-llama"

# What a user's script is: nothing in it speaks of ranks but the folder, to see who writes.
PROGRAM = """
import json, os, signal, sys
import torch
from llama_min import Llama, LlamaConfig
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora, lora_parameters, save_adapter

sys.modules["matplotlib"] = None  # not installed, that is: it takes a second to import
out, settings, kill_at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
rank = os.environ.get("RANK", "0")
torch.manual_seed(0)
model = Llama(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64))
model.double()
add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(int(rank)))
for p in lora_parameters(model):
    p.data = p.data.double()
draw = torch.Generator().manual_seed(1)
def example():
    n = int(torch.randint(3, 12, (), generator=draw))
    return Example(torch.randint(0, 50, (n,), generator=draw).tolist(), [0] + [1] * (n - 1))
train, held_out = [example() for _ in range(11)], [example() for _ in range(5)]
config = TrainConfig(epochs=3, batch_size=5, learning_rate=3e-2, evaluations=3, save_every=2, progress=False, **settings)
trainer = Trainer(model, config, os.path.join(out, rank))
steps = 0
def step(*_):
    global steps
    steps += 1
    if steps == abs(kill_at) and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL if kill_at > 0 else signal.SIGTERM)
from torch.optim.optimizer import register_optimizer_step_pre_hook
register_optimizer_step_pre_hook(step)
history = trainer.fit(train, held_out, resume=True)
whole = sum(p.numel() for p in model.parameters() if not hasattr(p, "full_tensor"))
torch.save({"adapter": [p.detach() for p in lora_parameters(model)], "whole": whole,
            "losses": [(s.loss, s.grad_norm, s.eval_loss or 0.0) for s in history]}, f"{out}/end-{rank}.pt")
"""


def start(out: Path, ranks: int, settings: str = "{}", kill_at: int = 0) -> list[subprocess.Popen[str]]:
    """The processes that torchrun would start, with the environment that it would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **({k: str(v) for k, v in more.items()} if ranks > 1 else {}),
        }
        line = [sys.executable, "-c", PROGRAM, str(out), settings, str(kill_at)]
        processes.append(subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[dict]:
    for process in processes:
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors
    out = Path(processes[0].args[3])
    return [torch.load(out / f"end-{rank}.pt") for rank in range(len(processes))]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """`torchrun` with two processes; it has to end well."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    (end,) = finish(start(tmp_path_factory.mktemp("alone"), 1))
    assert len(end["losses"]) == 9
    return end


def assert_equal(ends: list[dict], alone: dict) -> None:
    """On every rank the bits of rank 0; of one process what rounding leaves.

    All is float64 but the loss and the norms, each over its own token alone, in float32: numbers that are equal to
    2^-52 may be rounded apart there by 2^-24. The rates add up to 0.15, and Adam's step is the rate times a ratio that
    moves by some 2^-24 times the ratio of a gradient's terms to itself, below 100 here: 0.15 * 100 * 2^-24 = 1e-6.
    """
    for end in ends:
        assert all(torch.equal(p, q) for p, q in zip(end["adapter"], ends[0]["adapter"], strict=True))
    for p, q in zip(ends[0]["adapter"], alone["adapter"], strict=True):
        assert (p - q).abs().max() <= 1e-6
    losses = [torch.tensor(end["losses"]) for end in (ends[0], alone)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ranks", "settings"), [(4, '{"packing": 20}'), (2, '{"shard": true, "gradient_checkpointing": true}')]
)
def test_ranks_train_what_one_does(ranks: int, settings: str, alone: dict, tmp_path: Path) -> None:
    """A batch of 5 and a last one of 1 over 4 ranks: some have nothing to do; only rank 0 writes."""
    ends = finish(start(tmp_path, ranks, settings))
    assert_equal(ends, alone)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0"]
    assert (ends[0]["whole"] < alone["whole"]) == ("shard" in settings)


def test_a_killed_rank_ends_the_others_and_any_number_goes_on(alone: dict, tmp_path: Path) -> None:
    """Rank 1 of 2 dies at step 5: rank 0 fails within a minute; one process goes on from its last checkpoint."""
    survivor, dead = start(tmp_path, 2, kill_at=5)
    assert dead.wait(timeout=600) == -signal.SIGKILL
    errors = survivor.communicate(timeout=60)[1]
    assert survivor.returncode == 1 and "Error" in errors
    assert checkpoint_steps(tmp_path / "0" / "checkpoints")[-1] == 4
    assert_equal(finish(start(tmp_path, 1)), alone)


def test_one_rank_is_told_to_stop_and_all_do(alone: dict, tmp_path: Path) -> None:
    """SIGTERM comes to rank 1 alone, within step 5; both save what is done and end by it; four go on."""
    for process in start(tmp_path, 2, kill_at=-5):
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == -signal.SIGTERM, errors
    assert checkpoint_steps(tmp_path / "0" / "checkpoints")[-1] == 5
    assert_equal(finish(start(tmp_path, 4)), alone)


def test_torchrun_starts_it_unchanged(alone: dict, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    torchrun(script, tmp_path, '{"micro_batch_size": 1}', 0)
    assert_equal([torch.load(tmp_path / f"end-{rank}.pt") for rank in range(2)], alone)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 5))
def test_each_example_falls_to_one_rank(lengths: list[int], ranks: int) -> None:
    """And no rank has more than the mean and one example: whoever gets one has the fewest tokens then."""
    examples = [Example([0] * length, [1] * length, str(i)) for i, length in enumerate(lengths)]
    shares = deal(examples, ranks)
    assert len(shares) == ranks
    assert sorted(e.name for share in shares for e in share) == sorted(e.name for e in examples)
    assert max(sum(len(e.ids) for e in share) for share in shares) <= sum(lengths) / ranks + max(lengths)


# A step of three passes: each by another expert, one of them by the rank that runs two of them first, the fourth by none.
ROUTED = """
import sys
import torch
from torch import nn
from lora_lite import Example, TrainConfig, Trainer

class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.experts = nn.Embedding(8, 4), nn.ModuleList(nn.Linear(4, 8) for _ in range(4))
        self.norm = nn.BatchNorm1d(4, affine=False)
    def forward(self, ids):
        return self.experts[int(ids[0, 0])](self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2))

torch.manual_seed(0)
model = Routed().double()
before = [p.detach().clone() for p in model.experts[3].parameters()]
examples = [Example([expert, 4, 5, 6, 7][: 5 - expert], [0, 1, 1, 1, 1][: 5 - expert]) for expert in (0, 1, 2)]
config = TrainConfig(batch_size=3, micro_batch_size=1, weight_decay=0.1, warmup=0, progress=False)
trainer = Trainer(model, config)
trainer.fit(examples)
trainer.fit(examples)
assert all(torch.equal(p, q) for p, q in zip(before, model.experts[3].parameters()))
print(f"{model.norm.running_mean.tolist()}\\n", end="", flush=True)
if trainer.ranks.rank == 0:
    torch.save([p.detach() for p in model.parameters()], sys.argv[1])
"""


def test_gradients_of_what_few_passes_reach(tmp_path: Path) -> None:
    """As of one process; what no pass reaches is not even decayed. The averages of batch norms are the same on all ranks.

    Float64 sums in another order: apart by some 2^-52 of their terms, which Adam's ratio of a gradient to its size keeps.
    """
    script, alone, both = tmp_path / "routed.py", tmp_path / "alone.pt", tmp_path / "both.pt"
    script.write_text(ROUTED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, alone], env=environment, timeout=600, check=True)
    one, other = torchrun(script, both).stdout.splitlines()
    assert one == other
    for p, q in zip(torch.load(alone), torch.load(both), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


# A base of 200 MB in 24 blocks; prints by how much the most memory that the process has held grows by training.
SPREAD = """
import torch
from llama_min import Llama, LlamaConfig
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora
from lora_lite.watch import peak_memory

model = Llama(LlamaConfig(vocab_size=500, hidden_size=512, intermediate_size=896, num_hidden_layers=24,
                          num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=64))
add_lora(model, LoRAConfig(rank=2))
before = peak_memory(torch.device("cpu"))
trainer = Trainer(model, TrainConfig(shard=True, batch_size=2, epochs=2, progress=False))
trainer.fit([Example([1, 2, 3, 4], [0, 1, 1, 1])] * 4)
grown = (peak_memory(torch.device("cpu")) - before) / sum(p.numel() * p.element_size() for p in model.parameters())
print(f"{grown}\\n", end="", flush=True)  # in one piece: the other process prints, too
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory as they like")
def test_a_spread_base_is_never_whole_again(tmp_path: Path) -> None:
    """Each of two processes gathers a block at a time: beyond what loading took there is less than half of the base."""
    (tmp_path / "spread.py").write_text(SPREAD)
    done = torchrun(tmp_path / "spread.py")
    grown = [float(text) for text in done.stdout.split()]
    assert len(grown) == 2 and max(grown) < 0.5, grown


def test_a_base_of_buffers_is_said_to_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so one of parameters, of which buffers are but the frequencies of rotations."""
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, **_: module)
    for quantized in (True, False):
        model = load_llama(TINY)
        if quantized:
            quantize_(model)
        add_lora(model, LoRAConfig())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shard_base(model, [], torch.device("cpu"))
        assert [("MB of buffers" in str(one.message)) for one in caught] == [True] * quantized


@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_the_command_where_a_rank_gets_nothing(more: tuple[str, ...], tmp_path: Path) -> None:
    """One example a step for two processes; the plan is told once."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "one two"}\n{"text": "three"}\n')
    words = ("--model", TINY, "--data", data, "--out", tmp_path / "out", "--batch-size", 1)
    done = torchrun("-m", "lora_lite", "train", *words, *more)
    assert done.stderr.count("2 steps: 1 epochs, 1 examples a step, 2 processes") == 1
    assert "Warning" not in done.stderr, done.stderr
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
