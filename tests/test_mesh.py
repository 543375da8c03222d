"""Triangle meshes: geometry, Stokes' theorem, and densities that integrate to one."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_mean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.product_manifold import ProductManifold
from test_examples import DATA, check_picture, run
from torch.func import jacfwd, jvp, vmap

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.calculus import value_and_divergence
from geoflow_plugin.spaces.mesh import MeshSurface

MESHES = Path(os.environ.get("GEOFLOW_DATA", DATA)) / "meshes"
TETRAHEDRON = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
FACES = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def icosphere(level):
    """Vertices and faces of an icosahedron, each face cut in four, level times."""
    golden = (1 + 5**0.5) / 2
    half = np.array([[0, a, b * golden] for a in (-1, 1) for b in (-1, 1)])
    vertices = np.concatenate([np.roll(half, k, axis=1) for k in range(3)])
    gap = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    near = np.abs(gap - 2) < 1e-9
    faces = [
        (i, j, k) if np.linalg.det(vertices[[i, j, k]]) > 0 else (i, k, j)
        for i in range(12)
        for j in range(i)
        for k in range(j)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    vertices, faces = list(vertices / np.linalg.norm(vertices[0])), np.array(faces)
    for _ in range(level):
        middle, parts = {}, []

        def between(i, j, middle=middle):
            key = min(i, j), max(i, j)
            if key not in middle:
                middle[key] = len(vertices)
                sum_ = vertices[i] + vertices[j]
                vertices.append(sum_ / np.linalg.norm(sum_))
            return middle[key]

        for i, j, k in faces:
            a, b, c = between(j, k), between(k, i), between(i, j)
            parts += [(i, c, b), (c, j, a), (b, a, k), (a, b, c)]
        faces = np.array(parts)
    return np.array(vertices), faces


@pytest.fixture(scope="module")
def rough():
    """A sphere with bumps: faces of many sizes, and edges that are sharp."""
    vertices, faces = icosphere(2)
    bumps = 1 + 0.1 * np.random.default_rng(0).normal(size=(len(vertices), 1))
    return MeshSurface(vertices * bumps, faces)


def field(seed=0, size=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = gf.networks.FourierField((3,), max_frequency=2.0, generator=generator, dtype=dtype)
    torch.nn.init.normal_(made.out.weight, 0, size, generator=generator)
    return made


# The mesh --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (TETRAHEDRON[:, :2], FACES, r"vertices: expected shape"),
        ([["a"] * 3] * 4, FACES, "vertices: expected an array"),
        (TETRAHEDRON * np.nan, FACES, "vertices: expected finite"),
        (TETRAHEDRON, FACES.astype(float), "faces: expected integers"),
        (TETRAHEDRON, FACES[:, :2], "faces: expected integers"),
        (TETRAHEDRON, FACES + 1, "faces: expected indices"),
        (TETRAHEDRON, FACES - 1, "faces: expected indices"),
        (TETRAHEDRON, FACES[:3], "closed manifold.*3 edges are in one"),
        (TETRAHEDRON, np.concatenate([FACES, FACES]), "more than two"),
        (TETRAHEDRON, np.concatenate([FACES[:3], FACES[3:, ::-1]]), "one orientation"),
        (TETRAHEDRON * [1, 0, 0], FACES, "without an area"),
    ],
)
def test_what_is_no_closed_mesh_is_refused(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        MeshSurface(vertices, faces)


def test_two_fans_at_one_vertex_are_refused():
    faces = np.concatenate([FACES, np.where(FACES == 0, 0, FACES + 3)])
    vertices = np.concatenate([TETRAHEDRON, 2 - TETRAHEDRON[1:]])
    with pytest.raises(ValueError, match="7 vertices have 8 fans"):
        MeshSurface(vertices, faces)


@pytest.mark.skipif(not MESHES.is_dir(), reason="no meshes; set GEOFLOW_DATA")
def test_files(tmp_path):
    pytest.importorskip("trimesh")
    bunny = MeshSurface.from_file(MESHES / "bunny_2502.obj.gz")
    assert bunny.vertices.shape == (2502, 3) and len(bunny.faces) == 5000
    spot = MeshSurface.from_file(MESHES / "spot.obj.gz")  # with texture coordinates
    assert spot.vertices.shape == (2930, 3) and len(spot.faces) == 5856
    (tmp_path / "spot.obj").write_bytes(gzip.open(MESHES / "spot.obj.gz").read())
    again = MeshSurface.from_file(tmp_path / "spot.obj")
    assert again.areas.sum() == spot.areas.sum()
    with pytest.raises(ValueError, match="223 edges are in one"):
        MeshSurface.from_file(MESHES / "bun_zipper.ply.gz")


def test_area_and_volume():
    side = 8**0.5
    mesh = MeshSurface(TETRAHEDRON, FACES)
    assert math.exp(geometry.log_volume(mesh)) == pytest.approx(3**0.5 * side**2)
    vertices, faces = icosphere(3)
    assert math.exp(geometry.log_volume(MeshSurface(vertices, faces))) == pytest.approx(
        4 * math.pi, rel=1e-2
    )


def test_nearest_face_is_that_of_brute_force(rough):
    x = torch.randn(300, 3, dtype=torch.float64)
    x = torch.cat([x, 30 * x[:50], geometry.random_uniform(rough, 300, dtype=x.dtype)])
    # an oracle that knows no triangles: the best point of a fine grid on each face
    share = torch.linspace(0, 1, 25, dtype=x.dtype)
    a, b = torch.meshgrid(share, share, indexing="ij")
    weight = torch.stack([a, b, 1 - a - b], -1)[a + b <= 1 + 1e-9]
    grid = (weight @ rough.vertices[rough.faces]).reshape(-1, 3)
    brute = torch.cdist(x, grid, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    gap = (geometry.projection(rough, x) - x).norm(dim=1)
    assert bool((gap <= brute + 1e-9).all())
    assert bool((gap >= brute - 0.06).all())  # half a cell of the largest face


def test_points_and_tangents(rough):
    x = geometry.random_uniform(rough, 200, dtype=torch.float64)
    assert float(geometry.constraint_residual(rough, x).max()) < 1e-12
    assert torch.allclose(geometry.projection(rough, x), x)
    basis = geometry.tangent_basis(rough, x)
    assert torch.allclose(basis @ basis.mT, torch.eye(2, dtype=x.dtype).expand(200, 2, 2))
    v = torch.randn_like(x)
    tangent = geometry.to_tangent(rough, v, x)
    assert torch.allclose((basis.mT @ (basis @ v[..., None])).squeeze(-1), tangent)
    # a small step along the face stays on it, nearly always
    inner = geometry.constraint_residual(rough, x + 1e-6 * tangent) < 1e-12
    assert inner.double().mean() > 0.99
    assert rough.belongs(x.numpy()).all() and not rough.belongs(1.1 * x.numpy()).any()
    assert rough.is_tangent(tangent.numpy(), x.numpy()).all()
    assert rough.is_tangent(tangent, x).all() and not rough.is_tangent(v, x).any()
    assert rough.random_point().shape == (3,) and rough.random_point(5).shape == (5, 3)


def test_transforms_pass_through_the_search(rough):
    x = 1.01 * geometry.random_uniform(rough, 6, dtype=torch.float64)
    project = lambda p: geometry.projection(rough, p)  # noqa: E731
    assert torch.allclose(vmap(project)(x.reshape(2, 3, 3)).reshape(6, 3), project(x))
    v, step = torch.randn_like(x), 1e-6
    change = jvp(project, (x,), (v,))[1]
    difference = (project(x + step * v) - project(x - step * v)) / (2 * step)
    assert torch.allclose(change, difference, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_points(rough, device, dtype):
    generator = torch.Generator(device).manual_seed(0)
    law = gf.Uniform(rough, dtype=dtype).to(device)
    x = law.sample(20_000, generator=generator)
    assert x.dtype == dtype and x.device.type == device.type
    mean = (rough.areas[:, None] * rough.centroids).sum(0) / rough.areas.sum()
    assert_mean(x.cpu().double(), mean)
    corners = rough.vertices[rough.faces]
    # moments of second degree of a triangle, exactly
    square = (corners.square().sum(1) + 9 * corners.mean(1).square()) / 12
    square = (rough.areas[:, None] * square).sum(0) / rough.areas.sum()
    assert_mean(x.cpu().double().square(), square)
    assert law.log_prob(x).double().exp().mean() * rough.areas.sum() == pytest.approx(1)


# Fields ----------------------------------------------------------------------------------


def test_divergence_integrates_to_zero(rough):
    divergence = gf.divergence(rough, field(), rough.centroids).detach()
    assert float((divergence * rough.areas).abs().sum()) > 1
    assert abs(float((divergence * rough.areas).sum())) < 1e-12


def test_divergence_is_that_of_the_field_returned(rough):
    x = geometry.random_uniform(rough, 500, dtype=torch.float64)
    made = field()
    vector, divergence = value_and_divergence(rough, made, x)
    assert torch.allclose(geometry.to_tangent(rough, vector, x), vector)
    few = value_and_divergence(rough, made, x[:20])  # edges of these faces alone
    assert torch.allclose(few[0], vector[:20]) and torch.allclose(few[1], divergence[:20])

    def value(point):
        return value_and_divergence(rough, made, point[None])[0][0]

    basis = geometry.tangent_basis(rough, x[:5])
    derivative = torch.stack([jacfwd(value)(point) for point in x[:5]])
    assert torch.allclose((basis @ derivative @ basis.mT).diagonal(0, 1, 2).sum(1), few[1][:5])


def test_divergence_is_exact_where_the_mesh_is_flat():
    # a box whose top and bottom are squares of many faces: inside them nothing is lost
    n = 6
    grid = np.stack(np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij"), -1)
    grid = np.concatenate([grid, np.zeros((n + 1, n + 1, 1))], -1).reshape(-1, 3)
    index = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    up = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    rim = np.concatenate([index[:-1, 0], index[-1, :-1], index[:0:-1, -1], index[0, :0:-1]])
    after, m = np.roll(rim, -1), len(grid)
    walls = [np.stack(t, -1) for t in ((rim, rim + m, after + m), (rim, after + m, after))]
    faces = np.concatenate([up, (up + m)[:, ::-1], *walls])
    box = MeshSurface(np.concatenate([grid + [0, 0, 1], grid]), faces)

    def linear(x):
        return torch.stack([x[:, 0] + x[:, 1], 3 * x[:, 1], x[:, 2]], dim=1)

    inner = (box.centroids[:, :2] - n / 2).abs().amax(1) < n / 2 - 1
    assert int(inner.sum()) == 4 * (n - 2) ** 2
    vector, divergence = value_and_divergence(box, linear, box.centroids[inner])
    assert torch.allclose(divergence, torch.full_like(divergence, 4))
    constant = value_and_divergence(box, torch.ones_like, box.centroids[inner])[0]
    assert torch.allclose(constant, constant.new_tensor([1.0, 1, 0]).expand_as(constant))


def test_shape_of_a_field(rough):
    with pytest.raises(ValueError, match="field: expected vectors"):
        gf.divergence(rough, lambda x: x[:, :2], rough.centroids)


# Densities -------------------------------------------------------------------------------


def test_flow_converges_to_that_of_the_sphere():
    sphere, worst, variation = Hypersphere(2), [], []
    made = field()  # of which a good part is normal to the sphere
    for level in (1, 2, 3, 4):
        mesh = MeshSurface(*icosphere(level))
        x = geometry.projection(sphere, mesh.centroids)
        with torch.no_grad():
            on_sphere = gf.MoserFlow(sphere, field=made).ratio(x)
            error = (gf.MoserFlow(mesh, field=made).ratio(mesh.centroids) - on_sphere).abs()
        assert float(on_sphere.std()) > 0.1
        worst.append(float(error.max()))
        variation.append(0.5 * float((error * mesh.areas).sum() / mesh.areas.sum()))
    for errors in (variation, worst):  # halving the edges halves them
        assert all(b < 0.65 * a for a, b in zip(errors, errors[1:], strict=False)), errors
    assert variation[-1] < 5e-4 and worst[-1] < 5e-3


def test_a_field_that_is_normal_to_a_sphere_moves_nothing():
    mesh = MeshSurface(*icosphere(2))
    vector, divergence = value_and_divergence(mesh, lambda x: 3 * x, mesh.centroids)
    assert float(vector.abs().max()) < 1e-12 and float(divergence.abs().max()) < 1e-12


@pytest.mark.parametrize("size", [0.02, 0.5])
def test_flow_is_normalised(rough, size):
    flow = gf.MoserFlow(rough, field=field(size=size))
    with torch.no_grad():
        share = rough.areas / rough.areas.sum()
        ratio = flow.ratio(rough.centroids)
        assert abs(float((ratio * share).sum()) - 1) < 1e-12
        exact = float((flow._positive_part(ratio) * share).sum())
        estimate, error = flow.normalizer()
        integral = (flow.log_prob(rough.centroids).exp() * rough.areas).sum()
        assert abs(float(integral) - 1) < 1e-6
    assert (estimate == 1) == (float(ratio.min()) > flow.floor)
    assert abs(estimate - exact) < 1e-9 and error == 0
    if size > 0.1:
        assert flow.negative_mass() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fit_and_sample(rough, dtype):
    x = gf.Uniform(rough, dtype=dtype).sample(6000)
    x = x[x[:, 2] > 0.3]
    flow = gf.MoserFlow(rough, field=field(size=1e-3, dtype=dtype))
    options = {"max_steps": 150, "batch_size": 256, "learning_rate": 1e-2}
    flow.fit(x[500:], validation=None, progress=False, **options)
    with torch.no_grad():
        test = -float(flow.log_prob(x[:500]).mean())
    assert test < geometry.log_volume(rough) - 0.4
    # the sampler and the density agree face by face
    drawn = flow.sample(20_000)
    count = torch.bincount(rough.nearest_face(drawn), minlength=len(rough.faces)).double()
    with torch.no_grad():
        mass = flow.log_prob(rough.centroids.to(dtype)).double().exp() * rough.areas
    expected = 20_000 * mass / mass.sum()
    common = expected > 5
    assert common.sum() > 50
    # the rare faces as one
    count = torch.cat([count[common], count[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    chi_squared = float(((count - expected).square() / expected).sum())
    freedom = len(count) - 1
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_mesh_obeys_the_laws(rough):
    figures = gf.testing.check_space(rough, n=16)
    assert figures["divergence obeys the product rule"] is None
    assert figures["Stokes' theorem"] <= 4


def test_what_rests_on_smoothness_is_refused(rough):
    flow = gf.MoserFlow(rough)
    with pytest.raises(TypeError, match="base: expected the uniform one"):
        gf.MoserFlow(rough, base=flow)
    with pytest.raises(TypeError, match="moser_flow: its vector field jumps"):
        flow.transport()
    with pytest.raises(TypeError, match="wrapped_normal|model"):
        gf.WrappedNormal(rough, dtype=torch.float64).log_prob(rough.centroids)
    product = ProductManifold([rough, Hypersphere(1)], equip=False)
    with pytest.raises(TypeError, match="mesh among its factors"):
        gf.divergence(product, lambda x: x, geometry.random_uniform(product, 3))
    assert "wrapped_normal" not in gf.available_distributions(rough)


# Eigenfunctions of the surface itself ------------------------------------------------------


def test_eigenvalues_are_those_of_the_sphere():
    mesh = MeshSurface(*icosphere(3))
    values, functions = mesh.eigenfunctions(15)
    assert torch.allclose(values[:3], torch.full((3,), 2.0).double(), rtol=1e-3)
    assert torch.allclose(values[3:8], torch.full((5,), 6.0).double(), rtol=1e-2)
    assert torch.allclose(values[8:], torch.full((7,), 12.0).double(), rtol=3e-2)
    # the first three are linear functions of the array
    fit = torch.linalg.lstsq(mesh.vertices, functions[:, :3])
    assert (mesh.vertices @ fit.solution - functions[:, :3]).abs().max() < 1e-3
    mass = torch.zeros(len(mesh.vertices)).double()
    mass.index_add_(0, mesh.faces.flatten(), mesh.areas.repeat_interleave(3) / 3)
    eye = torch.eye(15).double()
    assert torch.allclose(functions.mT @ (mass[:, None] * functions), eye, atol=1e-10)


def test_sparse_and_dense_eigenfunctions_agree(monkeypatch):
    mesh = MeshSurface(*icosphere(2))
    dense = mesh.eigenfunctions(20)[0]
    monkeypatch.setattr("geoflow_plugin.spaces.mesh_spectrum._DENSE", 10)
    assert torch.allclose(mesh.eigenfunctions(20)[0], dense, atol=1e-9)
    # on two copies each comes twice, and no constant is among them
    both = torch.cat([mesh.vertices, mesh.vertices + torch.tensor([3.0, 0, 0])])
    two = MeshSurface(both, torch.cat([mesh.faces, mesh.faces + len(mesh.vertices)]))
    twice = two.eigenfunctions(40)[0]
    assert torch.allclose(twice, dense.repeat_interleave(2), atol=1e-9)


def test_a_mesh_has_as_many_eigenfunctions_as_vertices():
    vertices = np.concatenate([TETRAHEDRON, [[9.0, 9, 9]]])  # one belongs to no face
    values, functions = MeshSurface(vertices, FACES).eigenfunctions(100)
    assert len(values) == 3 and functions.shape == (5, 3)
    assert not functions[4].any()
    with pytest.raises(ValueError, match="n: expected an integer >= 1"):
        MeshSurface(TETRAHEDRON, FACES).eigenfunctions(0)


def _spectral(mesh, dtype=torch.float64, n=30):
    made = gf.networks.EigenfunctionField(mesh, n, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draw = torch.randn(n, generator=generator, dtype=torch.float64)
        made.scaled_coefficients.copy_(draw / 30)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_of_a_spectral_field_is_its_series(rough, device, dtype):
    made = _spectral(rough, dtype).to(device)
    centroids = rough.centroids.to(device, dtype)
    value = gf.divergence(rough, made, centroids)
    _, functions = rough.eigenfunctions(30)
    mean = functions[rough.faces].mean(1) * rough.areas.sum().sqrt()
    expected = -mean @ made.coefficients.detach().cpu().double()
    atol = 1e-9 if dtype == torch.float64 else 1e-3
    assert value.dtype == dtype
    assert torch.allclose(value.detach().cpu().double(), expected, atol=atol)
    total = (value.detach().cpu().double() * rough.areas).sum()
    assert abs(total) < (1e-12 if dtype == torch.float64 else 1e-4)
    # the field itself is tangent, and carries what it says through the edges
    vector, _ = value_and_divergence(rough, made, centroids)
    assert torch.equal(made(centroids), vector)
    normal = rough.tables(centroids).normal
    assert (vector * normal).sum(-1).abs().max() < atol


def test_spectral_flows_do_not_see_motions(rough):
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    moved = MeshSurface(rough.vertices @ turn.mT + 1.0, rough.faces)
    x = gf.Uniform(rough, dtype=torch.float64).sample(2000)
    x = x[x[:, 2] > 0]
    values = []
    for mesh, points in ((rough, x), (moved, x @ turn.mT + 1.0)):
        flow = gf.MoserFlow(mesh, field=gf.networks.EigenfunctionField(mesh, 40).double())
        flow.fit(points, max_steps=1, learning_rate=1e-9, progress=False, seed=0)
        values.append(flow.log_prob(points).detach())
    assert torch.allclose(*values, atol=1e-5)


def test_starting_from_diffused_data(rough):
    x = gf.Uniform(rough).sample(2000, generator=torch.Generator().manual_seed(0))
    everywhere, half = x, x[x[:, 2] > 0.3]
    made = gf.networks.EigenfunctionField(rough, 40)
    made.initialize(half)
    flow = gf.MoserFlow(rough, field=made)
    own = gf.Uniform(rough).sample(4000, generator=torch.Generator().manual_seed(1))
    own = own[own[:, 2] > 0.3]
    share = float(rough.areas[rough.centroids[:, 2] > 0.3].sum() / rough.areas.sum())
    gain = float(flow.log_prob(own).detach().mean()) + geometry.log_volume(rough)
    assert 0.5 * -math.log(share) < gain < -1.1 * math.log(share)
    # where nothing is to be seen, next to nothing is
    made.initialize(everywhere)
    assert made.coefficients.norm() < 0.2


def test_a_spectral_field_knows_its_mesh(rough, tmp_path):
    other = MeshSurface(TETRAHEDRON, FACES)
    made = _spectral(rough)
    with pytest.raises(ValueError, match="field: expected one of this mesh, which has 6"):
        gf.divergence(other, made, other.centroids)
    with pytest.raises(TypeError, match="no torch-native smooth_fluxes for .*Hypersphere"):
        gf.networks.EigenfunctionField(Hypersphere(2))
    with pytest.raises(ValueError, match="n_eigenfunctions: expected an integer >= 1"):
        gf.networks.EigenfunctionField(other, 0)
    flow = gf.MoserFlow(rough, field=made)
    flow.save(tmp_path / "flow.gf")
    again = gf.load(tmp_path / "flow.gf")
    assert torch.equal(again.log_prob(rough.centroids), flow.log_prob(rough.centroids))


def test_default_field(rough):
    x = gf.Uniform(rough).sample(3000, generator=torch.Generator().manual_seed(0))
    x = x[x[:, 2] > 0.3]
    rough.equip_with_distribution("moser")
    flow = rough.distribution.fit(x[300:], max_steps=50, progress=False)
    assert isinstance(flow.field, gf.networks.EigenfunctionField)
    share = float(rough.areas[rough.centroids[:, 2] > 0.3].sum() / rough.areas.sum())
    gained = float(flow.log_prob(x[:300]).detach().mean()) + geometry.log_volume(rough)
    assert 0.7 * -math.log(share) < gained < -1.1 * math.log(share)


# Pictures and the example ----------------------------------------------------------------


def test_picture(rough):
    plt = pytest.importorskip("matplotlib.pyplot")
    from geoflow_plugin.plotting import plot_density

    plt.switch_backend("Agg")
    flow = gf.MoserFlow(rough, field=field())
    x = gf.Uniform(rough).sample(50)
    ax = plot_density(flow, x)
    ax.figure.canvas.draw()
    faces = ax.collections[0]
    log_prob = flow.log_prob(rough.centroids).detach().numpy()
    assert np.allclose(faces.get_array(), log_prob.clip(min=log_prob.max() - 8))
    plt.close("all")


@pytest.mark.skipif(not MESHES.is_dir(), reason="no meshes; set GEOFLOW_DATA")
def test_example(tmp_path):
    pytest.importorskip("trimesh")
    result = run(tmp_path, "mesh.py", "--steps", "5", "--points", "2000", data=DATA)
    assert result.returncode == 0, result.stderr
    rows = dict(line.split()[:2] for line in result.stdout.splitlines()[1:5])
    assert float(rows["entropy"]) < float(rows["MoserFlow"]) < float(rows["uniform"])
    check_picture(tmp_path / "mesh.png")
