"""Spaces a user might write in geomstats' own operations, and what is measured on them.

Run under GEOMSTATS_BACKEND=pytorch by test_generic.py; prints figures as JSON.
"""

import json
import math

import geomstats.backend as gs
import torch
from geomstats.geometry.base import ImmersedSet, LevelSet, VectorSpaceOpenSet
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.matrices import Matrices
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.riemannian_metric import RiemannianMetric
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from torch.func import jvp

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.networks import FourierField
from geoflow_plugin.spaces.level_set_measure import log_volume_error

MAJOR, MINOR = 1.0, 0.4


class Torus(LevelSet):
    """Torus of revolution, with no more than the obligatory methods."""

    def __init__(self):
        super().__init__(dim=2, equip=False)

    def _define_embedding_space(self):
        return Euclidean(3)

    def submersion(self, point):
        radius = gs.sqrt(point[..., 0] ** 2 + point[..., 1] ** 2)
        return (radius - MAJOR) ** 2 + point[..., 2] ** 2 - MINOR**2

    def tangent_submersion(self, vector, point):
        raise NotImplementedError

    def to_tangent(self, vector, base_point):
        raise NotImplementedError

    def random_point(self, n_samples=1, bound=1.0):
        return torus_point(2 * math.pi * gs.random.rand(n_samples, 2))


class Circle(Torus):
    """A circle in space, by two equations, under twice the length."""

    def __init__(self):
        LevelSet.__init__(self, dim=1, equip=True)

    def default_metric(self):
        return Doubled

    def submersion(self, point):
        height = point[..., 2]
        return gs.stack([gs.sum(point**2, axis=-1) - 1, height**3 + height], -1)

    def random_point(self, n_samples=1, bound=1.0):
        angle = gs.random.rand(n_samples)
        return gs.stack([gs.cos(angle), gs.sin(angle), 0 * angle], -1)


class Degenerate(Torus):
    """A sphere whose submersion has rank zero, and whose to_tangent is oblique."""

    def submersion(self, point):
        return (gs.sum(point**2, axis=-1) - 1) ** 2

    def to_tangent(self, vector, base_point):
        normal = gs.sum(vector * base_point, axis=-1)[..., None]
        direction = base_point + 0.5 * base_point[..., [1, 2, 0]]
        along = gs.sum(direction * base_point, axis=-1)[..., None]
        return vector - normal / along * direction

    def random_point(self, n_samples=1, bound=1.0):
        point = gs.random.normal(size=(n_samples, 3))
        return point / gs.linalg.norm(point, axis=-1)[..., None]


class Paraboloid(Torus):
    """A level set that is not compact."""

    def submersion(self, point):
        return point[..., 2] - point[..., 0] ** 2 - point[..., 1] ** 2

    def random_point(self, n_samples=1, bound=1.0):
        flat = gs.random.rand(n_samples, 2)
        return gs.concatenate([flat, gs.sum(flat**2, axis=-1)[..., None]], -1)


class Doubled(RiemannianMetric):
    """Lengths twice those of the array."""

    def inner_product(self, tangent_vec_a, tangent_vec_b, base_point=None):
        return 4.0 * gs.sum(tangent_vec_a * tangent_vec_b, axis=-1)


class Uneven(RiemannianMetric):
    """A multiple of the product of arrays that is not the same everywhere."""

    def inner_product(self, tangent_vec_a, tangent_vec_b, base_point=None):
        axes = tuple(range(-self._space.point_ndim, 0))
        weight = 2.0 if base_point is None else 2.0 + gs.sum(base_point**2, axis=axes)
        return weight * gs.sum(tangent_vec_a * tangent_vec_b, axis=axes)


class HalfPlaneMetric(RiemannianMetric):
    """Poincare's, by its matrix."""

    def metric_matrix(self, base_point=None):
        return gs.einsum("...,ij->...ij", 1 / base_point[..., 1] ** 2, gs.eye(2))


class HalfPlane(VectorSpaceOpenSet):
    """The hyperbolic plane, of a user who does not know geomstats has it."""

    def __init__(self):
        super().__init__(dim=2, embedding_space=Euclidean(2))

    def default_metric(self):
        return HalfPlaneMetric

    def belongs(self, point, atol=0.0):
        return point[..., 1] > 0

    def projection(self, point):
        return gs.stack([point[..., 0], gs.abs(point[..., 1]) + 1e-6], -1)

    def random_point(self, n_samples=1, bound=1.0):
        return gs.random.rand(n_samples, 2) + 0.5


class FilledHalfPlane(HalfPlane):
    """The same with coordinates that fill the plane."""


@geometry.model.register(FilledHalfPlane)
def _(space):
    return geometry.Model(
        Euclidean(2),
        lambda x: torch.stack([x[..., 0], x[..., 1].log()], -1),
        lambda z: torch.stack([z[..., 0], z[..., 1].exp()], -1),
        isometric=False,
    )


