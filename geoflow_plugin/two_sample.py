r"""Do two samples have one law? By maximum mean discrepancy, and by a classifier.

Both look at points through vectors. The kernel is Gaussian in these, and so positive
definite whatever the space (Schoenberg 1938); a Gaussian of geodesic distance is that on no
curved space (Feragen, Lauze, Hauberg 2015), and :math:`e^{-d / h}` not on rotations, tori
or positive definite matrices.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import hypergeom
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier

from geoflow_plugin import geometry
from geoflow_plugin.distributions.checks import as_points
from geoflow_plugin.geometry.checks import check_counts, check_positive

__all__ = [
    "ClassifierTest",
    "DiscrepancyTest",
    "classifier_test",
    "embedding",
    "landmark_distances",
    "maximum_mean_discrepancy",
]

_ENTRIES = 2**22  # of a matrix that are held at a time


class DiscrepancyTest(NamedTuple):
    """Outcome of ``maximum_mean_discrepancy``.

    Attributes
    ----------
    statistic : float
        Unbiased estimate of the squared discrepancy, zero in the mean if laws agree.
    p_value : float
    bandwidth : float
        Of the kernel.
    """

    statistic: float
    p_value: float
    bandwidth: float


class ClassifierTest(NamedTuple):
    """Outcome of ``classifier_test``.

    Attributes
    ----------
    accuracy : float
        On held-out points, as many of the one sample as of the other; 1/2 by chance.
    p_value : float
    """

    accuracy: float
    p_value: float


# Points as vectors ----------------------------------------------------------------------


def landmark_distances(space, points, landmarks):
    """Geodesic distances to landmarks, over the root of their number: (n, m).

    Fréchet's embedding of a metric space. Mean squared differences of distances do not
    change under isometries, and vanish for equal points only, if landmarks are many: a
    Gaussian kernel of them is universal on compact sets (Christmann and Steinwart 2010).

    Parameters
    ----------
    space : geomstats Manifold
    points : torch.Tensor, shape=(n, *space.shape)
    landmarks : torch.Tensor, shape=(m, *space.shape)
    """
    m, shape = len(landmarks), tuple(space.shape)
    columns = []
    for part in points.split(max(1, _ENTRIES // (m * math.prod(shape)))):
        pairs = (len(part), m, *shape)
        a, b = part.unsqueeze(1).expand(pairs), landmarks.expand(pairs)
        columns.append(geometry.dist(space, a.reshape(-1, *shape), b.reshape(-1, *shape)))
    return torch.cat(columns).reshape(-1, m) / math.sqrt(m)


def embedding(space, points, landmarks):
    """Arrays of the points, as fields see them (``geometry.embed``), as vectors (n, k).

    For spaces without geodesic distances, and many points: a chord is cheaper. Isometries
    that are no isometries of the array change it.
    """
    return geometry.embed(space, points).flatten(1)


# Maximum mean discrepancy -----------------------------------------------------------------


@torch.no_grad()
def maximum_mean_discrepancy(
    space,
    x,
    y,
    *,
    features=landmark_distances,
    n_landmarks=256,
    bandwidth=None,
    n_permutations=500,
    generator=None,
):
    r"""Kernel two-sample test, exact for samples of any size.

    With the kernel :math:`k(x, y) = \exp(-\|f(x) - f(y)\|^2 / 2 h^2)` of features f,

    .. math::
        \mathrm{MMD}^2 = \frac{\sum_{i \ne j} k(x_i, x_j)}{n (n - 1)}
            + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)} - \frac{2}{nm} \sum k(x_i, y_j),

    compared with its values after random exchanges of points between the samples. Memory is
    bounded: kernel matrices are never held as a whole.

    Parameters
    ----------
    space : geomstats Manifold
    x, y : torch.Tensor or array, shape=(n, *space.shape) and (m, *space.shape)
        Independent points; two of each at least.
    features : callable
        Space, points and landmarks to vectors: ``landmark_distances``, which needs geodesic
        distances, or ``embedding``, which does not, or one's own.
    n_landmarks : int
        At most so many of the points of both samples, at random.
    bandwidth : float, optional
        The length h. Default: the median of distances between features.
    n_permutations : int
        The p-value is a multiple of 1 / (1 + n_permutations).
    generator : torch.Generator, optional

    Returns
    -------
    test : DiscrepancyTest

    Raises
    ------
    TypeError, ValueError
        For samples that are not points of the space, or are too small; options out of
        range; a space without geodesic distances.

    References
    ----------
    .. [GBRSS12] A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf, A. Smola. "A Kernel
       Two-Sample Test", JMLR 13, 2012.
    """
    check_counts(n_landmarks=n_landmarks, n_permutations=n_permutations)
    pool, n = _pool(space, x, y)
    vectors = _features(space, pool, features, n_landmarks, generator)
    if bandwidth is None:
        bandwidth = _median_distance(vectors, generator)
    else:
        check_positive(bandwidth=bandwidth)
    member = _memberships(len(pool), n, n_permutations, generator).to(vectors)
    values = _discrepancies(vectors / bandwidth, member)
    tie = 1e-12 * (1 + values[0].abs())
    exceed = int((values[1:] >= values[0] - tie).sum())
    return DiscrepancyTest(float(values[0]), (1 + exceed) / (1 + n_permutations), bandwidth)


def _discrepancies(vectors, member):
    """Unbiased squared discrepancies (b,) for samples marked in the columns of (N, b)."""
    total = len(vectors)
    n = member[:, 0].sum()
    m = total - n
    squares = vectors.square().sum(1)
    within, marked, whole = 0.0, 0.0, 0.0
    for rows in torch.arange(total, device=vectors.device).split(max(1, _ENTRIES // total)):
        cross = squares[rows, None] + squares - 2 * vectors[rows] @ vectors.T
        kernel = (-0.5 * cross.clamp_min(0)).exp()
        kernel[torch.arange(len(rows), device=rows.device), rows] = 0.0
        weighted = kernel @ member
        within = within + (member[rows] * weighted).sum(0)
        marked = marked + weighted.sum(0)
        whole = whole + kernel.sum()
    # of all pairs: both in the one sample, one in each (twice), both in the other
    between = marked - within
    rest = whole - within - 2 * between
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m)


def _memberships(total, n, n_permutations, generator):
    """Who is in the first sample, (total, 1 + n_permutations); as it was comes first."""
    first = torch.zeros(total, 1, dtype=torch.float64)
    first[:n] = 1
    columns = [first.to(_device(generator))]
    for _ in range(n_permutations):
        columns.append(columns[0][_permutation(total, generator)])
    return torch.cat(columns, dim=1)


def _median_distance(vectors, generator):
    some = vectors[_permutation(len(vectors), generator)[:1000].to(vectors.device)]
    median = float(torch.pdist(some).median())
    if not median > 0:
        raise ValueError("x, y: expected more than a few different points; give a bandwidth.")
    return median


# Classifier -------------------------------------------------------------------------------


@torch.no_grad()
def classifier_test(
    space, x, y, *, features=embedding, n_landmarks=64, classifier=None, generator=None
):
    """Classifier two-sample test: whether held-out points can be told apart.

    A classifier learns from one half of both samples, and is judged on the other. Given what
    it answers there, the number of right answers is hypergeometric if the laws agree: the
    p-value (Fisher's) is exact, where the binomial one of independent labels is too large.

    Parameters
    ----------
    space : geomstats Manifold
    x, y : torch.Tensor or array, shape=(n, *space.shape) and (m, *space.shape)
        Independent points, four of each at least; some of the larger sample, at random,
        are left out, so that both are equally large.
    features : callable
        Points as vectors: ``embedding`` or ``landmark_distances``.
    n_landmarks : int
    classifier : scikit-learn classifier, optional
        Default: gradient-boosted trees. It is cloned.
    generator : torch.Generator, optional

    Returns
    -------
    test : ClassifierTest

    Raises
    ------
    TypeError, ValueError
        For samples that are not points of the space, or are too small; no classifier.

    References
    ----------
    .. [LO17] D. Lopez-Paz, M. Oquab. "Revisiting Classifier Two-Sample Tests", ICLR 2017.
    """
    check_counts(n_landmarks=n_landmarks)
    pool, n = _pool(space, x, y, least=4)
    size = min(n, len(pool) - n)
    first, second = _permutation(n, generator), n + _permutation(len(pool) - n, generator)
    rows = torch.stack([first[:size], second[:size]]).cpu().numpy()
    if classifier is None:
        seed = int(torch.randint(2**31, (), generator=generator, device=_device(generator)))
        leaf = min(20, 1 + size // 20)
        classifier = HistGradientBoostingClassifier(min_samples_leaf=leaf, random_state=seed)
    elif not (hasattr(classifier, "fit") and hasattr(classifier, "predict")):
        raise TypeError(
            f"classifier: expected one of scikit-learn, got {type(classifier).__name__}."
        )
    vectors = _features(space, pool, features, n_landmarks, generator).cpu().numpy()
    labels = (np.arange(len(pool)) >= n).astype(int)
    train, test = rows[:, : size // 2].ravel(), rows[:, size // 2 :].ravel()
    answers = clone(classifier).fit(vectors[train], labels[train]).predict(vectors[test])
    half, ones = len(test) // 2, int(answers.sum())
    right = int(answers[labels[test] == 1].sum())  # ones where they are due
    p_value = float(hypergeom.sf(right - 1, 2 * half, half, ones))
    return ClassifierTest(float((answers == labels[test]).mean()), min(p_value, 1.0))


# What both need ---------------------------------------------------------------------------


def _pool(space, x, y, least=2):
    """Both samples after one another, in double precision, and the size of the first."""
    x, y = as_points(space, x, "x"), as_points(space, y, "y")
    for name, sample in {"x": x, "y": y}.items():
        if len(sample) < least:
            raise ValueError(f"{name}: expected {least} points at least, got {len(sample)}.")
    return torch.cat([x.double(), y.to(x.device).double()]), len(x)


def _features(space, pool, features, n_landmarks, generator):
    chosen = _permutation(len(pool), generator)[:n_landmarks].to(pool.device)
    if not callable(features):
        raise TypeError(f"features: expected a function, got {features!r}.")
    vectors = features(space, pool, pool[chosen])
    if not isinstance(vectors, torch.Tensor) or vectors.shape[:-1] != (len(pool),):
        got = getattr(vectors, "shape", type(vectors).__name__)
        raise ValueError(f"features: expected vectors of shape ({len(pool)}, k), got {got}.")
    vectors = vectors.double()
    if not bool(vectors.isfinite().all()):
        raise ValueError("features: expected finite numbers, got NaN or infinity.")
    return vectors - vectors.mean(0)


def _permutation(n, generator):
    return torch.randperm(n, generator=generator, device=_device(generator))


def _device(generator):
    if generator is not None and not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator, got {kind}.")
    return "cpu" if generator is None else generator.device
