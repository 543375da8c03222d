"""Normal laws and smoothing kernels on Kendall's shapes, normalised in closed form."""

import math

import numpy as np
import torch
from geomstats.geometry.pre_shape import KendallShapeMetric, PreShapeSpace
from scipy import special

from geoflow_plugin import geometry
from geoflow_plugin.spaces.kendall import align, turning
from geoflow_plugin.spaces.stiefel import times

_SHAPES = PreShapeSpace, KendallShapeMetric
_WRAPS = 4  # full turns kept on each side, as on spheres
_STEPS = 40  # of Newton's method on polynomials, beyond their largest root


# Normal laws --------------------------------------------------------------------------------


@geometry.random_tangent_normal.register(*_SHAPES)
def _(space, base_point, generator=None):
    normal = geometry.random_normal(base_point.shape, base_point, generator)
    scale = math.sqrt(geometry.metric_scale(space))
    return geometry.to_tangent(space, normal, base_point) / scale


@geometry.wrapped_normal_log_prob.register(*_SHAPES)
def _(space, point, mean, scale):
    # exp_mean(v) = x R wherever mean^T x R is symmetric, with length s = angle + 2 pi k:
    # its eigenvalues are those of the best alignment, an even number of signs turned. The
    # exponential shrinks volume by |sin s / s|^(dim - 1) and by the cosine of the angle
    # between orbits.
    aligned, cosine, sine = align(point, mean)
    eps = torch.finfo(point.dtype).eps
    symmetric = mean.mT @ aligned
    values = torch.linalg.eigvalsh((symmetric + symmetric.mT) / 2)
    signs = [[1, 1], [-1, -1]]
    if space.ambient_dim == 3:
        signs = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    turned = values.unsqueeze(-2) * torch.tensor(signs).to(values)
    other = turned[..., 1:, :].sum(-1)
    other = torch.atan2(geometry.safe_sqrt(1 - other.square()), other)
    angle = torch.cat([torch.atan2(sine, cosine).unsqueeze(-1), other], dim=-1)
    turns = torch.arange(-_WRAPS, _WRAPS + 1, dtype=point.dtype, device=point.device)
    length = angle.unsqueeze(-1) + 2 * math.pi * turns
    quotient = length.abs() / angle.sin().abs().clamp_min(eps).unsqueeze(-1)
    central = 1 / torch.sinc(angle / math.pi).clamp_min(eps)
    quotient = torch.where(turns == 0, central.unsqueeze(-1), quotient).clamp_min(1e-30)
    orbits = turning(torch.diag_embed(turned)).abs().clamp_min(eps).log()
    scaled = length / scale
    terms = -0.5 * geometry.metric_scale(space) * scaled.square() - orbits.unsqueeze(-1)
    terms = terms + (geometry.dim(space) - 1) * quotient.log()
    sizes = turning(point.mT @ point).log() + turning(mean.mT @ mean).log()
    normalizer = geometry.dim(space) * (0.5 * math.log(2 * math.pi) + scale.log())
    return torch.logsumexp(terms.flatten(-2), dim=-1) + sizes / 2 - normalizer


# Kernels ----------------------------------------------------------------------------------
#
# In the plane, exp(-sin(d)^2 / 2 h^2) in the distance d, whose sine squared is a beta
# variate under the uniform law. In space, normal laws carried by a map of the tangent
# space at the centre c: shapes but those of the cut locus are c + v, scaled, for one
# horizontal v where D = D_0 - c^T v is positive, with D_0 = I - c^T c, and
# w = v (det D_0 / det D)^(1/3) takes those v to all horizontal vectors.


@geometry.kernel_separation.register(*_SHAPES)
def _(space, point, centers):
    # No alignment is needed, but double precision, for the cosines of small angles
    x, c = (geometry.projection(space, array.double()) for array in (point, centers))
    product = torch.einsum("nki,mkj->ijnm", x, c)
    equal = (point.unsqueeze(1) == centers.unsqueeze(0)).flatten(2).all(-1)
    if space.ambient_dim == 2:
        cosine = product[0, 0] + product[1, 1], product[0, 1] - product[1, 0]
        squared, log_volume = 1 - cosine[0].square() - cosine[1].square(), None
    else:
        squared, log_volume = _carried(x.mT @ x, c.mT @ c, product, geometry.dim(space))
        log_volume = log_volume.to(point)
    # rounding alone keeps equal points apart
    squared = squared - torch.where(equal, squared.detach(), squared.detach().clamp_max(0))
    return geometry.metric_scale(space) * squared.to(point), log_volume