class Bowl(ImmersedSet):
    """A paraboloid over the plane."""

    def __init__(self):
        super().__init__(dim=2)

    def _define_embedding_space(self):
        return Euclidean(3)

    def immersion(self, point):
        height = gs.sum(point**2, axis=-1) / 2
        return gs.stack([point[..., 0], point[..., 1], height], -1)


class FilledBowl(Bowl):
    """The same, said to be all of the plane."""


class SpherePatch(ImmersedSet):
    """Polar coordinates of the unit sphere."""

    def __init__(self):
        super().__init__(dim=2)

    def _define_embedding_space(self):
        return Euclidean(3)

    def immersion(self, point):
        polar, angle = point[..., 0], point[..., 1]
        radius = gs.sin(polar)
        return gs.stack([radius * gs.cos(angle), radius * gs.sin(angle), gs.cos(polar)], -1)


def torus_point(angles):
    """Points of angles (n, 2), round the axis and round the tube."""
    a, b = angles.unbind(-1)
    radius = MAJOR + MINOR * b.cos()
    return torch.stack([radius * a.cos(), radius * a.sin(), MINOR * b.sin()], -1)


def cosine(x):
    """Cosine of the angle round the tube; its mean is MINOR / (2 MAJOR)."""
    return (x[:, :2].norm(dim=-1) - MAJOR) / MINOR


