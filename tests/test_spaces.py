"""Every row of the catalogue under the conformance suite, and against geomstats."""

import contextlib
import math
import re
from pathlib import Path

import geomstats.backend as gs
import normflows as nf
import numpy as np
import pytest
import torch
from catalogue import BANDWIDTHS, CATALOGUE, REFUSED

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.spaces import klein_bottle, rotation_vector
from geoflow_plugin.testing import check_distribution, check_space

rows_of_catalogue = pytest.mark.parametrize("name", CATALOGUE)
# where geomstats 2.8.0 has no inner product to compare with: it raises on batches or on
# matrices of one entry, or (the diagonal normal laws) takes the variances of tangent vectors
# for standard deviations
NO_ORACLE = ["SO2 vectors", "SE2 vectors", "SE3 vectors", "DiagonalNormalDistributions(2)"]
NO_ORACLE += ["Siegel(1)"]


def base_law(space, dtype=torch.float64, scale=0.5):
    if geometry.is_compact(space):
        return gf.Uniform(space, dtype=dtype)
    return gf.WrappedNormal(space, scale=scale, dtype=dtype)


@rows_of_catalogue
def test_the_laws_of_geometry_hold(name, device):
    check_space(CATALOGUE[name](), n=24, n_samples=2000, device=device)


@rows_of_catalogue
def test_the_laws_of_geometry_hold_in_float32(name):
    check_space(CATALOGUE[name](), n=12, n_samples=500, dtype=torch.float32)


@rows_of_catalogue
def test_inner_products_and_volume_are_those_of_geomstats(name):
    if name in NO_ORACLE:
        pytest.skip("geomstats 2.8.0 has no working inner product here")
    space = CATALOGUE[name]()
    generator = torch.Generator().manual_seed(0)
    x = base_law(space).sample(5, generator=generator)
    basis = geometry.tangent_basis(space, x)
    dim, as_own = geometry.dim(space), getattr(space, "to_complex", lambda array: array)
    gram = np.empty((5, dim, dim))
    for k in range(5):
        point = as_own(x[k].numpy())
        vectors = [as_own(vector.numpy()) for vector in basis[k]]
        for i in range(dim):
            for j in range(dim):
                product = space.metric.inner_product(vectors[i], vectors[j], point)
                gram[k, i, j] = float(np.asarray(product).reshape(-1)[0].real)
    np.testing.assert_allclose(geometry.gram(space, x).numpy(), gram, rtol=1e-6, atol=1e-8)
    volume = 0.5 * np.linalg.slogdet(gram)[1]
    ours = geometry.log_volume_element(space, x).numpy()
    np.testing.assert_allclose(ours, volume, rtol=0, atol=1e-6)


@rows_of_catalogue
def test_geomstats_accepts_our_points(name):
    space = CATALOGUE[name]()
    x = base_law(space).sample(8, generator=torch.Generator().manual_seed(1))
    assert np.all(space.belongs(x.numpy(), atol=1e-6))


@rows_of_catalogue
@pytest.mark.parametrize("law", ["base", "kernel_density"])
def test_bases_are_distributions(name, law, device):
    space = CATALOGUE[name]()
    distribution = base_law(space).to(device)
    if law == "kernel_density":
        if not gf.KernelDensity.supports(space):
            pytest.skip("no kernel with a known normaliser on this space")
        generator = torch.Generator(device).manual_seed(2)
        X = distribution.sample(24, generator=generator)
        distribution = gf.KernelDensity(space, BANDWIDTHS.get(name, [0.2, 0.4])).fit(X)
    check_distribution(distribution, n=200)


@rows_of_catalogue
def test_a_short_fit_of_a_moser_flow(name, device):
    space = CATALOGUE[name]()
    torch.manual_seed(0)
    X = base_law(space, torch.float32, scale=0.3).to(device).sample(64)
    field = gf.networks.SourceField(space, n_sources=16, dtype=torch.float32)
    flow = gf.MoserFlow(space, field=field)
    flow.fit(X, max_steps=20, progress=False, device=device)
    generator = torch.Generator(device).manual_seed(0)
    x = flow.sample(200, generator=generator)
    size = 1 + x.flatten(1).norm(dim=1)
    assert float((geometry.constraint_residual(space, x) / size).max()) < 1e-4
    integral, error = gf.check_normalization(flow, 1000, generator)
    assert abs(integral - 1) < 4 * error + 1e-3


@contextlib.contextmanager
def silent_backend():
    """Inside, every function of geomstats' backend raises."""

    def refuse(*args, **kwargs):
        raise AssertionError("geomstats' backend was called")

    patch = pytest.MonkeyPatch()
    for attribute in dir(gs):
        value = getattr(gs, attribute)
        if callable(value) and not isinstance(value, type) and attribute[0] != "_":
            patch.setattr(gs, attribute, refuse)
    try:
        yield
    finally:
        patch.undo()


def test_the_silent_backend_is_silent():
    with silent_backend(), pytest.raises(AssertionError, match="backend was called"):
        gs.eye(2)


