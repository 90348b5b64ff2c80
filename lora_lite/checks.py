"""What makes a LoRA layer one, as checks of anybody's implementation: of a student's, and of this package's own.

    from lora_lite import checks
    checks.check_all(MyLoRALinear, my_merge)        # or one by one: checks.check_scale(MyLoRALinear)

`make(base, rank, alpha, dropout)` wraps an `nn.Linear` (N, K) in a layer that has `lora_A` (R, K) and `lora_B` (N, R),
each a parameter or a module with a `weight` of that shape. `merge(layer)` gives an `nn.Linear` that computes the same.
Each check raises `AssertionError` with a message that says what is wrong and why it matters.

Shapes: B batch, K in features, N out features, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "check_all",
    "check_base_unchanged",
    "check_dropout",
    "check_dtypes",
    "check_forward",
    "check_gradients",
    "check_merge",
    "check_parameter_count",
    "check_rank",
    "check_scale",
    "check_shapes",
    "check_start",
    "check_state",
]

Make = Callable[[nn.Linear, int, float, float], nn.Module]
Merge = Callable[[nn.Module], nn.Linear]

N, K, R, ALPHA = 24, 40, 4, 12.0  # all different, so that no two can be taken for each other; alpha / R = 3


def check_all(make: Make, merge: Merge) -> None:
    """All checks, the simplest first: what fails first is what to mend first."""
    for check in (
        check_shapes,
        check_parameter_count,
        check_start,
        check_scale,
        check_forward,
        check_rank,
        check_gradients,
        check_dropout,
        check_base_unchanged,
        check_dtypes,
        check_state,
    ):
        check(make)
    check_merge(make, merge)


def check_shapes(make: Make) -> None:
    """A is (R, K) and B is (N, R): A reads the input, B writes the output."""
    layer = _layer(make)
    shapes = tuple(_matrix(layer, "lora_A").shape), tuple(_matrix(layer, "lora_B").shape)
    assert shapes != ((N, R), (R, K)), "lora_A and lora_B are swapped: A (rank, in) reads x, B (out, rank) writes y"
    assert shapes == ((R, K), (N, R)), (
        f"for a layer of {K} inputs, {N} outputs and rank {R}, lora_A must be {(R, K)} and lora_B {(N, R)}, got "
        f"{shapes[0]} and {shapes[1]}"
    )


def check_parameter_count(make: Make) -> None:
    """R (K + N) parameters are trained where the layer has K N: that is the point of a low rank."""
    for rank in (1, R):
        layer = make(nn.Linear(K, N), rank, ALPHA, 0.0)
        for mode in (False, True):
            layer.train(mode)
            count = sum(p.numel() for p in layer.parameters() if p.requires_grad)
            assert count == rank * (K + N), (
                f"{count} parameters are trained, rank (in + out) = {rank} * ({K} + {N}) = {rank * (K + N)} should be: "
                "freeze the base's weight and bias, and train A and B alone"
            )
    one, other = _layer(make), _layer(make)
    shared = {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
    assert not shared, "two layers share parameters: each must draw its own A and B"


def check_start(make: Make) -> None:
    """A new layer computes what its base computes, bit for bit, and can leave that place: B = 0, but A is not."""
    layer, x = _layer(make), _random(5, K)
    A, B = _matrix(layer, "lora_A").detach().double(), _matrix(layer, "lora_B")
    assert not B.any(), "lora_B must start at zero, so that training starts from the model that was trained before"
    assert A.any(), "lora_A and lora_B both start at zero: then both gradients are zero for ever, draw A at random"
    found = int(torch.linalg.matrix_rank(A, rtol=1e-6))
    assert found == R, f"lora_A starts with rank {found} of {R}: its rows must differ, or they learn the same for ever"
    assert torch.equal(layer(x), _base()(x)), "before training, the layer must give what its base gives, bit for bit"


def check_scale(make: Make) -> None:
    """The update is multiplied by alpha / rank, so that another rank needs no other learning rate."""
    for rank, alpha in ((R, ALPHA), (2, 1.0)):
        layer, x = _filled(make(_base(), rank, alpha, 0.0)), _random(5, K)
        unscaled = (x @ _matrix(layer, "lora_A").T @ _matrix(layer, "lora_B").T).detach()
        change = (layer(x) - _base()(x)).detach()
        scale = float((change * unscaled).sum() / unscaled.pow(2).sum())  # of least squares
        for wrong, why in (
            (1.0, "alpha is forgotten"),
            (rank / alpha, "alpha / rank is upside down"),
            (alpha, "it is not divided by rank"),
            (1 / rank, "alpha is forgotten"),
            (alpha / rank**2, "it is divided by rank twice"),
            ((alpha / rank) ** 2, "it is multiplied by alpha / rank twice"),
            (0.0, "the update is not added to the output"),
        ):
            said = f"the update is multiplied by {scale:.4g}, alpha / rank = {alpha:g} / {rank} should be: {why}"
            assert abs(scale - wrong) > 1e-3 * (1 + abs(wrong)) or abs(wrong - alpha / rank) < 1e-6, said
        assert abs(scale - alpha / rank) < 1e-3 * alpha / rank, (
            f"the update is multiplied by {scale:.4g}, alpha / rank = {alpha:g} / {rank} = {alpha / rank:.4g} should be"
        )


def check_forward(make: Make) -> None:
    """y = W x + b + (alpha / R) B A x, for any leading dimensions of x."""
    for bias in (True, False):
        layer = _filled(make(_base(bias), R, ALPHA, 0.0))
        for shape in ((K,), (5, K), (2, 3, K)):
            x = _random(*shape)
            y, expected = layer(x), _expected(layer, _base(bias), x)
            assert y.shape == expected.shape, f"x {tuple(x.shape)} gives y {tuple(y.shape)}, not {(*shape[:-1], N)}"
            if bias and _close(y, expected - _base().bias.double(), layer, x):
                raise AssertionError("the base's bias is dropped: call the base layer, do not rebuild its product")
            assert _close(y, expected, layer, x), (
                f"y differs from W x + b + (alpha / rank) B A x by up to {float((y - expected).abs().max()):.3g}"
            )


def check_rank(make: Make) -> None:
    """The change of the weight has rank R, no more (it would not be low-rank) and no less (a part would be wasted)."""
    layer = _filled(_layer(make))
    with torch.no_grad():
        change = (layer(torch.eye(K)) - _base()(torch.eye(K))).T.double()  # (N, K)
    # rounding leaves singular values of about 2^-24 of the largest entry of W x; those of the update are near 1
    found = int((torch.linalg.svdvals(change) > 1e-3).sum())
    assert found == R, f"the change of the weight has rank {found}, asked for is {R}"


def check_gradients(make: Make) -> None:
    """A and B get their gradients, and x does, for the layers below; the base gets none."""
    layer = _filled(_layer(make))
    x = _random(5, K).requires_grad_()
    layer(x).pow(2).sum().backward()
    twins = {name: _matrix(layer, name).detach().double().requires_grad_() for name in ("lora_A", "lora_B")}
    base, far = _base().double(), x.detach().double().requires_grad_()
    y = base(far) + ALPHA / R * far @ twins["lora_A"].T @ twins["lora_B"].T
    expected = dict(zip((*twins, "x"), torch.autograd.grad(y.pow(2).sum(), (*twins.values(), far))))
    for name in twins:
        gradient = _matrix(layer, name).grad
        assert gradient is not None and gradient.any(), f"{name} gets no gradient: it must be an nn.Parameter in use"
        # float32 sums of at most K products: a part in a thousand leaves room for every order of them
        assert torch.allclose(
            gradient.double(), expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max())
        ), f"the gradient of {name} is not that of W x + b + (alpha / rank) B A x"
    own = {id(_matrix(layer, name)) for name in twins}
    others = [name for name, p in layer.named_parameters() if id(p) not in own and p.grad is not None]
    assert not others, f"{', '.join(others)} got a gradient: freeze the base with requires_grad_(False)"
    assert x.grad is not None and torch.allclose(x.grad.double(), expected["x"], rtol=1e-3, atol=1e-3), (
        "the gradient of x is not that of W x + b + (alpha / rank) B A x: layers below would learn something else"
    )


def check_dropout(make: Make) -> None:
    """Dropout falls on what A reads, in training only, and never on the base; what it keeps is divided by 1 - p."""
    layer, x = make(_base(), R, ALPHA, 0.5), _random(5, K)
    torch.manual_seed(0)
    assert torch.equal(layer.train()(x), _base()(x)), (
        "with B = 0 dropout must change nothing in training: it may fall neither on what the base reads nor on the sum"
    )
    _filled(layer).eval()
    assert torch.equal(layer(x), layer(x)) and _close(layer(x), _expected(layer, _base(), x), layer, x), (
        "dropout is on in eval(): use nn.Dropout or F.dropout(..., training=self.training)"
    )
    # An x with a single number in it: A's input is that number, times 1 / (1 - p), or nothing at all.
    one, draws = torch.zeros(1, K), 400
    one[0, 3] = 1.0
    for p in (0.5, 0.2):
        layer = _filled(make(_base(), R, ALPHA, p)).eval()
        base = _base()(one)
        full = (layer(one) - base).detach() / (1 - p)
        layer.train()
        changes = [(layer(one) - base).detach() for _ in range(draws)]
        size = float(full.abs().max())
        kept = [change for change in changes if float(change.abs().max()) > 1e-3 * size]
        whole = all(torch.allclose(change / change.abs().max(), full / full.abs().max(), atol=1e-3) for change in kept)
        assert whole, "dropout falls on what A or B gives: it must fall on the input of A"
        assert len(kept) < draws, f"in training, dropout={p} changes nothing"
        assert all(torch.allclose(change, full, atol=1e-3 * size) for change in kept), (
            f"what dropout={p} keeps must be divided by 1 - p = {1 - p:g}, so that its mean stays"
        )
        # of 400 draws, 6 standard deviations are below 60
        assert abs(len(kept) - draws * (1 - p)) < 60, (
            f"dropout={p} kept {len(kept)} of {draws}, not {draws * (1 - p):.0f}"
        )


def check_base_unchanged(make: Make) -> None:
    """train(), eval(), forward and backward leave the base's weight as it is: merging is its own, explicit step."""
    base = _base()
    layer, x = _filled(make(base, R, ALPHA, 0.0)), _random(5, K)
    before = base.weight.detach().clone()
    for use in (layer.eval, lambda: layer(x), layer.train, lambda: layer(x).sum().backward(), layer.eval):
        use()
        assert torch.equal(base.weight, before), (
            "the base's weight changed without a merge (in eval() or forward): two calls would change it twice"
        )


