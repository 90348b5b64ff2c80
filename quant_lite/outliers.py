"""What to do about the few columns of an activation that are far larger than the others.

Shapes: ... any leading dimensions, K in features, N out features.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["outlier_columns", "smoothing_scales"]


def outlier_columns(x: Tensor, threshold: float = 6.0) -> Tensor:
    """The columns of x that are kept in float: those with some `|x|` of at least `threshold`.

    O = {k : max over rows of `|x_k|` >= threshold}, and y = x_O W_O^T + dequantized(x_rest W_rest^T) (Dettmers et al.
    2022, LLM.int8, section 3.2): a few columns would otherwise set the scale of every token.

    Args:
        x: (..., K), finite.
        threshold: above 0.

    Returns:
        int64, rising indices into K.

    Raises:
        ValueError: x holds NaN or infinity, has no axis, or the threshold is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: it must be above 0")
    if x.dim() == 0 or not x.isfinite().all():
        raise ValueError("x must have columns and no NaN or infinity: nothing can be told about outliers otherwise")
    rows = x.detach().reshape(x.shape[:-1].numel(), x.shape[-1])
    return (rows.abs() >= threshold).any(0).nonzero().flatten()


def smoothing_scales(activation_absmax: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """What to divide each column of x by, and multiply that of W by: y = (x / s) (W s)^T is the same, easier in int8.

    `s_k = max|x_k|^alpha / max|w_k|^(1 - alpha)` (Xiao et al. 2022, SmoothQuant, equation 4). With alpha = 1/2 both
    then have the same largest number in each column. A column that is zero on either side keeps s = 1, and what is past
    float32's normal numbers becomes the nearest of them.

    Args:
        activation_absmax: (K,), the largest `|x|` of each column on calibration text; not negative, finite.
        weight: (N, K), finite.
        alpha: from 0, which smooths the weight, to 1, which smooths x.

    Returns:
        float32 (K,), positive and finite.

    Raises:
        ValueError: the shapes do not fit, alpha is outside [0, 1], or a number is negative or not finite.
    """
    if weight.dim() != 2 or activation_absmax.shape != weight.shape[1:]:
        raise ValueError(
            f"activation_absmax {tuple(activation_absmax.shape)} and weight {tuple(weight.shape)} do not fit: need (K,) "
            "and (N, K)"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: it is from 0 to 1")
    of_x = activation_absmax.detach().double()
    none = torch.zeros_like(of_x)
    low, high = torch.aminmax(weight.detach(), dim=0) if len(weight) else (none, none)
    of_w = torch.maximum(-low, high).double()  # max|w| without a copy of the weight
    if not (of_x.isfinite().all() and of_w.isfinite().all() and (of_x >= 0).all()):
        raise ValueError("a largest number is negative, NaN or infinite: take the absolute values of finite tensors")
    normal = torch.finfo(torch.float32)
    scales = (of_x.pow(alpha) / of_w.pow(1 - alpha)).clamp(normal.tiny, normal.max)
    return torch.where((of_x == 0) | (of_w == 0), torch.ones_like(scales), scales).float()
