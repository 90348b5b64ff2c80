"""The exact loss, the schedule, determinism, and the best adapter kept."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llama_min import Llama
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora, lora_disabled, lora_parameters, plan
from lora_lite.plan import _bytes_a_token, _logit_bytes
from lora_lite.runs import return_freed_memory
from lora_lite.trainer import cross_entropy, learning_rate, pack
from tests.llama_min.test_model import SMALL

EXAMPLES = [
    Example([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
    Example([9, 8, 7], [0, 0, 1]),
    Example(list(range(20)), [0] * 4 + [1] * 16),
    Example([5, 4, 3, 2, 1, 0, 9], [0, 1, 0, 1, 0, 1, 1]),
    Example([1, 2, 3, 9], [1, 0, 0, 1]),
]


def model(rank: int = 4, **of_adapters: float) -> Llama:
    torch.manual_seed(0)
    net = Llama(SMALL)
    add_lora(net, LoRAConfig(rank, **of_adapters))
    with torch.no_grad():
        for parameter in lora_parameters(net):
            parameter.normal_(std=0.1)
    return net


class Wrapped(nn.Module):
    """Any callable: an object with `.logits`, and no word of its head."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.inner(ids)})()


def trainer(net: nn.Module, out: Path | None = None, **settings) -> Trainer:
    return Trainer(net, TrainConfig(progress=False, **settings), out)


def test_loss_by_hand() -> None:
    """Two targets of probability 1/2 and 1/4, one of them the likeliest: ln 2 + ln 4; the gradient is p - y."""
    p = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.25, 0.1, 0.1, 0.55]])
    logits = p.log().requires_grad_()
    loss, hits = cross_entropy(logits, torch.tensor([0, 0]), nn.Identity())
    assert loss.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-6) and hits.item() == 1
    (2 * loss).backward()
    expected = 2 * (p - torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_loss_in_chunks_is_pytorchs(rows: int, chunk: int, frozen: bool) -> None:
    """Against F.cross_entropy in float64, with a head that has a bias; chunks of one row up to all of them.

    A sum of `rows` losses in float32 is off by at most rows * 2^-24 of itself; logits of 8 products by some 2^-20.
    """
    torch.manual_seed(rows)
    seen: list[int] = []
    hidden, y = torch.randn(rows, 8), torch.randint(0, 11, (rows,))
    head = nn.Linear(8, 11).requires_grad_(not frozen)
    head.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    twin = nn.Linear(8, 11).double()
    twin.load_state_dict(head.state_dict())
    twin.requires_grad_(not frozen)
    ours, theirs = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_lite.trainer.LOGITS", chunk * 11)
        loss, hits = cross_entropy(ours, y, head)
    assert max(seen) <= chunk and sum(seen) == rows, "the logits of more rows at once, or of some twice"
    expected = F.cross_entropy(twin(theirs), y, reduction="sum")
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hits.item() == int((twin(theirs).argmax(-1) == y).sum())
    for p, q in ((ours, theirs), (head.weight, twin.weight), (head.bias, twin.bias)):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 1e-5 * rows


def test_step_loss_is_the_sum_over_the_number_of_tokens() -> None:
    """Against each example run alone, unpadded, through F.cross_entropy's own ignore_index."""
    net, total, count, hits = model(), 0.0, 0, 0
    for example in EXAMPLES:
        ids = torch.tensor([list(example.ids)])
        labels = torch.where(torch.tensor([list(example.mask)]) == 1, ids, -100)[0, 1:]
        logits = net(ids)[0, :-1]
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
        hits += int((logits.argmax(-1) == labels).sum())
    assert count == sum(example.supervised for example in EXAMPLES) == 3 + 1 + 16 + 4 + 1
    for settings in ({}, {"packing": 24}):
        assert trainer(net, **settings)._accumulate(EXAMPLES) == pytest.approx(total / count, rel=1e-6)
        found = trainer(net, **settings).evaluate(EXAMPLES)
        assert found.loss == pytest.approx(total / count, rel=1e-6)
        assert (found.accuracy, found.tokens) == (hits / count, count)
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


@given(st.integers(1, 5), st.sampled_from([None, 2, 21, 64]), st.booleans())
def test_how_a_step_is_run_changes_nothing(size: int, packing: int | None, checkpointing: bool) -> None:
    """Micro-batches, packed rows, blocks run again: each gradient agrees to the rounding of its sum.

    It sums over at most 39 tokens products of at most 64 float32 terms: off by at most (39 + 64) * 2^-24 = 6e-6 of the
    terms' absolute sum, which is some times the largest gradient.
    """
    nets = [model(), model()]
    settings = {"micro_batch_size": size, "packing": packing, "gradient_checkpointing": checkpointing}
    losses = [trainer(net, **s)._accumulate(EXAMPLES) for net, s in zip(nets, ({"micro_batch_size": 5}, settings))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for p, q in zip(*map(lora_parameters, nets)):
        assert (p.grad - q.grad).abs().max() <= 2e-5 * p.grad.abs().max()


def test_checkpointing_gives_the_same_bits() -> None:
    """Dropout draws the same numbers when a block is run again; so a whole run ends with the same adapter."""
    ends = []
    for on in (False, True):
        torch.manual_seed(0)
        net = Llama(SMALL)
        add_lora(net, LoRAConfig(rank=4, dropout=0.3))
        runs = 0

        def count(*_: object) -> None:
            nonlocal runs
            runs += 1

        net.model.layers[0].mlp.register_forward_pre_hook(count)
        run = trainer(net, epochs=2, batch_size=5, gradient_checkpointing=on)
        before = runs
        run.fit(EXAMPLES[2:3] * 5)  # of one length: nothing is padded, and whether padding shows is not tried
        assert runs - before == (4 if on else 2)
        assert "forward" not in vars(net.model.layers[0])
        ends.append([p.detach().clone() for p in lora_parameters(net)])
    assert all(torch.equal(p, q) for p, q in zip(*ends))


def test_logits_are_made_at_supervised_positions_alone() -> None:
    """The head sees no more rows than there are supervised tokens, and the model's own call of it none."""
    net, seen = model(), []
    run = trainer(net)
    net.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[:-1].numel()))
    run._accumulate(EXAMPLES)
    assert sorted(seen) == [0, 0, 25]


