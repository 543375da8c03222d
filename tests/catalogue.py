"""One row for every kind of geomstats space: how to make a small one.

``docs/spaces.md`` and the conformance tests work through these rows; ``REFUSED`` has what
geomstats exports and we do not serve, with the reason.
"""

import numpy as np
from geomstats.geometry.complex_matrices import ComplexMatrices
from geomstats.geometry.complex_poincare_disk import ComplexPoincareDisk
from geomstats.geometry.euclidean import Euclidean, EuclideanMetric
from geomstats.geometry.full_rank_correlation_matrices import (
    EuclideanCholeskyMetric,
    FullRankCorrelationAffineQuotientMetric,
    FullRankCorrelationMatrices,
    LogEuclideanCholeskyMetric,
    LogScaledMetric,
    OffLogMetric,
    PolyHyperbolicCholeskyMetric,
)
from geomstats.geometry.full_rank_matrices import FullRankMatrices
from geomstats.geometry.general_linear import GeneralLinear, SquareMatrices
from geomstats.geometry.grassmannian import Grassmannian
from geomstats.geometry.heisenberg import HeisenbergVectors
from geomstats.geometry.hermitian import Hermitian
from geomstats.geometry.hermitian_matrices import HermitianMatrices
from geomstats.geometry.hpd_matrices import (
    HPDBuresWassersteinMetric,
    HPDEuclideanMetric,
    HPDLogEuclideanMetric,
    HPDMatrices,
)
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.klein_bottle import KleinBottle
from geomstats.geometry.landmarks import Landmarks
from geomstats.geometry.lower_triangular_matrices import (
    LowerTriangularMatrices,
    StrictlyLowerTriangularMatrices,
)
from geomstats.geometry.matrices import Matrices, MatricesDiagMetric
from geomstats.geometry.minkowski import Minkowski
from geomstats.geometry.nfold_manifold import NFoldManifold, NFoldMetric
from geomstats.geometry.open_hemisphere import OpenHemisphere, OpenHemispheresProduct
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.poincare_half_space import PoincareHalfSpace
from geomstats.geometry.poincare_polydisk import PoincarePolydisk
from geomstats.geometry.positive_lower_triangular_matrices import (
    PLTUnitDiagMatrices,
    PositiveLowerTriangularMatrices,
    UnitNormedRowsPLTMatrices,
)
from geomstats.geometry.positive_reals import PositiveReals
from geomstats.geometry.pre_shape import PreShapeSpace
from geomstats.geometry.product_hpd_and_siegel_disks import ProductHPDMatricesAndSiegelDisks
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.product_positive_reals_and_poincare_disks import (
    ProductPositiveRealsAndComplexPoincareDisks,
)
from geomstats.geometry.rank_k_psd_matrices import PSDBuresWassersteinMetric, PSDMatrices
from geomstats.geometry.siegel import Siegel
from geomstats.geometry.skew_symmetric_matrices import SkewSymmetricMatrices
from geomstats.geometry.spd_matrices import (
    LieCholeskyMetric,
    SPDBuresWassersteinMetric,
    SPDEuclideanMetric,
    SPDLogEuclideanMetric,
    SPDMatrices,
    SPDPowerMetric,
)
from geomstats.geometry.special_euclidean import (
    SpecialEuclidean,
    SpecialEuclideanMatricesLieAlgebra,
)
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.geometry.stiefel import Stiefel
from geomstats.geometry.symmetric_matrices import (
    HollowMatricesPermutationInvariantMetric,
    NullRowSumsPermutationInvariantMetric,
    NullRowSumsSymmetricMatrices,
    SymmetricHollowMatrices,
    SymmetricMatrices,
)
from geomstats.information_geometry.beta import BetaDistributions
from geomstats.information_geometry.binomial import BinomialDistributions
from geomstats.information_geometry.categorical import CategoricalDistributions
from geomstats.information_geometry.dirichlet import DirichletDistributions
from geomstats.information_geometry.exponential import ExponentialDistributions
from geomstats.information_geometry.gamma import GammaDistributions
from geomstats.information_geometry.geometric import GeometricDistributions
from geomstats.information_geometry.multinomial import MultinomialDistributions
from geomstats.information_geometry.normal import (
    CenteredNormalDistributions,
    DiagonalNormalDistributions,
    GeneralNormalDistributions,
    UnivariateNormalDistributions,
)
from geomstats.information_geometry.poisson import PoissonDistributions

