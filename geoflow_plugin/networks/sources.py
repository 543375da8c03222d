"""A field made of point charges, local where perceptrons are not."""

import math

import torch
from torch import nn
from torch.func import vmap

from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.geometry.checks import as_dtype, check_counts
from geoflow_plugin.geometry.forward_mode import jvp
from geoflow_plugin.networks.charges import charge_sums

__all__ = ["SourceField"]


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
    background : nn.Module, optional
        Another field that is added, for what bells with heavy tails cannot say.
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
    context_dim = 0  # see ConditionalSourceField

    def __init__(self, space, n_sources=1024, background=None, generator=None, dtype=None):
        super().__init__()
        dtype = as_dtype(dtype)
        check_counts(n_sources=n_sources)
        if background is not None and not isinstance(background, nn.Module):
            kind = type(background).__name__
            raise TypeError(f"background: expected a torch.nn.Module, got {kind}.")
        self.space = space
        self.background = background
        if geometry.is_compact(space):
            centers = geometry.random_uniform(space, n_sources, generator, dtype=dtype)
        else:
            shape = (n_sources, *space.shape)
            centers = torch.randn(shape, generator=generator, dtype=dtype)
            if geometry.embed(space, centers) is not centers:
                centers = geometry.projection(space, centers)
        centers = geometry.embed(space, centers)
        self.centers = nn.Parameter(centers)
        log_width = -math.log(n_sources) / geometry.dim(space) / self._gain
        self.scaled_log_widths = nn.Parameter(torch.full((n_sources,), log_width, dtype=dtype))
        self.scaled_logits = nn.Parameter(torch.zeros(n_sources, dtype=dtype))
        self.scaled_charge = nn.Parameter(torch.zeros((), dtype=dtype))

    @property
    def charge(self):
        """Total charge; zero at first, so that a flow starts at its base."""
        return self._gain * self.scaled_charge

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
        no_basis = x.new_zeros(geometry.dim(self.space), 1, 1).expand(-1, *x.flatten(1).shape)
        vector, _ = self._sources(x, no_basis, self.charge * self.shares)
        return vector if self.background is None else vector + self.background(x)

    def value_and_trace(self, x, basis):
        """Vectors, and the trace of their derivative over a tangent basis.

        Closed form: -d sum_k a_k q_k (1 - |P (x - c_k)|^2 / (|x - c_k|^2 + h_k^2)) with
        q_k the kernel; several times cheaper than forward-mode products.

        Parameters
        ----------
        x : torch.Tensor, shape=(n, *space.shape)
        basis : torch.Tensor, shape=(dim, n, *space.shape)

        Returns
        -------
        vector : torch.Tensor, shape=(n, *space.shape)
        trace : torch.Tensor, shape=(n,)
        """
        vector, trace = self._sources(x, basis.flatten(2), self.charge * self.shares)
        return self._with_background(self.background, vector, trace, x, basis)

    @staticmethod
    def _with_background(background, vector, trace, x, basis):
        if background is None:
            return vector, trace

        def along(direction):
            value, change = jvp(background, (x,), (direction,))  # type: ignore[misc]
            return (direction * change).flatten(1).sum(-1), value

        products, value = vmap(
            along,
            out_dims=(0, None),  # type: ignore[arg-type]
        )(basis)
        return vector + value, trace + products.sum(0)

    def _sources(self, x, basis, charges):
        point = x.flatten(1)
        pull, push, bell = charge_sums(
            point,
            basis,
            self.centers.flatten(1),
            self.widths,
            charges,
        )
        vector = pull - push.unsqueeze(-1) * point
        return vector.reshape(x.shape), -geometry.dim(self.space) * bell

    @torch.no_grad()
    def initialize(self, points, generator=None, n_neighbors=(5, 2, 12, 30)):
        """Put the sources on data, each as wide as the way to a near neighbour.

        With more sources than points, several of different widths stand on each. All
        widths are then multiplied by the power of two, and the total charge becomes 0.9
        of what keeps the density positive, that serve a flow on the uniform base best,
        judged by leave-one-out likelihood.

        Parameters
        ----------
        points : torch.Tensor, shape=(n, *space.shape)
        generator : torch.Generator, optional
            Chooses the points; a CPU generator.
        n_neighbors : sequence of int
            Which neighbour sets the width of the first, second, ... source of a point.

        Returns
        -------
        anchors : torch.Tensor of int, shape=(n_sources,)
            Row of ``points`` on which each source stands.
        """
        n = len(points)
        order, anchors, log_width = self._place(points, generator, n_neighbors)
        if not geometry.is_compact(self.space):
            return anchors
        probe = geometry.quasi_uniform(
            self.space, 1024, device=points.device, dtype=points.dtype
        )
        query = order[:1024]
        best, best_likelihood = (0.0, 0.0), -math.inf
        for doubling in range(-2, 8):
            shift = doubling * math.log(2) / self._gain
            self.scaled_log_widths.copy_(log_width + shift)
            self.scaled_charge.fill_(1 / self._gain)
            _, sink = value_and_divergence(self.space, self, probe)
            charge = 0.9 / float(sink.max().clamp_min(1e-6))
            _, sink = value_and_divergence(self.space, self, points[query])
            own = self.own_ratio(points[anchors])
            own = own.new_zeros(n).index_add(0, anchors, own)[query]
            ratio = (1 - charge * (sink + own)).clamp_min(1e-3)
            likelihood = float(ratio.log().mean())
            if likelihood > best_likelihood:
                best, best_likelihood = (shift, charge), likelihood
        self.scaled_log_widths.copy_(log_width + best[0])
        self.scaled_charge.fill_(best[1] / self._gain)
        return anchors

    def _place(self, points, generator, n_neighbors):
        """Put the sources on data; returns an order of the data, anchors and widths."""
        k, images = len(self.centers), geometry.embed(self.space, points)
        order = torch.randperm(len(points), generator=generator).to(points.device)
        used = order[:k]
        width = _neighbor_distances(images[used], images, n_neighbors)
        source = torch.arange(k, device=points.device)
        row, scale = source % len(used), (source // len(used)) % len(n_neighbors)
        anchors = used[row]
        self.centers.copy_(images[anchors])
        self.scaled_logits.zero_()
        self.scaled_charge.fill_(1 / self._gain)
        log_width = width[row, scale].log() / self._gain
        self.scaled_log_widths.copy_(log_width)
        return order, anchors, log_width

    def own_ratio(self, points):
        """What each source adds to a flow's ratio at one point of its own.

        The bell of the class docstring, up to curvature: exact at the centre, where the
        field of the source vanishes, on any space and over any base.

        Parameters
        ----------
        points : torch.Tensor, shape=(n_sources, *space.shape)

        Returns
        -------
        own_ratio : torch.Tensor, shape=(n_sources,)
        """
        return self.charge * self.shares * self._own_bell(points)

    def _own_bell(self, points):
        dim, square = geometry.dim(self.space), self.widths.square()
        squared = (
            (geometry.embed(self.space, points) - self.centers).flatten(1).square().sum(-1)
        )
        return dim * square * (squared + square) ** (-dim / 2 - 1)


def _squared_distances(points, centers):
    """Pairwise squared distances; differences first, so that near pairs keep digits."""
    return sum((points[:, k : k + 1] - centers[:, k]).square() for k in range(points.shape[1]))


def _neighbor_distances(centers, points, n_neighbors):
    """Array distance of each centre to its j-th neighbour, one column for each j."""
    neighbors = [min(j, len(points) - 1) for j in n_neighbors]
    parts = []
    for part in centers.flatten(1).split(128):
        squared = _squared_distances(part, points.flatten(1))
        nearest = squared.topk(max(neighbors) + 1, dim=1, largest=False).values
        parts.append(nearest[:, neighbors].sqrt())
    width = torch.cat(parts)
    # repeated points are at distance zero
    return width.clamp_min(float(width[:, 0].median().clamp_min(1e-3)) / 100)