def test_nothing_is_computed_below_the_first_adapter() -> None:
    """With adapters in the last block only, what goes into that block needs no gradient and has no graph behind it."""
    torch.manual_seed(0)
    net, inputs = Llama(SMALL), []
    last = SMALL.num_hidden_layers - 1
    add_lora(net, LoRAConfig(rank=2, layers=(last,)))
    net.model.layers[last].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    trainer(net)._accumulate(EXAMPLES)
    assert all(x.grad_fn is None and not x.requires_grad for x in inputs) and inputs
    assert all(p.grad is not None for n, p in net.named_parameters() if n.endswith("lora_B"))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(2, 40))
def test_packing_loses_nothing_and_is_tight(lengths: list[int], row: int) -> None:
    examples = [Example([0] * length, [1] * length, str(i)) for i, length in enumerate(lengths)]
    rows = pack(examples, row)
    assert sorted(e.name for r in rows for e in r) == sorted(e.name for e in examples)
    filled = [sum(len(e.ids) for e in r) for r in rows]
    assert all(full <= row or len(r) == 1 for full, r in zip(filled, rows))
    assert sum(full <= row / 2 for full in filled) <= 1, "two rows would have fitted in one"


def test_best_fit_by_hand() -> None:
    """Into rows of 10: 7, then 6; 4 goes beside 6 (full), 3 beside 7 (full), 2 opens a row."""
    rows = pack([Example([0] * n, [1] * n) for n in (2, 3, 4, 6, 7)], 10)
    assert [[len(example.ids) for example in row] for row in rows] == [[7, 3], [6, 4], [2]]