def mean_and_error(values):
    """Sample mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def wave(x):
    """A field with no symmetry."""
    return torch.stack([(2 * x[:, 1]).sin(), x[:, 0] * x[:, 2], x[:, 0].exp()], -1)


def torus():
    """Projector, projection, volume, uniform law, divergence theorem, a Moser flow."""
    space = Torus()
    x = torus_point(6.3 * torch.rand(50, 2, dtype=torch.float64))
    centre = torch.cat([x[:, :2] / x[:, :2].norm(dim=-1, keepdim=True), 0 * x[:, 2:]], -1)
    normal = (x - centre) / MINOR
    vector = torch.randn(50, 3, dtype=torch.float64)
    tangent = vector - (vector * normal).sum(-1, keepdim=True) * normal
    basis = geometry.tangent_basis(space, x)
    uniform = geometry.random_uniform(space, 20_000, torch.Generator().manual_seed(0))
    nodes = geometry.quasi_uniform(space, 4096, seed=3)
    found = {
        "to_tangent": worst(geometry.to_tangent(space, vector, x) - tangent),
        "basis": worst(basis @ basis.mT - torch.eye(2)),
        "basis is tangent": worst((basis * normal.unsqueeze(1)).sum(-1)),
        "nearest": worst(geometry.projection(space, x + 1e-4 * normal) - x),
        "identity": worst(geometry.projection(space, x) - x),
        "off": float(geometry.constraint_residual(space, x + 0.1 * normal).min()),
        "batch": list(geometry.tangent_basis(space, x.reshape(5, 10, 3)).shape),
        "float32": str(geometry.to_tangent(space, vector.float(), x.float()).dtype),
        "derivative": worst(
            jvp(lambda y: geometry.projection(space, y), (x,), (vector,))[1] - tangent
        ),
        "log volume": geometry.log_volume(space),
        "error": log_volume_error(space),
        "uniform residual": float(geometry.constraint_residual(space, uniform).max()),
        "cosine": mean_and_error(cosine(uniform)),
        "quasi cosine": float(cosine(nodes).mean()),
        "repeats": len(uniform) - len(uniform.unique(dim=0)),
        "stokes": mean_and_error(gf.divergence(space, wave, nodes)),
        "square": geometry.log_volume(NFoldManifold(space, 2, equip=False)),
        "names": gf.available_distributions(space),
    }
    angles = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    data = torus_point(0.5 * angles.double())
    field = FourierField((3,), n_features=16, hidden=16, dtype=torch.float64)
    flow = gf.MoserFlow(space, field=field)
    flow.fit(data, max_steps=25, batch_size=128, progress=False, learning_rate=1e-2)
    grid = 2 * math.pi * torch.arange(120, dtype=torch.float64) / 120
    angles = torch.cartesian_prod(grid, grid)
    cell = (2 * math.pi / 120) ** 2 * MINOR * (MAJOR + MINOR * angles[:, 1].cos())
    with torch.no_grad():
        found["integral"] = float((flow.log_prob(torus_point(angles)).exp() * cell).sum())
        found["normalizer"] = flow.normalizer()
        found["gain"] = float((flow.log_prob(data) + found["log volume"]).mean())
        found["sample"] = mean_and_error(cosine(flow.sample(1000)))
        density = flow.log_prob(torus_point(angles)).exp() * cell
        found["sample cosine"] = float((density * angles[:, 1].cos()).sum())
    return found


def circle():
    """Codimension two and a metric of its own."""
    space = Circle()
    return {"log volume": geometry.log_volume(space), "error": log_volume_error(space)}


def refusals():
    """What level sets without the needed properties say."""
    found = {}
    for cls in (Degenerate, Paraboloid):
        try:
            geometry.log_volume(cls())
        except (TypeError, ValueError) as error:
            found[cls.__name__] = str(error)
    space = Degenerate()
    x = space.random_point(20)
    vector = torch.randn_like(x)
    tangent = vector - (vector * x).sum(-1, keepdim=True) * x
    found["oblique"] = worst(geometry.to_tangent(space, vector, x) - tangent)
    return found


def coordinates():
    """Open sets by their metric matrix, immersed sets by their immersion."""
    half, patch = HalfPlane(), SpherePatch()
    x = 0.5 + torch.rand(20, 2, dtype=torch.float64)
    y = x[:, 1]
    laplacian = gf.laplacian(half, lambda z: z[:, 0] ** 2 * z[:, 1] ** 3, x)
    moved = geometry.projection(half, -x)
    law = gf.WrappedNormal(FilledHalfPlane(), torch.tensor([0.2, 0.7]), scale=0.3)
    return {
        "volume": worst(geometry.log_volume_element(half, x) + 2 * y.log()),
        "laplacian": worst(laplacian - y**2 * (2 * y**3 + 6 * x[:, 0] ** 2 * y)),
        "outside": float(geometry.constraint_residual(half, -x).min()),
        "inside": float(geometry.constraint_residual(half, moved).max()),
        "compact": geometry.is_compact(half),
        "gram": worst(geometry.gram(patch, x) - patch.metric.metric_matrix(x)),
        "harmonic": worst(gf.laplacian(patch, lambda z: z[:, 0].cos(), x) + 2 * x[:, 0].cos()),
        "normal": gf.check_normalization(law, 10_000, torch.Generator().manual_seed(0)),
    }


def metrics():
    """Known spaces under a metric nobody registered."""
    spaces = {
        "R2": Euclidean(2, equip=False),
        "matrices": Matrices(2, 2, equip=False),
        "S2": Hypersphere(2, equip=False),
        "SO3": SpecialOrthogonal(3, equip=False),
        "SO2 vectors": SpecialOrthogonal(2, point_type="vector", equip=False),
        "SO3 vectors": SpecialOrthogonal(3, point_type="vector", equip=False),
    }
    found = {"names": {}, "gram": {}, "refused": []}
    for name, space in spaces.items():
        space.equip_with_metric(Uneven)
        found["names"][name] = gf.available_distributions(space)
        x = geometry.projection(space, torch.rand(10, *space.shape, dtype=torch.float64))
        weight = 2 + x.flatten(1).square().sum(-1)
        eye = torch.eye(space.dim, dtype=torch.float64)
        found["gram"][name] = worst(geometry.gram(space, x) - weight[:, None, None] * eye)
    plane = spaces["R2"]
    x = torch.rand(10, 2, dtype=torch.float64)
    for name in ("exp", "log", "dist"):
        try:
            getattr(geometry, name)(plane, x, x)
        except TypeError:
            found["refused"].append(name)
    found["area"] = geometry.log_volume(spaces["S2"])
    data = 0.5 * torch.randn(400, 2, dtype=torch.float64) + 1
    laws = [
        gf.WrappedNormal(plane).fit(data),
        gf.KernelDensity(plane, [0.3]).fit(data[:50]),
        gf.WrappedNormal(spaces["matrices"], scale=0.5, dtype=torch.float64),
    ]
    flow = gf.MoserFlow(plane)
    laws.append(flow.fit(data, max_steps=10, progress=False))
    seed = torch.Generator().manual_seed(0)
    found["integrals"] = [gf.check_normalization(law, 5000, seed) for law in laws]
    return found


def models():
    """What is said of coordinates without a model, and what one line makes of them."""
    found = {"names": gf.available_distributions(Bowl()), "errors": []}
    for cls in (gf.WrappedNormal, gf.KernelDensity, gf.MoserFlow):
        try:
            cls(Bowl())
        except TypeError as error:
            found["errors"].append(str(error))
    # the line of the message, run as it stands
    line = found["errors"][0].split("that is ")[1].split(", and laws")[0]
    line = line.replace("(Bowl)", "(FilledBowl)")
    exec(line, {"geometry": geometry, "Euclidean": Euclidean, "FilledBowl": FilledBowl})
    bowl = FilledBowl()
    found["filled"] = gf.available_distributions(bowl)
    law = gf.WrappedNormal(bowl, scale=0.7, dtype=torch.float64)
    x = law.sample(2000, generator=torch.Generator().manual_seed(0))
    square = x.square().sum(-1)
    flat = -0.5 * square / 0.49 - math.log(2 * math.pi * 0.49)
    found["density"] = worst(law.log_prob(x) - flat + 0.5 * square.log1p())
    flow = gf.MoserFlow(bowl).fit(x, max_steps=5, progress=False)
    found["flow"] = gf.check_normalization(flow, 5000, torch.Generator().manual_seed(0))
    return found


def worst(difference):
    """Largest absolute entry."""
    return float(difference.detach().abs().max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measures = (torus, circle, refusals, coordinates, metrics, models)
    print(json.dumps({measure.__name__: measure() for measure in measures}))
