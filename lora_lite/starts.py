"""Where A and B start from: the weight itself (PiSSA, OLoRA) or the error that quantization made in it (LQER, LoftQ).

Shapes: K in features, N out features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["loftq", "low_rank_correction", "olora", "pissa"]


def pissa(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """The principal part of the weight: scale B A is its best approximation of rank R (Meng et al. 2024, equation 2).

    W = U S V^T;  A = sqrt(S_R / scale) V_R^T,  B = U_R sqrt(S_R / scale)

    Args:
        weight: (N, K).

    Returns:
        A (R, K) and B (N, R), float32.
    """
    _check_rank(weight, rank)
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (S[:rank] / scale).sqrt()  # (R,)
    return root[:, None] * Vh[:rank], U[:, :rank] * root


def olora(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """An orthonormal start: W = Q R, B the first columns of Q and A the first rows of R (Buyukakyuz 2024, section 3).

    Arguments and result as of `pissa`; scale does not enter.
    """
    _check_rank(weight, rank)
    Q, R = torch.linalg.qr(weight.float())
    return R[:rank], Q[:, :rank]


def low_rank_correction(
    weight: Tensor, quantized: Tensor, rank: int, magnitudes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A and B with B A nearest to the error W - Q of a quantized weight (LQER: Zhang et al. 2024, equation 6).

    With the activations' magnitudes a (K,), S = diag(a / sqrt(min a * max a)) weighs the columns (L2QER, equation 9):

        (W - Q) S = U Sigma V^T;  B = U_R Sigma_R,  A = V_R^T S^-1

    By Eckart and Young this is the best R-rank choice, so norm((W - Q - B A) S) <= norm((W - Q) S), of Frobenius.

    Args:
        weight, quantized: (N, K), the second as it dequantizes.
        rank: R; where it is above min(N, K) the other rows of A are zero.
        magnitudes: mean absolute value of each input over calibration text, (K,); taken as at least 1e-4.

    Returns:
        A (R, K) and B (N, R), float32, for a scale of 1.
    """
    if weight.shape != quantized.shape or weight.dim() != 2:
        raise ValueError(
            f"weight {tuple(weight.shape)} and quantized {tuple(quantized.shape)} must be two equal (N, K)"
        )
    error = weight.double() - quantized.double()
    S = torch.ones(weight.shape[1], dtype=torch.float64, device=weight.device)
    if magnitudes is not None:
        if magnitudes.shape != S.shape or not magnitudes.isfinite().all():
            raise ValueError(f"magnitudes {tuple(magnitudes.shape)} must be {weight.shape[1]} finite numbers")
        a = magnitudes.double().clamp(min=1e-4)
        S = a / (a.min() * a.max()).sqrt()
    U, sigma, Vh = torch.linalg.svd(error * S, full_matrices=False)
    found = min(rank, len(sigma))
    A = torch.zeros(rank, weight.shape[1], device=weight.device)
    B = torch.zeros(weight.shape[0], rank, device=weight.device)
    A[:found], B[:, :found] = Vh[:found] / S, U[:, :found] * sigma[:found]
    return A, B


def loftq(
    weight: Tensor, quantize: Callable[[Tensor], Tensor], rank: int, steps: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize what the low-rank part leaves, and fit the low-rank part to what that leaves (Li et al. 2023, algorithm 1).

    Q_t = quantize(W - B A_(t-1));  B A_t = best rank R of W - Q_t.  The steps need not improve; the best one is kept, so
    that norm(W - Q - B A) is never above norm(W - quantize(W)).

    Args:
        weight: (N, K).
        quantize: gives a weight as its quantized form dequantizes.

    Returns:
        Q (N, K), A (R, K) and B (N, R), for a scale of 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least = torch.inf
    low_rank = torch.zeros_like(weight, dtype=torch.float32)
    for _ in range(steps):
        Q = quantize((weight.float() - low_rank).to(weight.dtype))
        A, B = low_rank_correction(weight, Q, rank)
        low_rank = B @ A
        error = float((weight.float() - Q.float() - low_rank).norm())
        if best is None or error < least:
            best, least = (Q, A, B), error
    assert best is not None
    return best


def _check_rank(weight: Tensor, rank: int) -> None:
    if rank > min(weight.shape):
        raise ValueError(f"rank={rank} is above {min(weight.shape)}, the rank of a weight {tuple(weight.shape)}")