def test_a_model_whose_attention_crosses_examples_is_refused() -> None:
    class Deaf(nn.Module):
        """Takes position_ids and does not heed them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
            return self.inner(ids)

    with pytest.raises(ValueError, match="attention of Deaf crosses the examples"):
        trainer(Deaf(), packing=32).fit(EXAMPLES)
    with pytest.raises(ValueError, match="takes no position_ids"):
        trainer(Wrapped(model()), packing=32).fit(EXAMPLES)


def test_what_is_cut_off_is_counted() -> None:
    """To 5 tokens: 15 tokens of the third (all supervised) and 2 of the fourth (both supervised)."""
    with pytest.warns(UserWarning, match="2 of 5 examples of train_set were cut to 5 tokens: 17 tokens lost, 17 of"):
        (step,) = trainer(model(), batch_size=5, max_length=5).fit(EXAMPLES)
    assert (step.tokens, step.supervised) == (5 + 3 + 5 + 5 + 4, 3 + 1 + 1 + 2 + 1)
    with pytest.raises(ValueError, match="example 2 of train_set has no supervised token left within max_length=4"):
        trainer(model(), max_length=4).fit(EXAMPLES)
    long = Example([1] * 2000, [1] * 2000, "notes.jsonl:7")
    with pytest.raises(ValueError, match="notes.jsonl:7 has 2000 tokens, the model's context"):
        trainer(model()).fit([long])


def test_the_prompt_is_masked() -> None:
    """Gradients do not depend on what stands at masked positions as labels: only on it as input, which is equal."""
    net = model()
    trainer(net)._accumulate([Example([1, 2, 3, 4], [0, 0, 0, 1])])
    gradients = [p.grad.clone() for p in lora_parameters(net)]
    ids = torch.tensor([[1, 2, 3, 4]])
    for p in lora_parameters(net):
        p.grad = None
    (-net(ids)[0, 2].log_softmax(-1)[4]).backward()
    for p, expected in zip(lora_parameters(net), gradients):
        torch.testing.assert_close(p.grad, expected, atol=1e-7, rtol=1e-5)


def test_schedule_by_hand() -> None:
    """10 steps, 2 of warm-up: 0.5, 1, then a cosine from 1 to the floor of 0.1."""
    config = TrainConfig(learning_rate=1.0, warmup=0.2, final_learning_rate=0.1)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 7))
    assert rates[5] == pytest.approx(middle)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(0, 1, TrainConfig(learning_rate=1.0, warmup=0.0)) == 1.0


def test_every_example_once_an_epoch_in_a_new_order() -> None:
    batches = trainer(model(), epochs=3, batch_size=4).order(10)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[*batches[i], *batches[i + 1], *batches[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_seed_gives_the_same_bits() -> None:
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        net = Llama(SMALL)
        add_lora(net, LoRAConfig(rank=2, dropout=0.3), generator=torch.Generator().manual_seed(0))
        torch.manual_seed(seed * 1000 + len(outcomes))  # the caller's random state must not matter
        state = torch.get_rng_state()
        trainer(net, epochs=2, batch_size=2, seed=seed).fit(EXAMPLES)
        assert torch.equal(torch.get_rng_state(), state)
        outcomes.append(torch.cat([p.detach().flatten() for p in lora_parameters(net)]))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_learns_and_keeps_the_best() -> None:
    """Trained far past overfitting on other text: the parameters at the end are those that scored best."""
    net = model()
    held_out = [Example([7, 7, 1, 2], [0, 1, 1, 1])]
    run = trainer(net, epochs=30, batch_size=5, learning_rate=2e-2, evaluations=10)
    history = run.fit(EXAMPLES, held_out)
    scores = [step.eval_loss for step in history if step.eval_loss is not None]
    assert history[-1].loss < 0.6 * history[0].loss
    assert scores[-1] > min(scores)
    assert run.evaluate(held_out).loss == pytest.approx(min(scores), rel=1e-6)


def test_lora_plus_moves_b_faster() -> None:
    """AdamW's first step is the rate times the sign of the gradient: B moves `lora_plus` times as far as A."""
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    trainer(net, batch_size=5, learning_rate=1e-3, warmup=0.0, lora_plus=16.0).fit(EXAMPLES)
    moved = {
        name: float((p - before[name]).detach().abs().max()) for name, p in net.named_parameters() if name in before
    }
    assert {round(far / 1e-3) for name, far in moved.items() if name.endswith("lora_A")} == {1}
    assert {round(far / 1e-3) for name, far in moved.items() if name.endswith("lora_B")} == {16}