def check_dtypes(make: Make) -> None:
    """Over a bfloat16 base, A and B stay float32 (small steps are lost in bfloat16) and y is bfloat16."""
    layer = _filled(make(_base().to(torch.bfloat16), R, ALPHA, 0.0))
    for name in ("lora_A", "lora_B"):
        dtype = _matrix(layer, name).dtype
        assert dtype == torch.float32, f"{name} is {dtype} over a bfloat16 base: keep it float32"
    try:
        y = layer(_random(5, K).to(torch.bfloat16))
    except RuntimeError as error:
        raise AssertionError(f"a bfloat16 x fails ({error}): cast x to A's dtype, and the update to y's") from None
    assert y.dtype == torch.bfloat16, f"y is {y.dtype} over a bfloat16 base: cast the update to the base's output"


def check_state(make: Make) -> None:
    """state_dict() holds all there is: loaded into a new layer it gives the same output, bit for bit."""
    layer, x = _filled(_layer(make)), _random(5, K)
    torch.manual_seed(1)
    other = make(nn.Linear(K, N), R, ALPHA, 0.0)
    other.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)
    assert torch.equal(other(x), layer(x)), (
        "a layer loaded from state_dict() gives another output: something is not in it"
    )


def check_merge(make: Make, merge: Merge) -> None:
    """The merged layer is a plain `nn.Linear` of weight W + (alpha / R) B A and the base's bias."""
    for bias in (True, False):
        layer, x = _filled(make(_base(bias), R, ALPHA, 0.0)), _random(5, K)
        A, B = (_matrix(layer, name).detach().double() for name in ("lora_A", "lora_B"))
        change, plain = ALPHA / R * B @ A, _base(bias).weight.detach().double()
        expected = _expected(layer, _base(bias), x).detach()
        merged = merge(layer)
        assert type(merged) is nn.Linear, f"merging gives a {type(merged).__name__}: a plain nn.Linear should be left"
        weight = merged.weight.detach().double()
        assert weight.shape == plain.shape, (
            f"the merged weight is {tuple(weight.shape)}, the base's {tuple(plain.shape)}"
        )
        for times, why in ((0, "nothing is merged"), (2, "the update is merged twice"), (-1, "it is subtracted")):
            assert not torch.allclose(weight, plain + times * change, atol=1e-5), (
                f"{why}: the weight must be W + (alpha / rank) B A"
            )
        assert torch.allclose(weight, plain + change, atol=1e-5), (
            f"the merged weight differs from W + (alpha / rank) B A by up to {float((weight - plain - change).abs().max()):.3g}"
        )
        assert (merged.bias is not None) == bias, "the merged layer's bias is not the base's"
        assert torch.allclose(merged(x).double(), expected, atol=1e-4), (
            "the merged layer gives another output: is its bias the base's?"
        )


