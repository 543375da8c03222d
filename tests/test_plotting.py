"""Pictures show the density they are given, on the Axes they are given."""

import math

import matplotlib
import normflows as nf
import numpy as np
import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

import geoflow_plugin as gf
from geoflow_plugin.plotting import plot_density

matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

CIRCLE = Hypersphere(1)
MAPS = {
    "sphere": (Hypersphere(2), "mollweide"),
    "torus": (NFoldManifold(CIRCLE, 2), "rectilinear"),
    "product": (ProductManifold([CIRCLE, CIRCLE]), "rectilinear"),
    "plane": (Euclidean(2), "rectilinear"),
}


@pytest.fixture(autouse=True)
def no_figures():
    plt.close("all")
    yield
    plt.close("all")


def points_on(space, n=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    mean = gf.geometry.origin(space).to(dtype)
    return gf.WrappedNormal(space, mean, 0.5).sample(n, generator=generator)


def parts(ax):
    """Map, markers (or None) and colour bar of a drawn Axes."""
    quads = [c for c in ax.collections if hasattr(c, "colorbar") and c.colorbar]
    markers = [c for c in ax.collections if c not in quads]
    return quads[0], markers[0] if markers else None, quads[0].colorbar


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAPS)
def test_map(name, dtype):
    space, projection = MAPS[name]
    points = points_on(space, dtype=dtype)
    density = gf.KernelDensity(space, bandwidth=0.1).fit(points)
    ax = plot_density(density, points.numpy(), resolution=24)
    ax.figure.canvas.draw()
    quads, markers, bar = parts(ax)
    assert ax.name == projection
    assert len(plt.get_fignums()) == 1
    assert np.isfinite(quads.get_array()).all()
    assert len(markers.get_offsets()) == len(points)
    assert bar.ax.get_ylabel() == "log density (nats)"
    assert bar.extend == "min"
    assert np.ptp(quads.get_clim()) == pytest.approx(8)


def test_colours_are_the_log_density_where_they_stand():
    # a von Mises-Fisher law at 0 N, 90 E: highest there, and known everywhere
    space = Hypersphere(2)
    center = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    density = gf.KernelDensity(space, bandwidth=1.0).fit(center)
    ax = plot_density(density, center, resolution=20)
    quads, markers, _ = parts(ax)
    values = np.asarray(quads.get_array()).reshape(20, 40)
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert row in (9, 10) and column in (29, 30)
    torch.testing.assert_close(
        torch.as_tensor(markers.get_offsets()[0]),
        torch.tensor([math.pi / 2, 0.0], dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )
    longitude, latitude = math.pi / 40, -math.pi / 40  # cell 20 along, 9 up
    point = [
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    ]
    expected = density.log_prob(torch.tensor([point]))
    assert values[9, 20] == pytest.approx(float(expected), abs=1e-5)


def test_map_integrates_to_one():
    space, _ = MAPS["torus"]
    density = gf.KernelDensity(space, bandwidth=1.0).fit(points_on(space))
    quads, _, bar = parts(plot_density(density, resolution=40))
    assert bar.extend == "neither"
    cell = (2 * math.pi / 40) ** 2
    assert float(np.exp(quads.get_array()).sum()) * cell == pytest.approx(1, abs=1e-3)


def test_circle_is_a_curve_that_integrates_to_one():
    density = gf.KernelDensity(CIRCLE, bandwidth=0.3).fit(points_on(CIRCLE))
    ax = plot_density(density, points_on(CIRCLE))
    angle, height = ax.lines[0].get_data()
    assert np.sum(height) * (angle[1] - angle[0]) == pytest.approx(1, abs=1e-4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("angle", "density")
    assert len(ax.lines[1].get_xdata()) == 40


def test_given_axes_are_used_and_pyplot_is_left_alone():
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot(projection="hammer")
    density = gf.Uniform(Hypersphere(2))
    state = torch.get_rng_state()
    assert plot_density(density, ax=ax, resolution=8) is ax
    assert not plt.get_fignums()
    assert torch.equal(torch.get_rng_state(), state)
    quads, markers, bar = parts(ax)
    assert markers is None and bar.extend == "neither"
    np.testing.assert_allclose(quads.get_array(), -math.log(4 * math.pi), rtol=1e-6)


def test_plane_without_points_finds_its_window():
    space = Euclidean(2)
    center = torch.tensor([100.0, -50.0])
    state = torch.get_rng_state()
    ax = plot_density(gf.WrappedNormal(space, center, 0.1), resolution=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert ax.get_xlim()[0] < 99.9 < 100.1 < ax.get_xlim()[1]
    assert ax.get_xlim()[1] - ax.get_xlim()[0] < 2


def test_normflows_model():
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [])
    ax = plot_density(model, space=Euclidean(2), resolution=8)
    assert np.isfinite(parts(ax)[0].get_array()).all()


@pytest.mark.parametrize(
    "space", [Hypersphere(3), SpecialOrthogonal(3), NFoldManifold(CIRCLE, 3),
              NFoldManifold(Hypersphere(2), 2), Euclidean(3)]
)  # fmt: skip
def test_other_spaces_are_refused_by_name(space):
    density = gf.WrappedNormal(space)
    with pytest.raises(TypeError, match=rf"{type(space).__name__}.*supported are"):
        plot_density(density)
    assert not plt.get_fignums()


def test_wrong_projection_and_wrong_points():
    density = gf.Uniform(Hypersphere(2))
    ax = matplotlib.figure.Figure().add_subplot()
    with pytest.raises(ValueError, match="ax: .*mollweide.*rectilinear"):
        plot_density(density, ax=ax)
    with pytest.raises(ValueError, match="points: expected points on Hypersphere"):
        plot_density(density, np.ones((2, 3)))
    with pytest.raises(ValueError, match="resolution"):
        plot_density(density, resolution=1)
    assert not plt.get_fignums()
