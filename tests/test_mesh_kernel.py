"""Kernels on triangle meshes: integrals, draws and density estimates."""

import math

import numpy as np
import pytest
import torch
from conftest import assert_mean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.product_manifold import ProductManifold
from test_mesh import FACES, TETRAHEDRON, icosphere

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.distributions.kernel_density import KernelMixture
from geoflow_plugin.spaces.mesh import MeshSurface


@pytest.fixture(scope="module")
def rough():
    """A mesh of faces of all sizes and shapes, that is not convex."""
    vertices, faces = icosphere(2)
    stretch = np.random.default_rng(0).uniform(0.75, 1.2, size=(len(vertices), 1))
    return MeshSurface(vertices * stretch * [1, 1, 1.5], faces)


def quadrature(space, times):
    """Centroids and areas of the faces, each cut in four, some times."""
    corners = space.tables(torch.zeros((), dtype=torch.float64)).corners
    for _ in range(times):
        a, b, c = corners.unbind(1)
        d, e, f = (b + c) / 2, (c + a) / 2, (a + b) / 2
        parts = [(a, f, e), (f, b, d), (e, d, c), (d, e, f)]
        corners = torch.cat([torch.stack(part, 1) for part in parts])
    sides = corners[:, 1:] - corners[:, :1]
    return corners.mean(1), 0.5 * torch.linalg.cross(*sides.unbind(1)).norm(dim=-1)


def one(space, center, h):
    """A kernel by itself."""
    h = torch.tensor([h], dtype=center.dtype)
    return KernelMixture(space, center[None], h, torch.ones_like(h))


@pytest.mark.parametrize("name, times", [("rough", 5), ("tetrahedron", 8), ("sphere", 3)])
@pytest.mark.parametrize("h", [0.07, 0.2, 0.6, 3.0])
def test_integrals_against_a_fine_quadrature(name, times, h, rough):
    made = {
        "rough": lambda: rough,
        "tetrahedron": lambda: MeshSurface(TETRAHEDRON, FACES),
        "sphere": lambda: MeshSurface(*icosphere(3)),
    }
    space = made[name]()
    nodes, areas = quadrature(space, times)
    centers = geometry.random_uniform(space, 8, dtype=torch.float64)
    on_edges = space.tables(centers).nodes[:2, 0]
    centers = torch.cat([centers, on_edges, space.vertices[:2]])
    value = geometry.log_kernel_integral(space, torch.tensor([h]), centers)
    squared = (nodes - centers[:, None]).square().sum(-1)
    expected = ((-0.5 * squared / h**2).exp() * areas).sum(1).log()
    # the rule of the expectation is of second order
    spacing = float(areas.max())
    atol = 1e-5 + 0.1 * spacing / h**2
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=atol)
    assert atol < 5e-3


def test_integrals_of_narrow_kernels_in_a_face_on_an_edge_at_a_corner(rough):
    tables = rough.tables(torch.zeros((), dtype=torch.float64))
    corners = tables.corners[7]
    places = torch.stack([corners.mean(0), corners[:2].mean(0)])
    h = torch.tensor([[1e-3], [1e-6]], dtype=torch.float64)
    value = geometry.log_kernel_integral(rough, h, places).exp()
    disc = (2 * math.pi * h.square()).expand(2, 2)
    torch.testing.assert_close(value / disc, torch.ones(2, 2, dtype=torch.float64))
    # at a corner, the share of its angles in a full turn
    vertex = int(rough.faces[7, 0])
    total = 0.0
    for face in rough.faces[(rough.faces == vertex).any(1)]:
        others = rough.vertices[[v for v in face.tolist() if v != vertex]]
        a, b = others - rough.vertices[vertex]
        total += float(torch.acos(a @ b / a.norm() / b.norm()))
    value = geometry.log_kernel_integral(rough, h[1:], rough.vertices[vertex][None])
    assert float(value.exp() / h[1] ** 2) == pytest.approx(total, rel=1e-6)


def test_each_center_may_have_a_bandwidth_of_its_own(rough):
    centers = geometry.random_uniform(rough, 4, dtype=torch.float64)
    h = torch.tensor([[0.1, 0.2, 0.4, 0.8]], dtype=torch.float64)
    own = geometry.log_kernel_integral(rough, h, centers)
    shared = geometry.log_kernel_integral(rough, h.mT, centers)
    torch.testing.assert_close(own[0], shared.diagonal())


