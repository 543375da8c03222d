"""Kernels and normal laws of level sets: under geomstats' pytorch backend, as a script."""

import functools
import json
import math

import pytest
import torch
from conftest import run_under

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions.kernel_density import KernelMixture

WIDE, HIGH = 1.0, 1.4  # semi-axes of an ellipsoid of revolution


@functools.cache
def figures():
    """What this file prints as a script, in a process of its own."""
    return run_under("pytorch", __file__)


def test_kernels_are_normalised():
    for name, totals in figures()["kernels"].items():
        assert totals == pytest.approx([1] * len(totals), abs=2e-5), name


def test_wrapped_normals_are_normalised():
    found = figures()["normals"]
    # what is uniform rests on the estimate of the volume
    for total in found["totals"]:
        assert total == pytest.approx(1, abs=4 * found["volume error"] + 1e-4)
    assert found["small"] == pytest.approx(1, abs=1e-5)
    # the normal law of the tangent plane, where it is narrow
    assert found["narrow"] < 0.05
    # and the uniform one where it is wide
    assert found["wide"] < 0.02
    assert found["fitted"] > found["uniform"] + 0.3


def test_samples_have_the_density():
    for name, (score, residual) in figures()["samples"].items():
        assert score < 4.5, name
        assert residual < 1e-8, name


def test_separation():
    found = figures()["separation"]
    assert found["own"] == 0
    assert found["outside"] and found["beyond"]
    assert found["gradient"] < 1e-6
    assert found["finite"]


def test_every_metric_and_codimension():
    found = figures()["metrics"]
    assert found["doubled"] == pytest.approx(1, abs=1e-5)
    assert found["ring"] == pytest.approx(0.81, rel=0.01)  # of a circle of radius one
    assert found["curve"] == pytest.approx(1, abs=1e-5)
    # twice the lengths: the density a quarter, kernels of twice the bandwidth
    assert found["scaled"] < 1e-12
    assert found["bent"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_density_estimate(dtype):
    found = figures()[dtype]
    assert found["truth"] > found["uniform"] + 0.4
    assert found["truth"] - 0.06 < found["held out"] < found["truth"]
    assert abs(found["left out"] - found["held out"]) < 0.1
    assert found["total"] == pytest.approx(1, abs=2e-3)
    assert 1 / 2000 < found["uniform share"] < 0.1
    integral, error = found["checked"]
    assert abs(integral - 1) < 4 * error < 0.1
    # nothing of the surface has no density
    assert found["least"] > -30


def test_refusals():
    found = figures()["refusals"]
    assert found["names"] == []
    assert "unbounded" in found["Paraboloid"]
    assert found["sphere"] == found["sphere by hand"]


# The script --------------------------------------------------------------------------------


def _grid(n=300):
    """Angles (n^2, 2) of an ellipsoid's mesh and their cells."""
    angle = 2 * math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    polar = angle / 2
    grid = torch.cartesian_prod(polar, angle)
    slope = (WIDE**2 * grid[:, 0].cos() ** 2 + HIGH**2 * grid[:, 0].sin() ** 2).sqrt()
    return _point(grid), WIDE * grid[:, 0].sin() * slope * 2 * (math.pi / n) ** 2


def _point(angles):
    polar, angle = angles.unbind(-1)
    flat = WIDE * polar.sin()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), HIGH * polar.cos()], -1)


def _tilt(x):
    """Log of a density, up to a constant."""
    return 1.5 * x[:, 0] + 0.8 * x[:, 2]


def _random(n, generator):
    drawn = []
    while sum(map(len, drawn)) < n:
        u = torch.rand(40_000, 3, generator=generator, dtype=torch.float64)
        angles = torch.stack([math.pi * u[:, 0], 2 * math.pi * u[:, 1]], -1)
        slope = (WIDE**2 * angles[:, 0].cos() ** 2 + HIGH**2 * angles[:, 0].sin() ** 2).sqrt()
        x = _point(angles)
        weight = angles[:, 0].sin() * slope / HIGH * (_tilt(x) - 1.9).exp()
        assert weight.max() <= 1
        drawn.append(x[u[:, 2] < weight])
    return torch.cat(drawn)[:n]