def test_clipping_bounds_the_step() -> None:
    net = model()
    (step,) = trainer(net, batch_size=5, max_grad_norm=1e-3).fit(EXAMPLES)
    norm = torch.stack([p.grad.norm() for p in lora_parameters(net)]).norm().item()
    assert step.grad_norm > 1e-2 and norm == pytest.approx(1e-3, rel=1e-3)


def test_packing_is_refused_where_only_what_is_not_padding_sees_its_neighbours() -> None:
    """Each position times the sum of all before it: nothing of that shows in a text of token 0, whose embedding is 0."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(32, 8, padding_idx=0), nn.Linear(8, 32)

        def forward(self, ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
            x = self.table(ids)
            return self.head(x * x.cumsum(1))

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="attention of Gated crosses the examples of a packed row"):
        trainer(Gated(), packing=32).fit(EXAMPLES)


def test_padding_is_refused_where_a_model_looks_ahead() -> None:
    """Each position is the mean of all: with shorter examples beside longer ones it would see padding."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(32, 8, padding_idx=0), nn.Linear(8, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            return self.head(x + x.mean(1, keepdim=True))

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="Both looks ahead, .* set micro_batch_size=1"):
        trainer(Both(), batch_size=4).fit(EXAMPLES)
    together = trainer(Both(), batch_size=4).fit([EXAMPLES[0]] * 4)  # of one length: no padding
    assert len(together) == 1 and len(trainer(Both(), micro_batch_size=1).fit(EXAMPLES)) == 1


