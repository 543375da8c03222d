"""Functions of symmetric matrices whose derivatives exist at repeated eigenvalues as well.

Those of an eigendecomposition do not, so that the logarithm (but for n = 2, a closed form)
and the square root are taken as inverses of exponential and square: their values come from
eigenvalues, without derivatives, and their derivatives up to the fourth from four steps of
Newton's iteration. Nothing solves with a matrix, since torch 2.13 differentiates the forward
derivative of ``torch.linalg.solve`` (of ``slogdet`` and ``det`` too) wrongly.
"""

import math

import torch

from geoflow_plugin.geometry.forward_mode import scaled
from geoflow_plugin.spaces import linear

_ORDER = 4  # of the derivatives that exist


def symmetrize(matrix):
    """Symmetric part."""
    return scaled(matrix + matrix.mT, 1 / 2)


def trace(matrix):
    """Trace, shape (...,)."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def log_determinant(matrix):
    """Log determinant of positive definite matrices, shape (...,)."""
    root = torch.linalg.cholesky(matrix)
    return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def matrix_exp(matrix):
    """Exponential of symmetric matrices, symmetric to the last digit."""
    return symmetrize(torch.linalg.matrix_exp(matrix))


def matrix_log(matrix):
    """Logarithm of positive definite matrices, smooth at repeated eigenvalues."""
    n = matrix.shape[-1]
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    mean = (log_determinant(matrix) / n)[..., None, None]
    matrix = matrix * (-mean).exp()  # of determinant one from here on
    if n == 2:
        deviator = matrix - trace(matrix)[..., None, None] / 2 * eye
        squared_sine = deviator.square().sum((-2, -1), keepdim=True) / 2
        return mean * eye + squared_arsinh_quotient(squared_sine).sqrt() * deviator
    return mean * eye + _inverse_function(matrix, torch.log, matrix_exp, _exp_slope)


def matrix_sqrt(matrix):
    """Square root of positive definite matrices, smooth at repeated eigenvalues."""
    return _inverse_function(matrix, torch.sqrt, _squared, torch.add)


def _inverse_function(matrix, value, function, slope):
    """The symmetric matrix X with function(X) = matrix, of eigenvalues value(...).

    In the eigenvectors of the matrix, as constants, the differential of the function at X is
    the product, entry by entry, with its divided differences: ``slope`` of pairs of
    eigenvalues of X. The simplified Newton step X <- X - (function(X) - matrix) / slope with
    what is constant left out, since it is zero but for rounding, gains a derivative.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix.detach())
    least = torch.finfo(matrix.dtype).tiny  # should rounding have made one negative
    found = value(eigenvalues.clamp_min(least))
    divided = slope(found.unsqueeze(-1), found.unsqueeze(-2))
    goal = _change(vectors.mT @ matrix @ vectors)
    result = torch.diag_embed(found)
    for _ in range(_ORDER):
        result = result - (_change(function(result)) - goal) / divided
    return symmetrize(vectors @ result @ vectors.mT)


def _squared(matrix):
    return matrix @ matrix


def _change(value):
    """What derivatives see of a value, which is zero itself."""
    return value - value.detach()


def _exp_slope(a, b):
    """(exp(a) - exp(b)) / (a - b), also where a and b are close or equal."""
    half = (a - b) / 2
    small = half.abs() < 1e-2
    safe = torch.where(small, 1.0, half)
    square = half.square()
    series = 1 + square / 6 * (1 + square / 20)
    quotient = torch.where(small, series, safe.sinh() / safe)
    return ((a + b) / 2).exp() * quotient


def squared_arsinh_quotient(square):
    """(arsinh(x) / x)^2 as a smooth function of x^2."""
    small = square < 0.05
    safe = torch.where(small, 1.0, square)
    series = torch.zeros_like(square)
    for k in range(12, 0, -1):
        series = series * square + 2 * (-4.0) ** (k - 1) / (k**2 * math.comb(2 * k, k))
    return torch.where(small, series, safe.sqrt().asinh().square() / safe)


def log_sinh_quotient(value):
    """log(sinh(t) / t), smooth at zero."""
    small = value.abs() < 1
    square, series = torch.where(small, value, 0.0).square(), torch.zeros_like(value)
    for k in range(9, 0, -1):
        series = (series + 1 / math.factorial(2 * k + 1)) * square
    large = torch.where(small, 1.0, value).abs()
    asymptotic = large + torch.log1p(-(-2 * large).exp()) - (2 * large).log()
    return torch.where(small, series.log1p(), asymptotic)