def _base(bias: bool = True) -> nn.Linear:
    """The same layer every time."""
    base = nn.Linear(K, N, bias=bias)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(generator=generator)
    return base


def _layer(make: Make) -> nn.Module:
    return make(_base(), R, ALPHA, 0.0)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _matrix(layer: nn.Module, name: str) -> Tensor:
    """A or B, whether it is a parameter or a module that holds it."""
    found = getattr(layer, name, None)
    if isinstance(found, nn.Module):
        found = found.weight
    assert isinstance(found, Tensor), f"the layer has no {name}: name its two matrices lora_A and lora_B"
    return found


def _filled(layer: nn.Module) -> nn.Module:
    """The layer with A and B drawn anew, so that both matter; as large as the entries of W x."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            _matrix(layer, name).normal_(generator=generator)
    return layer


def _expected(layer: nn.Module, base: nn.Linear, x: Tensor) -> Tensor:
    """W x + b + (alpha / R) B A x in float64."""
    A, B = _matrix(layer, "lora_A").detach().double(), _matrix(layer, "lora_B").detach().double()
    y = x.double() @ (base.weight.detach().double() + ALPHA / R * B @ A).T
    return y if base.bias is None else y + base.bias.detach().double()


def _close(y: Tensor, expected: Tensor, layer: nn.Module, x: Tensor) -> bool:
    """Within what float32 explains: each of the three sums of n products is off by at most n u sum |products|.

    With u = 2^-24 and sums of K or R terms (Higham 2002, section 3.1): (K + R + 4) u (|W| |x| + |b| + s |B| |A| |x|).
    """
    A, B = _matrix(layer, "lora_A").detach().double().abs(), _matrix(layer, "lora_B").detach().double().abs()
    size = x.detach().double().abs() @ (_base().weight.detach().double().abs() + ALPHA / R * B @ A).T
    size = size + _base().bias.detach().double().abs()
    return bool(((y.detach().double() - expected.detach()).abs() <= (K + R + 4) * 2**-24 * size).all())
