"""The exact loss, the schedule, determinism, and the best adapter kept."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llama_min import Llama
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora, lora_parameters
from lora_lite.trainer import learning_rate, token_losses
from tests.llama_min.test_model import SMALL

EXAMPLES = [
    Example([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
    Example([9, 8, 7], [0, 0, 1]),
    Example(list(range(20)), [0] * 4 + [1] * 16),
    Example([5, 4, 3, 2, 1, 0, 9], [0, 1, 0, 1, 0, 1, 1]),
    Example([1, 2, 3, 9], [1, 0, 0, 1]),
]


def model() -> Llama:
    torch.manual_seed(0)
    net = Llama(SMALL)
    add_lora(net, LoRAConfig(rank=4))
    with torch.no_grad():
        for parameter in lora_parameters(net):
            parameter.normal_(std=0.1)
    return net


def trainer(net: nn.Module, **settings) -> Trainer:
    return Trainer(net, TrainConfig(progress=False, **settings))


def test_loss_by_hand() -> None:
    """Two supervised tokens of probability 1/2 and 1/4: ln 2 + ln 4; the prompt and the padding do not count."""
    p = torch.tensor([[0.5, 0.5, 1e-9, 1e-9], [0.25, 0.25, 0.25, 0.25], [1e-9, 1e-9, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]])
    ids, mask = torch.tensor([[3, 0, 3, 0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss = token_losses(p.log()[None], ids, mask)
    assert loss.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-6)


def test_step_loss_is_the_sum_over_the_number_of_tokens() -> None:
    """Against each example run alone, unpadded, through F.cross_entropy's own ignore_index."""
    net, total, count = model(), 0.0, 0
    for example in EXAMPLES:
        ids = torch.tensor([list(example.ids)])
        labels = torch.where(torch.tensor([list(example.mask)]) == 1, ids, -100)[0, 1:]
        total += F.cross_entropy(net(ids)[0, :-1], labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    assert count == sum(example.supervised for example in EXAMPLES) == 3 + 1 + 16 + 4 + 1
    assert trainer(net)._accumulate(EXAMPLES) == pytest.approx(total / count, rel=1e-6)
    assert trainer(net).evaluate(EXAMPLES) == pytest.approx(total / count, rel=1e-6)


@given(st.integers(1, 5))
def test_micro_batches_change_nothing(size: int) -> None:
    """Gradients agree to the rounding of a sum of at most 25 float32 terms, relative to the largest gradient."""
    nets = [model(), model()]
    losses = [trainer(net, micro_batch_size=s)._accumulate(EXAMPLES) for net, s in zip(nets, (5, size))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for p, q in zip(*map(lora_parameters, nets)):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * p.grad.abs().max()


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
    batches = trainer(model(), epochs=3, batch_size=4)._batches(10)
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
    assert run.evaluate(held_out) == pytest.approx(min(scores), rel=1e-6)


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


def test_models_that_return_an_object_with_logits() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor):
            return type("Output", (), {"logits": self.inner(ids)})()

    assert trainer(Wrapped(model())).evaluate(EXAMPLES) == trainer(model()).evaluate(EXAMPLES)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be trained"):
        Trainer(Llama(SMALL).requires_grad_(False))
    with pytest.raises(ValueError, match="example 1 of train_set has no supervised token"):
        trainer(model()).fit([EXAMPLES[0], Example([1, 2], [1, 0])])
    with pytest.raises(ValueError, match="train_set is empty"):
        trainer(model()).fit([])
    with pytest.raises(ValueError, match="2 ids and 1 mask"):
        Example([1, 2], [1])
    for settings in ({"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.5}, {"batch_size": 2.5}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            TrainConfig(**settings)


def test_a_loss_that_is_not_finite_stops() -> None:
    net = model()
    with torch.no_grad():
        net.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="step 0: loss"):
        trainer(net).fit(EXAMPLES)