@pytest.mark.parametrize("h", [0.01, 0.1, 0.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_density(rough, h, dtype):
    generator = torch.Generator().manual_seed(2)
    corners = rough.tables(torch.zeros((), dtype=torch.float64)).corners
    center = 0.9 * corners[5, 0] + 0.1 * corners[5, 1]
    law = one(rough, center.to(dtype), h)
    x = law.sample(5000, generator=generator)
    assert x.dtype == dtype
    assert geometry.belongs(rough, x).all()
    nodes, areas = quadrature(rough, 6 if h > 0.05 else 0)
    if h > 0.05:
        weight = law._log_prob(nodes.to(dtype)).double().exp() * areas
        assert float(weight.sum()) == pytest.approx(1, abs=1e-3)
        for moment in (lambda y: y, lambda y: (y - center).square()):
            mean = (moment(nodes) * weight[:, None]).sum(0) / weight.sum()
            assert_mean(moment(x.double()), mean, sigmas=4.5, floor=1e-4)
    else:  # |y - c|^2 / 2 h^2 is exponential where the surface is all but flat
        assert_mean((x.double() - center).square().sum(-1)[None].T / (2 * h**2), 1.0, sigmas=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_estimate(rough, dtype):
    generator = torch.Generator().manual_seed(0)

    def tilt(x):
        return 1.2 * x[:, 0] + x[:, 2]

    nodes, areas = quadrature(rough, 4)
    log_total = torch.logsumexp(tilt(nodes) + areas.log(), 0)
    x = geometry.random_uniform(rough, 40_000, generator, dtype=torch.float64)
    kept = torch.rand(len(x), generator=generator) < (tilt(x) - tilt(nodes).max()).exp()
    x = x[kept].to(dtype)
    data, test = x[:800], x[800:2800]
    assert len(test) == 2000
    estimate = gf.KernelDensity(rough).fit(data)
    held_out = float(estimate.log_prob(test).mean())
    truth = float((tilt(test.double()) - log_total).mean())
    assert truth > -geometry.log_volume(rough) + 0.3
    assert truth - 0.08 < held_out < truth + 0.01
    assert abs(float(estimate.loss(data)) + held_out) < 0.1
    assert estimate.uniform == 0
    total = (estimate._log_prob(nodes[::3].to(dtype)).double().exp() * areas[::3]).sum()
    share = areas[::3].sum() / areas.sum()
    assert float(total / share) == pytest.approx(1, abs=0.01)
    integral, error = gf.check_normalization(estimate, 3000, generator)
    assert abs(integral - 1) < 4 * error < 0.1


def test_normalisation_by_quadrature(rough):
    nodes, areas = quadrature(rough, 4)
    centers = geometry.random_uniform(rough, 20, dtype=torch.float64)
    law = gf.KernelDensity(rough, bandwidth=[0.1, 0.5]).fit(centers)
    total = (law._log_prob(nodes).exp() * areas).sum()
    assert float(total) == pytest.approx(1, abs=2e-3)
    assert "kernel_density" in gf.available_distributions(rough)
    field = gf.networks.FourierField((3,), n_features=16, hidden=16)
    flow = gf.MoserFlow(rough, field=field)
    integral, error = gf.check_normalization(flow, 3000, torch.Generator().manual_seed(0))
    assert abs(integral - 1) < 4 * error < 0.2


def test_products_with_a_mesh(rough):
    space = ProductManifold([rough, Hypersphere(1)], equip=False)
    x = geometry.random_uniform(space, 30, dtype=torch.float64)
    law = gf.KernelDensity(space, bandwidth=0.5).fit(x)
    angle = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    nodes, areas = quadrature(rough, 2)
    pairs = nodes[:, None].expand(-1, 64, 3), circle.expand(len(nodes), 64, 2)
    points = torch.cat(pairs, dim=-1)
    density = law._log_prob(points.reshape(-1, 5)).exp().reshape(len(nodes), 64).sum(1)
    assert float((density * areas).sum() * 2 * math.pi / 64) == pytest.approx(1, abs=5e-3)
    assert geometry.belongs(space, law.sample(50)).all()
