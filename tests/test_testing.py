"""The suites of laws: what is right passes whatever its size, what is wrong is named."""

import math

import pytest
import torch
from geomstats.geometry.grassmannian import Grassmannian
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.klein_bottle import KleinBottle
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.spd_matrices import SPDMatrices
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.geometry.stiefel import Stiefel

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.testing import check_distribution, check_space

SPHERE = Hypersphere(2)


def _scaled(space, scale):
    space.metric = scale * space.metric
    return space


RIGHT = {
    "T7": lambda: NFoldManifold(Hypersphere(1), 7),
    "SO(3)^3": lambda: NFoldManifold(SpecialOrthogonal(3), 3),
    "S4 of radius 10": lambda: _scaled(Hypersphere(4), 100.0),
    "Gr(4,2), 100": lambda: _scaled(Grassmannian(4, 2), 100.0),
    "St(4,2), 100": lambda: _scaled(Stiefel(4, 2), 100.0),
    "Klein bottle, 0.01": lambda: _scaled(KleinBottle(), 0.01),
    "ball, 0.01": lambda: _scaled(PoincareBall(2), 0.01),
    "SPD(2), 0.01": lambda: _scaled(SPDMatrices(2), 0.01),
    "H2, 100": lambda: _scaled(Hyperboloid(2), 100.0),
}


@pytest.mark.parametrize(("name", "seed"), [("T7", 1), ("T7", 3), *((n, 0) for n in RIGHT)])
def test_what_is_right_passes_at_any_size(name, seed):
    figures = check_space(RIGHT[name](), n=8, n_samples=2000, seed=seed)
    assert figures["the volume"] <= 4


def _too_far(space, tangent_vec, base_point):
    return geometry.exp(SPHERE, 1.1 * tangent_vec, base_point)


def _short_log(space, point, base_point):
    return geometry.log(SPHERE, point, base_point) / 1.1


def _short_dist(space, point_a, point_b):
    return geometry.dist(SPHERE, point_a, point_b) / 1.1


def _gnomonic(space, tangent_vec, base_point):
    return torch.nn.functional.normalize(base_point + tangent_vec, dim=-1)


def _gnomonic_log(space, point, base_point):
    return point / (point * base_point).sum(-1, keepdim=True) - base_point


def _gnomonic_dist(space, point_a, point_b):
    return _gnomonic_log(space, point_a, point_b).norm(dim=-1)


def _spinning(space, tangent_vec, base_point):
    # turns the way it goes by as much as it has gone: right speed, wrong curves
    angle = tangent_vec.square().sum(-1, keepdim=True)
    side = torch.linalg.cross(base_point, tangent_vec)
    turned = angle.cos() * tangent_vec + angle.sin() * side
    return geometry.exp(SPHERE, turned, base_point)


def _single(space, tangent_vec, base_point):
    return geometry.exp(SPHERE, tangent_vec, base_point).float()


def _one_sided(space, point_a, point_b):
    return geometry.dist(SPHERE, point_a, point_b) * (1 + point_a[..., 0].clamp_min(0.5) - 0.5)


WRONG = {
    "exponential follows tangents": {
        "exp": _too_far,
        "log": _short_log,
        "dist": _short_dist,
    },
    "geodesics keep their speed": {
        "exp": _gnomonic,
        "log": _gnomonic_log,
        "dist": _gnomonic_dist,
    },
    "geodesics go on as geodesics": {"exp": _spinning},
    "dtype is kept": {"exp": _single},
    "distance is symmetric": {"dist": _one_sided},
    "volume element is that of the metric": {
        "log_volume_element": lambda space, point: torch.ones_like(point[..., 0])
    },
    "the volume": {"log_volume": lambda space: math.log(3 * math.pi)},
    "Stokes' theorem": {
        "uniform_from_cube": lambda space, cube: torch.nn.functional.normalize(
            geometry.uniform_from_cube(SPHERE, cube) + 0.4, dim=-1
        )
    },
}


@pytest.mark.parametrize("law", WRONG)
def test_what_is_wrong_is_named(law):
    class Mine(Hypersphere):
        """What nothing else is registered for inherits what is right."""

    check_space(Mine(2), n=32)
    for name, wrong in WRONG[law].items():
        getattr(geometry, name).register(Mine)(wrong)
    with pytest.raises(AssertionError, match=f"Mine breaks .* laws:(.|\n)*{law}"):
        check_space(Mine(2), n=32)


class _Unnormalised(gf.Uniform):
    def _log_prob(self, x):
        return super()._log_prob(x) + 0.1


class _Careless(gf.Uniform):
    def _draw(self, n, generator):
        return super()._draw(n, None)


class _Elsewhere(gf.WrappedNormal):
    def _draw(self, n, generator):
        x, log_prob = super()._draw(n, generator)
        return torch.nn.functional.normalize(x + 0.3, dim=-1), None


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (_Unnormalised, "the integral is one"),
        (_Careless, "the generator decides"),
        (_Elsewhere, "samples follow the density"),
    ],
)
def test_distributions_that_are_wrong_are_named(kind, law):
    with pytest.raises(AssertionError, match=law):
        check_distribution(kind(Hypersphere(2)))