def test_models_whose_logits_are_taken_as_they_come() -> None:
    """Without `get_output_embeddings`, and with logits that are more than what the head gives."""
    net = model()
    expected = trainer(net)._accumulate(EXAMPLES)
    assert trainer(net).head is net.lm_head
    wrapped = trainer(Wrapped(model()))
    assert wrapped.head is None
    assert wrapped._accumulate(EXAMPLES) == pytest.approx(expected, rel=1e-6)

    class Capped(Llama):
        def forward(self, *arguments: Any, **named: Any) -> torch.Tensor:
            return torch.tanh(super().forward(*arguments, **named))

    torch.manual_seed(0)
    capped = Capped(SMALL)
    add_lora(capped)
    assert trainer(capped).head is None
    padded = Capped(SMALL)
    with torch.no_grad():
        padded.model.embed_tokens.weight[0] = 0  # as of padding: its logits are 0, and so is their tanh
    assert trainer(padded).head is None
    logits = capped(torch.tensor([EXAMPLES[1].ids]))
    loss = F.cross_entropy(logits[0, 1:2], torch.tensor([EXAMPLES[1].ids[2]]))
    assert trainer(capped).evaluate(EXAMPLES[1:2]).loss == pytest.approx(loss.item(), rel=1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be trained"):
        Trainer(Llama(SMALL).requires_grad_(False))
    with pytest.raises(ValueError, match="example 1 of train_set has no supervised token"):
        trainer(model()).fit([EXAMPLES[0], Example([1, 2], [1, 0])])
    with pytest.raises(ValueError, match="train_set is empty"):
        trainer(model()).fit([])
    with pytest.raises(ValueError, match="2 ids and 1 mask"):
        Example([1, 2], [1])
    for settings in ({"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.5}, {"batch_size": 2.5}, {"packing": 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            TrainConfig(**settings)
    half = Llama(SMALL).bfloat16()
    with pytest.raises(ValueError, match="model.embed_tokens.weight is trained in torch.bfloat16"):
        Trainer(half)


def test_a_loss_that_is_not_finite_stops() -> None:
    """The embedding of token 20 is infinite, which one example alone has."""
    net = model()
    with torch.no_grad():
        net.model.embed_tokens.weight[20] = float("inf")
    examples = [*EXAMPLES, Example([20, 1], [0, 1], "data.jsonl:6")]
    with pytest.raises(FloatingPointError, match="step 0: loss nan on data.jsonl:6: "):
        trainer(net, micro_batch_size=1).fit(examples)
    with pytest.raises(FloatingPointError, match="step 1: loss on eval_set nan on data.jsonl:6: "):
        trainer(net, micro_batch_size=1).fit(EXAMPLES, [EXAMPLES[0], examples[-1]])


def test_what_learns_nothing_is_named() -> None:
    """An adapted layer whose output is dropped; without it there is no warning."""
    net = model()
    net.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, inputs, output: output.detach())
    with pytest.warns(UserWarning, match=r"after 2 steps .*layers\.1\.self_attn\.v_proj\.default\.lora_A") as caught:
        trainer(net, batch_size=2).fit(EXAMPLES)
    (message,) = [str(w.message) for w in caught]
    assert "layers.0" not in message and "q_proj" not in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(model(), batch_size=2).fit(EXAMPLES)
    with pytest.raises(ValueError, match="depends on no trained parameter"), lora_disabled(net):
        trainer(net).fit(EXAMPLES)


def test_patience_stops_early_and_keeps_the_best() -> None:
    """Held out is the opposite of what is learnt: two evaluations without a new best, and it ends."""
    net = model()
    held_out = [Example(EXAMPLES[2].ids[::-1], [1] * 20)]
    history = trainer(net, epochs=40, batch_size=5, learning_rate=3e-2, evaluations=40, patience=2).fit(
        EXAMPLES, held_out
    )
    scores = [step.eval_loss for step in history]
    best = min(scores)
    assert len(history) < 40 and scores.index(best) == len(scores) - 3
    assert trainer(net).evaluate(held_out).loss == pytest.approx(best, rel=1e-6)


def test_autocast_computes_in_bfloat16_over_float32_parameters() -> None:
    """Off by roundings of 2^-9 in the products of two layers, and not by nothing; gradients stay float32."""
    net = model()
    exact, rounded = trainer(net).evaluate(EXAMPLES).loss, trainer(net, autocast=True).evaluate(EXAMPLES).loss
    assert 0 < abs(exact - rounded) < 20 * 2**-9 * exact
    trainer(net, autocast=True)._accumulate(EXAMPLES)
    assert {p.grad.dtype for p in lora_parameters(net)} == {torch.float32}


def test_the_plan_is_what_happens() -> None:
    """Steps, tokens, padding and the widest pass; and activations, from 20 tokens, as the graph of 60 keeps them, to a fifth."""
    net = model()
    with pytest.warns(UserWarning, match="1 of 5 examples of train_set were cut"):
        told = plan(trainer(net, epochs=3, batch_size=4, micro_batch_size=2, max_length=9), EXAMPLES, EXAMPLES[:2])
    assert "5 examples, 28 tokens, 14 supervised" in told and "2 held out" in told
    assert "6 steps: 3 epochs, 4 examples a step, 1 processes, up to 18 tokens a pass" in told
    assert "logits at supervised positions alone" in told
    run = trainer(net, packing=64)
    kept: dict[int, int] = {}
    row = [Example([1] * 60, [1] * 60)]
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t, lambda t: t
    )
    with hooks:
        loss = run.loss_sum(row)[0]
    frozen = {p.untyped_storage().data_ptr() for p in net.parameters()}
    real = sum(size for place, size in kept.items() if place not in frozen)
    assert loss.requires_grad and _bytes_a_token(run, EXAMPLES[2]) * 60 == pytest.approx(real, rel=0.2)


def test_the_plan_counts_the_logits() -> None:
    """A vocabulary of 50 and 2 bytes a number: chunks of float32 and two of 2 bytes; without a head four copies of all."""
    net = model()
    vocabulary = SMALL.vocab_size
    with_head, without = trainer(net, batch_size=5), trainer(Wrapped(net), batch_size=5)
    assert _logit_bytes(with_head, [(9, 9), (100, 30)]) == vocabulary * 30 * (4 + 2 * 4)
    assert _logit_bytes(with_head, [(10**6, 10**9)]) == vocabulary * (2**24 // vocabulary) * (4 + 2 * 4)
    assert _logit_bytes(without, [(9, 9), (100, 30)]) == vocabulary * (30 * (4 + 2 * 4) + 2 * (100 + 30) * 4)
    told = plan(with_head, EXAMPLES)
    assert f"logits {vocabulary * 29 * 12 / 1e6:,.1f}" in told and told.endswith("; and the interpreter")
    with pytest.raises(ValueError, match="takes no position_ids"):
        plan(trainer(Wrapped(net), packing=64), EXAMPLES)
    with pytest.raises(ValueError, match="train_set is empty"):
        plan(with_head, [])


def test_the_plan_takes_few_passes_and_changes_nothing() -> None:
    """However many steps there are; dropout draws nothing, and modes stay."""
    net, runs = model(dropout=0.5), []
    net.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    run = trainer(net, batch_size=1, epochs=50)
    before, state = len(runs), torch.get_rng_state()
    plan(run, EXAMPLES)
    assert len(runs) - before <= 4 and torch.equal(torch.get_rng_state(), state) and net.training


def test_metrics_and_the_curve(tmp_path: Path) -> None:
    """A line a step and one an evaluation; TensorBoard's files where it is installed."""
    history = trainer(model(), tmp_path, batch_size=2, evaluations=2).fit(EXAMPLES, EXAMPLES[:1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps, scores = ([line for line in lines if key in line] for key in ("loss", "eval_loss"))
    assert [line["loss"] for line in steps] == [step.loss for step in history]
    assert [line["step"] for line in scores] == [step.step for step in history if step.eval_loss is not None]
    assert [line["step"] for line in scores] == [1, 2]  # of steps 0, 1 and 2: twice, evenly spaced
    assert scores[-1]["eval_perplexity"] == pytest.approx(math.exp(scores[-1]["eval_loss"]))
    assert all(line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"]) for line in steps)
    assert steps[-1]["peak_memory"] > 50e6
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert (tmp_path / "tensorboard").is_dir() == (importlib.util.find_spec("tensorboard") is not None)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory and can be asked for it")
def test_freed_memory_goes_back() -> None:
    """Blocks too small for pages of their own, 200 MB of them, freed but for the last, which keeps the heap from shrinking."""
    blocks = [torch.ones(25_000) for _ in range(2000)]
    full = resident()
    blocks = blocks[-1:]
    kept = resident()
    return_freed_memory()
    assert full - resident() > 150e6 and len(blocks) == 1
    assert kept - resident() > 100e6  # glibc had kept most of it


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 5), (1e9, 0)])
def test_memory_goes_back_after_each_long_pass(monkeypatch: pytest.MonkeyPatch, seconds: float, times: int) -> None:
    called = []
    monkeypatch.setattr("lora_lite.trainer.LONG_PASS", seconds)
    monkeypatch.setattr("lora_lite.trainer.return_freed_memory", lambda: called.append(1))
    trainer(model(), batch_size=2, micro_batch_size=1).fit(EXAMPLES)
    assert len(called) == times  # one example a pass