def use_everything(space, law):
    x = law.sample(6)
    law.log_prob(x)
    geometry.gram(space, x)
    geometry.log_volume_element(space, x)
    geometry.sharp(space, geometry.to_tangent(space, x, x), x)
    for function in (geometry.exp, geometry.log, geometry.dist):
        with contextlib.suppress(UnsupportedError):
            function(space, x.clone(), x)
    with contextlib.suppress(UnsupportedError):
        geometry.kernel_separation(space, x, x)
        geometry.random_kernel(space, x, torch.full((6,), 0.1, dtype=x.dtype))
    field = gf.networks.SourceField(space, n_sources=4, dtype=torch.float64)
    gf.divergence(space, field, x)


@rows_of_catalogue
def test_nothing_calls_the_backend_of_geomstats(name):
    space = CATALOGUE[name]()
    law = base_law(space)
    # known spaces that stand behind this one are made on first use, once and for all
    use_everything(space, law)
    with silent_backend():
        use_everything(space, law)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_name(name):
    make, reason = REFUSED[name]
    if make is None:
        return
    with pytest.raises(TypeError, match="space") as caught:
        space = make()
        base_law(space).sample(2)
    assert type(space).__name__.strip("_") in str(caught.value) or re.search(
        reason, str(caught.value)
    )


def test_the_table_has_every_row():
    table = (Path(__file__).parent.parent / "docs" / "spaces.md").read_text()
    missing = [name for name in [*CATALOGUE, *REFUSED] if f"| {name} |" not in table]
    assert not missing


@pytest.mark.parametrize(
    "name", ["SPDMatrices(2) affine", "SPDMatrices(2) Bures-Wasserstein", "PoincareBall(2)"]
)
def test_normflows_models_are_densities_through_a_chart(name):
    space = CATALOGUE[name]()
    torch.manual_seed(0)
    dim = space.dim
    flows = []
    for _ in range(2):
        net = nf.nets.MLP([dim // 2 + dim % 2, 16, 2 * (dim // 2)], init_zeros=False)
        flows += [nf.flows.AffineCouplingBlock(net), nf.flows.LULinearPermute(dim)]
    base = nf.distributions.DiagGaussian(dim, trainable=False)
    model = nf.NormalizingFlow(base, [*flows, gf.layers.Chart(space)]).double()
    wide = gf.WrappedNormal(space, scale=1.5, dtype=torch.float64)
    with torch.no_grad():
        x = wide.sample(20_000, generator=torch.Generator().manual_seed(0))
        weight = (model.log_prob(x) - wide.log_prob(x)).exp()
        drawn, log_prob = model.sample(50)
        torch.testing.assert_close(model.log_prob(drawn), log_prob, atol=1e-5, rtol=1e-5)
    error = float(weight.std()) / len(x) ** 0.5
    assert error < 0.05
    assert abs(float(weight.mean()) - 1) < 4 * error
    assert bool(geometry.belongs(space, drawn).all())


ISOMETRIES = {
    "S1 as SO2": (
        "S1",
        "SO2",
        lambda x: torch.stack([x[:, 0], -x[:, 1], x[:, 1], x[:, 0]], dim=-1).reshape(-1, 2, 2),
    ),
    "Stiefel(3, 1) as S2": ("Stiefel(3, 1)", "S2", lambda x: x[:, :, 0]),
}


@pytest.mark.parametrize("pair", ISOMETRIES)
def test_isometric_spaces_have_the_same_volume_and_distances(pair):
    first, second, carry = ISOMETRIES[pair]
    first, second = CATALOGUE[first](), CATALOGUE[second]()
    assert math.isclose(geometry.log_volume(first), geometry.log_volume(second))
    generator = torch.Generator().manual_seed(3)
    x = gf.Uniform(first, dtype=torch.float64).sample(20, generator=generator)
    field = gf.networks.SourceField(second, n_sources=8, dtype=torch.float64)

    def carried(y):
        # the field of the second space, pulled back by the linear isometry
        _, pullback = torch.func.vjp(carry, y)
        scale = geometry.metric_scale(second) if second.shape != (3,) else 1.0
        return pullback(scale * field(carry(y)))[0]

    ours = gf.divergence(first, carried, x)
    expected = gf.divergence(second, field, carry(x))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


# spaces whose arrays are not one-to-one with points -> the same space where they are
SEAMS = {
    "SO3 vectors": (lambda: CATALOGUE["SO3"](), rotation_vector.matrix_from_vector),
    "KleinBottle": (klein_bottle.EmbeddedKleinBottle, klein_bottle.embed),
}


@pytest.mark.parametrize("name", SEAMS)
def test_flows_do_not_know_of_seams(name):
    """The same field gives the same density in coordinates with a seam and without."""
    space = CATALOGUE[name]()
    make, carry = SEAMS[name]
    smooth = make()
    generator = torch.Generator().manual_seed(4)
    x = gf.Uniform(space, dtype=torch.float64).sample(20, generator=generator)
    for field in (
        gf.networks.FourierField(smooth.shape, generator=generator, dtype=torch.float64),
        gf.networks.SourceField(smooth, 8, generator=generator, dtype=torch.float64),
    ):
        with torch.no_grad():
            for parameter in field.parameters():
                parameter += 0.05
        ours = gf.MoserFlow(space, field=field).ratio(x)
        torch.testing.assert_close(ours, gf.MoserFlow(smooth, field=field).ratio(carry(x)))
