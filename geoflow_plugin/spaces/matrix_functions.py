"""Functions of symmetric matrices whose derivatives of every order exist.

Those of an eigendecomposition do not at repeated eigenvalues, so that the logarithm and
the square root are rational iterations (closed forms for n = 2). They invert matrices
instead of solving with them, since torch 2.13 differentiates the forward derivative of
``torch.linalg.solve`` (of ``slogdet`` and ``det`` too) wrongly.
"""

import math

import torch

from geoflow_plugin.spaces import linear

_ROOT_STEPS = (7, 6, 5, 4, 4)  # enough for eigenvalues 1e12 apart


def symmetrize(matrix):
    """Symmetric part."""
    return (matrix + matrix.mT) / 2


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
    for n_steps in _ROOT_STEPS:
        matrix = matrix_sqrt(matrix, n_steps)
    quotient = torch.linalg.inv(matrix + eye) @ (matrix - eye)
    square, series = quotient @ quotient, torch.zeros_like(quotient)
    for k in range(21, 0, -2):  # of artanh
        series = series @ square + eye / k
    return mean * eye + symmetrize(quotient @ series) * 2 ** (1 + len(_ROOT_STEPS))


def matrix_sqrt(matrix, n_steps=_ROOT_STEPS[0]):
    """Square root by the Denman-Beavers iteration in Higham's scaled product form."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    root = product = matrix
    for _ in range(n_steps):
        inverse = torch.linalg.inv(product)
        norms = [m.detach().square().sum((-2, -1), keepdim=True) for m in (inverse, product)]
        scale = (norms[0] / norms[1]) ** 0.25  # of the product; no part of the limit
        inverse = inverse / scale
        root = scale.sqrt() / 2 * (root + root @ inverse)
        product = eye / 2 + (scale * product + inverse) / 4
    return symmetrize(root)


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
