"""Fields: modules from points to ambient vectors, which flows project for themselves."""

import math

import torch
from torch import nn

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence

__all__ = ["FourierField", "SourceField"]


class FourierField(nn.Module):
    """Multilayer perceptron on random Fourier features of the ambient coordinates.

    The last layer starts at zero, so that a flow starts at its base.

    Parameters
    ----------
    shape : tuple of int
        Shape of a point and of a vector, ``space.shape``.
    n_features : int
        Number of frequencies (each gives a sine and a cosine).
    hidden : int
        Width of the hidden layers.
    depth : int
        Number of hidden layers.
    max_frequency : float
        Frequencies are spread logarithmically from 1/2 to this.
    generator : torch.Generator, optional
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.
    """

    def __init__(self, shape, n_features=64, hidden=128, depth=2, max_frequency=8.0,
                 generator=None, dtype=None):
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        scale = torch.logspace(
            -1, math.log2(max_frequency), n_features, base=2.0, dtype=dtype
        )
        direction = torch.randn(n_features, size, generator=generator, dtype=dtype)
        direction = direction / direction.norm(dim=1, keepdim=True)
        self.frequency = nn.Parameter(scale[:, None] * direction)
        # High frequencies have large derivatives; the amplitudes even them out.
        self.register_buffer("amplitude", 1 / (1 + scale).repeat(2))
        widths = [2 * n_features, *[hidden] * depth]
        layers = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [_linear(width_in, width_out, generator, dtype), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.out = nn.Linear(widths[-1], size, dtype=dtype)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        """Vectors (n, *shape) at points (n, *shape)."""
        phase = x.flatten(1) @ self.frequency.mT
        features = torch.cat([phase.sin(), phase.cos()], dim=-1) * self.amplitude
        return self.out(self.hidden(features)).reshape(x.shape)


def _linear(width_in, width_out, generator, dtype):
    layer = nn.Linear(width_in, width_out, dtype=dtype)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / math.sqrt(width_in), generator=generator)
        layer.bias.zero_()
    return layer


class SourceField(nn.Module):
    r"""Field of softened point charges that draw mass towards learned centres.

    .. math::
        w(x) = \sum_k a_k (c_k - x) (\|x - c_k\|^2 + h_k^2)^{-d/2}

    In R^d, minus the divergence of one term is a bell,
    :math:`d\, a_k h_k^2 (\|x - c_k\|^2 + h_k^2)^{-d/2-1}` (a multivariate t law with
    two degrees of freedom), and nothing else. On :math:`S^2` it is a bell minus the
    *constant* a_k / 2, so that a Moser flow on the uniform base whose charges sum to at
    most 2 is a positive mixture, exactly. Unlike a perceptron the field is local: a
    bell added here makes no ripple there. Charges are a softmax times a learned total.

    Parameters
    ----------
    space : geomstats Manifold
    n_sources : int
        Number of charges.
    generator : torch.Generator, optional
        Draws the first centres, uniform on the space (standard normal if not compact).
    dtype : torch.dtype, optional
        Default: torch's default dtype, as for any module.

    Attributes
    ----------
    charge : torch.nn.Parameter
        Total charge; zero at first, so that a flow starts at its base.
    """

    # Under Adam, log widths and log charges have to move faster than centres.
    _gain = 10.0

    def __init__(self, space, n_sources=1024, generator=None, dtype=None):
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        self.space = space
        if geometry.is_compact(space):
            centers = geometry.random_uniform(space, n_sources, generator, dtype=dtype)
        else:
            shape = (n_sources, *space.shape)
            centers = torch.randn(shape, generator=generator, dtype=dtype)
        self.centers = nn.Parameter(centers)
        log_width = -math.log(n_sources) / space.dim / self._gain
        self.scaled_log_widths = nn.Parameter(
            torch.full((n_sources,), log_width, dtype=dtype)
        )
        self.scaled_logits = nn.Parameter(torch.zeros(n_sources, dtype=dtype))
        self.charge = nn.Parameter(torch.zeros((), dtype=dtype))

    @property
    def widths(self):
        """Softening length of each source, shape=(n_sources,)."""
        return (self._gain * self.scaled_log_widths).exp()

    @property
    def shares(self):
        """Share of the total charge that each source carries, shape=(n_sources,)."""
        return (self._gain * self.scaled_logits).softmax(0)

    def forward(self, x):
        """Vectors (n, *shape) at points (n, *shape)."""
        point, centers = x.flatten(1), self.centers.flatten(1)
        softened = _squared_distances(point, centers) + self.widths.square()
        dim = self.space.dim
        if dim % 2 == 0:
            kernel = softened.reciprocal() ** (dim // 2)
        else:
            kernel = softened.rsqrt() ** dim
        charges = self.charge * self.shares
        pull = kernel @ (charges.unsqueeze(-1) * centers)
        push = (kernel @ charges).unsqueeze(-1) * point
        return (pull - push).reshape(x.shape)

    @torch.no_grad()
    def initialize(self, points, generator=None, n_neighbors=5):
        """Put the sources on data, each as wide as the way to its ``n_neighbors``-th.

        On a compact space the total charge becomes 0.9 of what keeps the density of a
        flow on the uniform base positive.

        Returns
        -------
        used : torch.Tensor of int
            Rows that became centres. Hold them out of the likelihood: a source flatters
            the point on which it stands.
        """
        n, k = len(points), len(self.centers)
        order = torch.randperm(n, generator=generator).to(points.device)
        used = order[: min(k, (n + 1) // 2)]
        flat = points.flatten(1)
        neighbor = min(n_neighbors + 1, n)
        width = torch.cat(
            [
                _squared_distances(part, flat).kthvalue(neighbor, dim=1).values.sqrt()
                for part in flat[used].split(128)
            ]
        )
        floor = width.median().clamp_min(1e-3) / 100
        log_width = width.clamp_min(floor).log() / self._gain
        tile = torch.arange(k, device=points.device) % len(used)
        self.centers.copy_(points[used[tile]])
        self.scaled_log_widths.copy_(log_width[tile])
        self.scaled_logits.zero_()
        if geometry.is_compact(self.space):
            probe = geometry.quasi_uniform(
                self.space, 2048, device=points.device, dtype=points.dtype
            )
            self.charge.fill_(1.0)
            _, sink = value_and_divergence(self.space, self, probe)
            self.charge.fill_(0.9 / float(sink.max().clamp_min(1e-6)))
        return used


def _squared_distances(points, centers):
    """Pairwise squared distances; differences first, so that near pairs keep digits."""
    return sum(
        (points[:, k : k + 1] - centers[:, k]).square() for k in range(points.shape[1])
    )