def _carried(point_gram, center_gram, product, dim):
    """Squared length of w, and the log volume of shapes over that of w.

    Of the best alignment P = c^T x R, all that counts is its trace, the cosine, since
    P^2 = c^T x x^T c. With B: A -> P A + A P on skew matrices, D is B over the cosine.
    """
    tiny = torch.finfo(product.dtype).eps ** 2
    square = times(product.transpose(0, 1), product)
    norm = square[0, 0] + square[1, 1] + square[2, 2]
    cosine, size = _alignment(product, norm, square)
    start = turning(center_gram).log()
    log_stretch = (start - size.log()) / 3 + cosine.log()
    # trace of D_0 times the cofactors of B, which are P^2 + (cosine^2 - norm) / 2
    cofactors = cosine.square() - torch.einsum("ijnm,mij->nm", square, center_gram)
    growth = (cosine * cofactors.clamp_min(tiny) / (3 * size)).log()
    squared = (1 / cosine.square() - 1) * (2 * log_stretch).exp()
    log_volume = (dim + 1) * cosine.log() + size.log() - dim * log_stretch - growth
    sizes = start + turning(point_gram).log().unsqueeze(-1)
    return squared, log_volume - sizes / 2


def _alignment(product, norm, square):
    """Trace and ``turning`` of the best alignment of pairs of shapes in space.

    The trace is the largest root t of a quartic, that of quaternions; its derivative
    there is eight times the turning, t (t^2 - norm) / 2 - det.
    """
    a, b, c = product
    cofactors = [a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)]
    determinant = sum(f * c[i] for i, f in enumerate(cofactors))
    constant = 2 * square.square().sum((0, 1)) - norm.square()
    tiny = torch.finfo(norm.dtype).eps ** 2

    def newton(t, norm, determinant, constant):
        size = (t * (t.square() - norm) / 2 - determinant).clamp_min(tiny)
        value = t * (t * (t.square() - 2 * norm) - 8 * determinant) + constant
        return t - value / (8 * size)

    terms = norm, determinant, constant
    fixed = [term.detach() for term in terms]
    t = (3 * fixed[0]).sqrt()
    for _ in range(_STEPS):  # from above; each at least halves the error, soon squares it
        t = newton(t, *fixed)
    for _ in range(2):  # and three orders of derivatives are right
        t = newton(t, *terms)
    size = t * (t.square() - norm) / 2 - determinant
    return t.clamp_min(tiny), size.clamp_min(tiny)


@geometry.log_kernel_normalizer.register(*_SHAPES)
def _(space, bandwidth):
    c = geometry.metric_scale(space)
    if space.ambient_dim == 3:
        scale = bandwidth.log()
        return geometry.dim(space) * (0.5 * math.log(2 * math.pi) + scale)
    n = space.k_landmarks - 2
    rate = 0.5 * c / bandwidth.detach().double().cpu().numpy() ** 2
    # the integral of n u^(n - 1) exp(-rate u) over [0, 1], by what does not underflow
    series = np.log(special.hyp1f1(1, n + 1, np.minimum(rate, n + 1))) - rate
    with np.errstate(divide="ignore"):
        gamma = np.log(special.gammainc(n, rate)) + math.lgamma(n + 1) - n * np.log(rate)
    value = np.where(rate < n + 1, series, gamma) + geometry.log_volume(space)
    return torch.as_tensor(value).to(bandwidth)


@geometry.random_kernel.register(*_SHAPES)
def _(space, center, bandwidth, generator=None):
    normal = geometry.random_tangent_normal(space, center, generator)
    if space.ambient_dim == 3:
        return geometry.projection(space, center + _pull_back(bandwidth, normal, center))
    n = space.k_landmarks - 2
    rate = 0.5 * geometry.metric_scale(space) / bandwidth.double().cpu().numpy() ** 2
    options = {"generator": generator, "device": center.device, "dtype": center.dtype}
    uniform = torch.rand(bandwidth.shape, **options).double().cpu().numpy()
    total = special.gammainc(n, rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = special.gammaincinv(n, uniform * total) / rate
    # hundreds of landmarks and a kernel as wide as the space: to second order
    square = np.where(total > 1e-290, square, uniform ** (1 / (n - np.minimum(rate, n / 2))))
    square = torch.as_tensor(square).to(center)[:, None, None].clamp(0, 1)
    direction = normal / torch.linalg.matrix_norm(normal, keepdim=True)
    return geometry.projection(space, (1 - square).sqrt() * center + square.sqrt() * direction)


def _pull_back(bandwidth, normal, center):
    """The v whose w is the bandwidth times a tangent vector.

    It is w / t, where t is the largest root of prod_i (t - l_i) = 1, with l_i the
    eigenvalues of D_0^-1 c^T w.
    """
    w = bandwidth[:, None, None] * normal
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    root = torch.linalg.cholesky(eye - center.mT @ center)
    half = torch.linalg.solve_triangular(root, center.mT @ w, upper=False)
    both = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values = torch.linalg.eigvalsh((both + both.mT) / 2)
    gap = values[:, -1:] - values
    t = torch.ones_like(gap[:, :1])  # from the largest eigenvalue; Newton's from the right
    for _ in range(_STEPS):
        factors = t + gap
        product = factors.prod(-1, keepdim=True)
        t = t - (product - 1) / (product * factors.reciprocal().sum(-1, keepdim=True))
    return w / (values[:, -1:] + t).unsqueeze(-1)
