"""Pixels in [0, 1] and their logits, as a layer."""

import math

import torch
from normflows.flows import Flow
from torch.nn.functional import logsigmoid

__all__ = ["Logit"]


class Logit(Flow):
    r"""Invertible map from R^d to images in [0, 1]^d, elementwise.

    .. math::
        x = \frac{\sigma(z) - \alpha}{1 - 2\alpha}, \qquad
        z = \mathrm{logit}(\alpha + (1 - 2\alpha) x),

    as in Papamakarios, Pavlakou and Murray (2017), with alpha = 1e-6 for MNIST. The image
    of R^d is the cube a little enlarged, (-a, 1 + a)^d with a = alpha / (1 - 2 alpha), so
    that black and white have finite logits.

    ``normflows.transforms.Logit`` is this map too, but takes 1 - y from y, which in
    float32 leaves one digit of it where pixels are white.

    Parameters
    ----------
    alpha : float
        In [0, 0.5).

    Raises
    ------
    ValueError
        If alpha is out of range.
    """

    def __init__(self, alpha=1e-6):
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise TypeError(f"alpha: expected a number in [0, 0.5), got {alpha!r}.")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number in [0, 0.5), got {alpha!r}.")
        self.alpha = float(alpha)

    def forward(self, z):
        """Logits (n, ...) to pixels of the same shape and log |det|, (n,)."""
        _check(z)
        _require(z.isfinite(), "z: expected finite logits, got NaN or infinity.")
        scale = 1 - 2 * self.alpha
        log_derivative = logsigmoid(z) + logsigmoid(-z) - math.log(scale)
        x = (torch.sigmoid(z) - self.alpha) / scale
        return x, log_derivative.flatten(1).sum(1)

    def inverse(self, z):
        """Pixels (n, ...) to logits of the same shape and log |det|, (n,)."""
        _check(z)
        scale = 1 - 2 * self.alpha
        # 1 - z is exact above one half; 1 - (alpha + scale z) would not be
        y, rest = self.alpha + scale * z, self.alpha + scale * (1 - z)
        _require(
            (y > 0) & (rest > 0),
            f"z: expected pixels inside (-a, 1 + a) with a = {self.alpha / scale:g}, got "
            f"some beyond or NaN, or so close to a bound that {z.dtype} has no logit of them.",
        )
        log_derivative = math.log(scale) - y.log() - rest.log()
        return y.log() - rest.log(), log_derivative.flatten(1).sum(1)

    def extra_repr(self):
        """Alpha, for print."""
        return f"alpha={self.alpha}"


def _check(z):
    if not isinstance(z, torch.Tensor) or not z.is_floating_point():
        raise TypeError(f"z: expected a floating-point tensor, got {z!r}.")
    if z.ndim < 2:
        raise ValueError(f"z: expected shape (n, ...), got {tuple(z.shape)}.")


def _require(condition, message):
    try:
        met = torch.compiler.is_compiling() or bool(condition.all())
    except RuntimeError:  # under vmap values cannot be looked at
        met = True
    if not met:
        raise ValueError(message)