from geoflow_plugin.spaces.real_view import RealView


def _with(space, metric, **kwargs):
    space.equip_with_metric(metric, **kwargs)
    return space


def _scaled(space, factor=2.0):
    space.metric = factor * space.metric
    return space


def _scaled_torus():
    space = NFoldManifold(Hypersphere(1), 2, equip=False)
    return space.equip_with_metric(NFoldMetric, scales=[1.0, 2.0])


def _power_spd():
    image = SPDMatrices(2)
    image.equip_with_metric(SPDEuclideanMetric)
    image.metric = 4.0 * image.metric  # the power one half
    return _with(SPDMatrices(2), SPDPowerMetric, image_space=image)


def _shapes(k, m):
    space = PreShapeSpace(k, m)
    space.equip_with_group_action("rotations")
    space.equip_with_quotient()
    return space.quotient


_MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])

CATALOGUE = {
    "S1": lambda: Hypersphere(1),
    "S2": lambda: Hypersphere(2),
    "S4": lambda: Hypersphere(4),
    "S2 doubled": lambda: _scaled(Hypersphere(2)),
    "T2": lambda: NFoldManifold(Hypersphere(1), 2),
    "T2 scales 1, 2": _scaled_torus,
    "SO2": lambda: SpecialOrthogonal(2),
    "SO3": lambda: SpecialOrthogonal(3),
    "SO4": lambda: SpecialOrthogonal(4),
    "SO2 vectors": lambda: SpecialOrthogonal(2, point_type="vector"),
    "SO3 vectors": lambda: SpecialOrthogonal(3, point_type="vector"),
    "SE2": lambda: SpecialEuclidean(2),
    "SE3": lambda: SpecialEuclidean(3),
    "SE2 vectors": lambda: SpecialEuclidean(2, point_type="vector"),
    "SE3 vectors": lambda: SpecialEuclidean(3, point_type="vector"),
    "SpecialEuclideanMatricesLieAlgebra(2)": lambda: SpecialEuclideanMatricesLieAlgebra(2),
    "Stiefel(4, 2)": lambda: Stiefel(4, 2),
    "Stiefel(3, 1)": lambda: Stiefel(3, 1),
    "Grassmannian(4, 2)": lambda: Grassmannian(4, 2),
    "PreShapeSpace(4, 2)": lambda: PreShapeSpace(4, 2),
    "Kendall shapes (4, 2)": lambda: _shapes(4, 2),
    "Kendall shapes (4, 3)": lambda: _shapes(4, 3),
    "KleinBottle": lambda: KleinBottle(),
    "R3": lambda: Euclidean(3),
    "R2 with a matrix": lambda: _with(Euclidean(2), EuclideanMetric, metric_matrix=_MATRIX),
    "Matrices(2, 3)": lambda: Matrices(2, 3),
    "Matrices(2, 2) diagonal": lambda: _with(
        Matrices(2, 2), MatricesDiagMetric, metric_coeffs=_MATRIX
    ),
    "SquareMatrices(2)": lambda: SquareMatrices(2),
    "SymmetricMatrices(2)": lambda: SymmetricMatrices(2),
    "SkewSymmetricMatrices(3)": lambda: SkewSymmetricMatrices(3),
    "LowerTriangularMatrices(2)": lambda: LowerTriangularMatrices(2),
    "StrictlyLowerTriangularMatrices(3)": lambda: StrictlyLowerTriangularMatrices(3),
    "SymmetricHollowMatrices(3)": lambda: SymmetricHollowMatrices(3),
    "SymmetricHollowMatrices(3) permutation": lambda: _with(
        SymmetricHollowMatrices(3), HollowMatricesPermutationInvariantMetric
    ),
    "NullRowSumsSymmetricMatrices(3)": lambda: NullRowSumsSymmetricMatrices(3),
    "NullRowSumsSymmetricMatrices(3) permutation": lambda: _with(
        NullRowSumsSymmetricMatrices(3), NullRowSumsPermutationInvariantMetric
    ),
    "GeneralLinear(2)": lambda: GeneralLinear(2),
    "GeneralLinear(2) positive": lambda: GeneralLinear(2, positive_det=True),
    "FullRankMatrices(3, 2)": lambda: FullRankMatrices(3, 2),
    "HeisenbergVectors": lambda: HeisenbergVectors(),
    "SPDMatrices(2) affine": lambda: SPDMatrices(2),
    "SPDMatrices(3) affine": lambda: SPDMatrices(3),
    "SPDMatrices(2) affine doubled": lambda: _scaled(SPDMatrices(2)),
    "SPDMatrices(2) log-Euclidean": lambda: _with(SPDMatrices(2), SPDLogEuclideanMetric),
    "SPDMatrices(3) log-Euclidean": lambda: _with(SPDMatrices(3), SPDLogEuclideanMetric),
    "SPDMatrices(2) Euclidean": lambda: _with(SPDMatrices(2), SPDEuclideanMetric),
    "SPDMatrices(2) Bures-Wasserstein": lambda: _with(
        SPDMatrices(2), SPDBuresWassersteinMetric
    ),
    "SPDMatrices(2) power": lambda: _power_spd(),
    "SPDMatrices(2) Lie-Cholesky": lambda: _with(SPDMatrices(2), LieCholeskyMetric),
    "PositiveLowerTriangularMatrices(2)": lambda: PositiveLowerTriangularMatrices(2),
    "UnitNormedRowsPLTMatrices(3)": lambda: UnitNormedRowsPLTMatrices(3),
    "RankKPSDMatrices(3, 2)": lambda: PSDMatrices(3, 2),
    "RankKPSDMatrices(3, 2) Bures-Wasserstein": lambda: _with(
        PSDMatrices(3, 2), PSDBuresWassersteinMetric
    ),
    "PLTUnitDiagMatrices(3)": lambda: PLTUnitDiagMatrices(3),
    "FullRankCorrelationMatrices(3) affine quotient": lambda: _with(
        FullRankCorrelationMatrices(3), FullRankCorrelationAffineQuotientMetric
    ),
    "FullRankCorrelationMatrices(3) Euclidean-Cholesky": lambda: _with(
        FullRankCorrelationMatrices(3), EuclideanCholeskyMetric
    ),
    "FullRankCorrelationMatrices(3) log-Euclidean-Cholesky": lambda: _with(
        FullRankCorrelationMatrices(3), LogEuclideanCholeskyMetric
    ),
    "FullRankCorrelationMatrices(3) poly-hyperbolic-Cholesky": lambda: _with(
        FullRankCorrelationMatrices(3), PolyHyperbolicCholeskyMetric
    ),
    "FullRankCorrelationMatrices(3) off-log": lambda: _with(
        FullRankCorrelationMatrices(3), OffLogMetric
    ),
    "FullRankCorrelationMatrices(3) log-scaled": lambda: _with(
        FullRankCorrelationMatrices(3), LogScaledMetric
    ),
    "PositiveReals": lambda: PositiveReals(),
    "Hyperboloid(2)": lambda: Hyperboloid(2),
    "Hyperboloid(3)": lambda: Hyperboloid(3),
    "PoincareBall(2)": lambda: PoincareBall(2),
    "PoincareHalfSpace(2)": lambda: PoincareHalfSpace(2),
    "PoincarePolydisk(2)": lambda: PoincarePolydisk(2),
    "OpenHemisphere(2)": lambda: OpenHemisphere(2),
    "OpenHemispheresProduct(3)": lambda: OpenHemispheresProduct(3),
    "UnivariateNormalDistributions": lambda: UnivariateNormalDistributions(),
    "CenteredNormalDistributions(2)": lambda: CenteredNormalDistributions(2),
    "DiagonalNormalDistributions(2)": lambda: DiagonalNormalDistributions(2),
    "GeneralNormalDistributions(2)": lambda: GeneralNormalDistributions(2),
    "ExponentialDistributions": lambda: ExponentialDistributions(),
    "PoissonDistributions": lambda: PoissonDistributions(),
    "GeometricDistributions": lambda: GeometricDistributions(),
    "BinomialDistributions(5)": lambda: BinomialDistributions(5),
    "BetaDistributions": lambda: BetaDistributions(),
    "GammaDistributions": lambda: GammaDistributions(),
    "DirichletDistributions(3)": lambda: DirichletDistributions(3),
    "CategoricalDistributions(2)": lambda: CategoricalDistributions(2),
    "MultinomialDistributions(2, 5)": lambda: MultinomialDistributions(2, 5),
    "Landmarks(R2, 3)": lambda: Landmarks(Euclidean(2), 3),
    "S1 x S1": lambda: ProductManifold([Hypersphere(1), Hypersphere(1)]),
    "S2 x SO3": lambda: ProductManifold([Hypersphere(2), SpecialOrthogonal(3)]),
    "S2 x SPD(2)": lambda: ProductManifold([Hypersphere(2), SPDMatrices(2)]),
    "Hyperboloid(2)^2": lambda: NFoldManifold(Hyperboloid(2), 2),
    "ComplexMatrices(2, 2)": lambda: RealView(ComplexMatrices(2, 2)),
    "Hermitian(2)": lambda: RealView(Hermitian(2)),
    "HermitianMatrices(2)": lambda: RealView(HermitianMatrices(2)),
    "HPDMatrices(2) affine": lambda: RealView(HPDMatrices(2)),
    "HPDMatrices(2) affine doubled": lambda: _scaled(RealView(HPDMatrices(2))),
    "HPDMatrices(2) log-Euclidean": lambda: RealView(
        _with(HPDMatrices(2), HPDLogEuclideanMetric)
    ),
    "HPDMatrices(2) Euclidean": lambda: RealView(_with(HPDMatrices(2), HPDEuclideanMetric)),
    "HPDMatrices(2) Bures-Wasserstein": lambda: RealView(
        _with(HPDMatrices(2), HPDBuresWassersteinMetric)
    ),
    "ComplexPoincareDisk": lambda: RealView(ComplexPoincareDisk()),
    "Siegel(1)": lambda: RealView(Siegel(1)),
    "Siegel(2)": lambda: RealView(Siegel(2)),
    "Siegel(2) symmetric": lambda: RealView(Siegel(2, symmetric=True)),
    "HPD x Siegel": lambda: RealView(ProductHPDMatricesAndSiegelDisks(2, 2)),
    "R+ x complex disks": lambda: RealView(ProductPositiveRealsAndComplexPoincareDisks(3)),
}