def half_differences(eigenvalues):
    """Half the difference of every pair of eigenvalues, (..., n (n - 1) / 2)."""
    n = eigenvalues.shape[-1]
    i, j = torch.triu_indices(n, n, offset=1, device=eigenvalues.device)
    return (eigenvalues[..., i] - eigenvalues[..., j]) / 2


def exp_log_volume(symmetric):
    """Log volume change of the affine exponential: sum of log(sinh(t) / t).

    t runs over half the differences of the eigenvalues of the tangent vector at the
    identity; t^2 are the eigenvalues of a quarter of its squared bracket on the skew
    matrices, of which the determinant of a power series is smooth.
    """
    n = symmetric.shape[-1]
    if n == 1:
        return torch.zeros_like(symmetric[..., 0, 0])
    if n > 4:  # eigenvalues are cheaper; their second derivatives may not exist
        return log_sinh_quotient(half_differences(torch.linalg.eigvalsh(symmetric))).sum(-1)
    basis = linear.skew_basis(n, symmetric)
    bracket = symmetric.unsqueeze(-3) @ basis
    bracket = (bracket + bracket.mT).flatten(-2)  # [A, S], since S is skew
    return bracket_log_volume(bracket)


def bracket_log_volume(bracket):
    """Log determinant of sinh(A) / A, A^2 a quarter of the squared bracket, (...,).

    By a power series, smooth at repeated eigenvalues; ``bracket`` has the images of a
    basis as its rows, (..., k, size).
    """
    square = bracket @ bracket.mT / 4
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    series = torch.zeros_like(square)
    for k in range(28, -1, -1):
        series = series @ square / ((2 * k + 2) * (2 * k + 3)) + eye
    return log_determinant(symmetrize(series))


def separation(difference):
    """Squared length of the logarithm of I + difference, and ``exp_log_volume`` of it.

    From the difference, so that equal points are at distance zero and close ones keep
    their digits.
    """
    tiny = torch.finfo(difference.dtype).eps
    if difference.shape[-1] != 2:
        values = torch.linalg.eigvalsh(difference).clamp_min(tiny - 1).log1p()
        change = log_sinh_quotient(half_differences(values)).sum(-1)
        return values.square().sum(-1), change
    a, b, c = difference[..., 0, 0], difference[..., 1, 1], difference[..., 1, 0]
    excess = (a + b + a * b - c * c).clamp_min(tiny - 1)  # of the determinant over one
    squared_sine = ((a - b).square() / 4 + c * c) / (1 + excess)
    quotient = squared_arsinh_quotient(squared_sine)
    squared = excess.log1p().square() / 2 + 2 * squared_sine * quotient
    return squared, -quotient.log() / 2


# Positivity ----------------------------------------------------------------------------


def _floor(eigenvalues):
    """Below this, rounding does not tell an eigenvalue from zero."""
    size = eigenvalues.abs().amax(-1, keepdim=True)
    tiny = torch.finfo(size.dtype)
    return (tiny.eps * size).clamp_min(tiny.tiny)


def nearest_positive(matrix):
    """Symmetric part, its eigenvalues raised where they are not positive."""
    matrix = symmetrize(matrix)
    values, vectors = torch.linalg.eigh(matrix.detach())
    floor = _floor(values)
    raised = 100 * floor
    missing = torch.where(values > floor, 0.0, raised - values)
    return matrix + symmetrize(vectors * missing.unsqueeze(-2) @ vectors.mT)


def positivity_residual(matrix):
    """Asymmetry, relative to the entries; one and more if not positive definite."""
    size = 1 + matrix.abs().amax((-2, -1))
    asymmetry = (matrix - matrix.mT).abs().amax((-2, -1)) / size
    values = torch.linalg.eigvalsh(symmetrize(matrix))
    defect = _floor(values)[..., 0] - values[..., 0]
    return asymmetry + torch.where(defect >= 0, 1 + defect, 0.0)


def positive_step(tangent_vec, base_point):
    """Second-order step of the affine exponential, which stays positive definite."""
    bent = tangent_vec @ torch.linalg.inv(base_point) @ tangent_vec
    return base_point + tangent_vec + symmetrize(bent) / 2