def _measure():
    import geomstats.backend as gs
    from generic_spaces import Circle, Doubled, Paraboloid, Torus
    from geomstats.geometry.euclidean import Euclidean
    from geomstats.geometry.hypersphere import Hypersphere

    from geoflow_plugin.spaces.level_set_measure import log_volume_error

    class Ellipsoid(Torus):
        def submersion(self, point):
            flat = (point[..., 0] ** 2 + point[..., 1] ** 2) / WIDE**2
            return flat + point[..., 2] ** 2 / HIGH**2 - 1

        def random_point(self, n_samples=1, bound=1.0):
            return _point(3 * gs.random.rand(n_samples, 2))

    class Bent(Torus):  # codimension two, in R^4
        def _define_embedding_space(self):
            return Euclidean(4)

        def submersion(self, point):
            x, y, z, w = (point[..., k] for k in range(4))
            return gs.stack([x**2 + y**2 - 1, z**2 + (w - 0.3 * x**2) ** 2 - 0.5], -1)

        def random_point(self, n_samples=1, bound=1.0):
            return _bent(6.3 * gs.random.rand(n_samples, 2))

    def _bent(angles):
        a, b = angles.unbind(-1)
        height = 0.5**0.5 * b.sin() + 0.3 * a.cos() ** 2
        return torch.stack([a.cos(), a.sin(), 0.5**0.5 * b.cos(), height], -1)

    class Curve(Bent):  # three equations, one dimension
        def __init__(self):
            super(Torus, self).__init__(dim=1, equip=False)

        def submersion(self, point):
            x, y, z, w = (point[..., k] for k in range(4))
            return gs.stack([x**2 + y**2 - 1, z - 0.5 * x**2, w - 0.5 * x * y], -1)

        def random_point(self, n_samples=1, bound=1.0):
            return _curve(6.0 * gs.random.rand(n_samples))

    def _curve(t):
        x, y = torch.cos(t), torch.sin(t)
        return torch.stack([x, y, 0.5 * x**2, 0.5 * x * y], -1)

    def one(space, center, h):
        h = torch.tensor([h], dtype=center.dtype)
        return KernelMixture(space, center[None], h, torch.ones_like(h))

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    space, (nodes, cell) = Ellipsoid(), _grid()
    centers = _point(torch.tensor([[0.4, 0.0], [1.57, 2.0], [2.5, 1.0]], dtype=torch.float64))

    def total(law):
        return float((law._log_prob(nodes.to(law.dtype)).double().exp() * cell).sum())

    def sampled(law):
        x = law.sample(20_000, generator=generator)
        density = law._log_prob(nodes).exp() * cell
        parts = []
        for function in (lambda y: y, lambda y: (y - centers[1]).square()):
            off = function(x).mean(0) - (function(nodes) * density[:, None]).sum(0)
            parts.append(off.abs() / (function(x).std(0) / len(x) ** 0.5))
        residual = geometry.constraint_residual(space, x).max()
        return float(torch.cat(parts).max()), float(residual)

    laws = {h: [one(space, center, h) for center in centers] for h in (0.05, 0.15, 0.25)}
    normals = [gf.WrappedNormal(space, centers[1], s) for s in (0.1, 0.4, 20.0)]
    found = {
        "kernels": {str(h): [total(law) for law in laws[h]] for h in laws},
        "normals": {
            "totals": [total(law) for law in normals],
            "small": total(normals[0]),
            "volume error": log_volume_error(space),
        },
        "samples": {
            **{str(h): sampled(laws[h][1]) for h in laws},
            **{f"normal {k}": sampled(law) for k, law in enumerate(normals)},
        },
    }
    near = geometry.random_kernel(space, centers[1].expand(500, 3), torch.full((500,), 5e-3))
    narrow = gf.WrappedNormal(space, centers[1], 5e-3)
    squared = geometry.to_tangent(space, near - centers[1], centers[1].expand(500, 3))
    squared = squared.square().sum(-1)
    normal = -squared / 5e-5 - math.log(2 * math.pi * 2.5e-5)
    found["normals"]["narrow"] = float((narrow.log_prob(near) - normal).abs().max())
    uniform = -geometry.log_volume(space)
    found["normals"]["wide"] = float((normals[2].log_prob(nodes[::99]) - uniform).abs().max())

    squared, log_volume = geometry.kernel_separation(space, centers, centers)
    y = (centers[1:2] + torch.tensor([[0.05, 0.1, 0.1]])).requires_grad_()
    y = geometry.projection(space, y).detach()
    law = one(space, centers[1], 0.2)
    vector = geometry.to_tangent(space, torch.ones(1, 3, dtype=torch.float64), y)
    value, slope = torch.func.jvp(law._log_prob, (y,), (vector,))
    moved = [
        law._log_prob(geometry.projection(space, y + sign * 1e-5 * vector)) for sign in (1, -1)
    ]
    gradient = torch.func.grad(lambda x: laws[0.05][0]._log_prob(x).sum())(nodes[::999])
    beyond = nodes[(nodes - centers[1]).norm(dim=-1) > 2 * geometry.kernel_radius(space)]
    found["separation"] = {
        "own": float(squared.diagonal().abs().max()),
        "outside": bool(squared[0, 1].isinf()) and bool(log_volume.isfinite().all()),
        "beyond": bool(
            geometry.kernel_separation(space, beyond, centers[1:2])[0].isinf().all()
        ),
        "gradient": float((slope - (moved[0] - moved[1]) / 2e-5).abs().max()),
        "finite": bool(gradient.isfinite().all()),
    }

    doubled = Ellipsoid().equip_with_metric(Doubled)
    scaled = Ellipsoid()
    scaled.equip_with_metric(Doubled)
    scaled.metric = 4.0 * scaled.metric
    curve, bent = Curve(), Bent()
    t = 2 * math.pi * torch.arange(2000, dtype=torch.float64) / 2000
    velocity = torch.func.jvp(_curve, (t,), (torch.ones_like(t),))[1].norm(dim=-1)
    on_curve = one(curve, _curve(t[:1])[0], 0.1)._log_prob(_curve(t)).exp()
    pair = torch.cartesian_prod(t[::8], t[::8])
    axes = [torch.tensor([1.0, 0.0]).expand_as(pair), torch.tensor([0.0, 1.0]).expand_as(pair)]
    a, b = (torch.func.jvp(_bent, (pair,), (axis,))[1] for axis in axes)
    gram = a.square().sum(-1) * b.square().sum(-1) - (a * b).sum(-1).square()
    on_bent = one(bent, _bent(pair[9000:9001])[0], 0.15)._log_prob(_bent(pair)).exp()
    ring = Circle()
    found["metrics"] = {
        "doubled": 4 * total(one(doubled, centers[1], 0.15)),
        "scaled": float(
            (
                one(scaled, centers[1], 0.3).log_prob(nodes)
                + math.log(4)
                - one(doubled, centers[1], 0.15).log_prob(nodes)
            )
            .nan_to_num(0)
            .abs()
            .max()
        ),
        "curve": float((on_curve * velocity).sum() * 2 * math.pi / 2000),
        "bent": float((on_bent * gram.sqrt()).sum() * (2 * math.pi / 250) ** 2),
        "ring": geometry.kernel_radius(ring),
    }

    log_total = torch.logsumexp(_tilt(nodes) + cell.log(), 0)
    data, test = _random(1000, generator), _random(1500, generator)
    bunch = geometry.random_kernel(space, centers[2].expand(400, 3), torch.full((400,), 0.15))
    fitted = gf.WrappedNormal(space, dtype=torch.float64).fit(bunch)
    found["normals"] |= {"fitted": float(fitted.log_prob(bunch).mean()), "uniform": uniform}
    for dtype in (torch.float32, torch.float64):
        estimate = gf.KernelDensity(space).fit(data.to(dtype))
        checked = gf.check_normalization(estimate, 2000, generator)
        found[str(dtype).split(".")[1]] = {
            "truth": float((_tilt(test) - log_total).mean()),
            "uniform": uniform,
            "held out": float(estimate.log_prob(test.to(dtype)).mean()),
            "left out": -float(estimate.loss(data.to(dtype))),
            "total": 5
            * float(
                (estimate._log_prob(nodes[2::5].to(dtype)).double().exp() * cell[2::5]).sum()
            ),
            "uniform share": estimate.uniform,
            "checked": checked,
            "least": float(estimate.log_prob(nodes[::97].to(dtype)).min()),
        }

    class Mine(Hypersphere):
        """A user's own class of something known keeps its closed forms."""

    sphere = Mine(2)
    x = geometry.random_uniform(sphere, 5, generator, dtype=torch.float64)
    squared = geometry.kernel_separation(sphere, x, x)[0]
    found["refusals"] = {
        "names": [n for n in gf.available_distributions(Paraboloid()) if "kernel" in n],
        "sphere": float(squared.sum()),
        "sphere by hand": float(geometry.squared_chord(sphere, x, x).sum()),
    }
    try:
        gf.KernelDensity(Paraboloid())
    except TypeError as error:
        found["refusals"]["Paraboloid"] = str(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_measure()))