_PATHS = "points are discretised functions: its metrics have no volume we could state"

# where wide kernels have integrable spikes, at collinear shapes, and means over them no
# standard error that could be trusted
BANDWIDTHS = {"Kendall shapes (4, 3)": [0.05, 0.1]}

# name -> (how to make it, or None where it cannot be one of ours; why it is refused)
REFUSED = {
    "Minkowski(3)": (lambda: Minkowski(3), "indefinite metric: no Riemannian volume"),
    "Hypersphere(2, intrinsic=True)": (
        lambda: Hypersphere(2, intrinsic=True),
        "geomstats' own exp, log and belongs are wrong there; use unit vectors",
    ),
    "Kendall shapes (6, 4)": (
        lambda: _shapes(6, 4),
        "have no volume in closed form",
    ),
    "HPDMatrices(2), complex arrays": (
        lambda: HPDMatrices(2),
        "complex arrays; RealView(space) is the same space in real ones",
    ),
    "SE(n) under invariant metrics": (
        None,
        "served are the left-invariant one of vectors and the canonical one of matrices",
    ),
    "GraphSpace up to renumbering": (None, "stratified: not a manifold"),
    "HilbertSphere": (None, "infinite dimension: no volume"),
    "DiscreteCurvesStartingAtOrigin": (None, _PATHS),
    "DiscreteSurfaces": (None, _PATHS),
    "TangentBundle": (None, "Sasaki metric: known to geomstats by shooting alone"),
    "Spider, TreeSpace, WaldSpace": (None, "stratified: not manifolds"),
}
