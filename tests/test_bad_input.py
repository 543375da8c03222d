"""Whatever is wrong with an argument, the error says which argument it is."""

import math

import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from conftest import make_space, points
from geomstats.geometry.hpd_matrices import HPDMatrices
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.product_manifold import ProductManifold

import geoflow_plugin as gf
from geoflow_plugin import geometry

REFUSED = (TypeError, ValueError)
NAN, INF = math.nan, math.inf


class Field(torch.nn.Module):
    """A field without parameters."""

    def forward(self, x):
        return x.sin().flip(0)


def refuses(argument):
    """Expect a TypeError or ValueError whose message names the argument."""
    return pytest.raises(REFUSED, match=rf"(?<![\w.]){argument}\b")


# Points -------------------------------------------------------------------------------


def _with(value):
    def spoil(x):
        x = x.clone()
        x.view(-1)[1] = value
        return x

    return spoil


SPOILED = {
    "off the manifold": lambda x: 1.1 * x,
    "a little off": lambda x: x + 1e-2,
    "zero": lambda x: 0 * x,
    "nan": _with(NAN),
    "inf": _with(INF),
    "one point": lambda x: x[0],
    "one axis too many": lambda x: x[None],
    "a coordinate too many": lambda x: torch.cat([x, x[..., :1]], dim=-1),
    "a coordinate too few": lambda x: x[..., :-1],
    "a number": lambda x: x.view(-1)[0],
    "empty": lambda x: x[:0],
    "integers": lambda x: x.long(),
    "booleans": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "a list": lambda x: x.tolist(),
    "None": lambda x: None,
    "a string": lambda x: "points",
    "integer array": lambda x: x.long().numpy(),
    "array off the manifold": lambda x: 1.1 * x.numpy(),
    "array of objects": lambda x: np.array(["a", "b"], dtype=object),
}


def _wrapped_normal(space):
    return gf.WrappedNormal(space, dtype=torch.float32)


def _kernels(space):
    x = points(space, 5, torch.float32)
    return gf.KernelDensity(space, bandwidth=0.5).fit(x)


def _mixture(space):
    return gf.Mixture(space, [_wrapped_normal(space), _kernels(space)])


def _moser(space):
    base = _wrapped_normal(space)
    return gf.MoserFlow(space, base=base, field=Field())


def _sum(x):
    return x.flatten(1).sum(1)


TAKES_POINTS = {
    "WrappedNormal.log_prob": ("x", lambda s, x: _wrapped_normal(s).log_prob(x)),
    "KernelDensity.log_prob": ("x", lambda s, x: _kernels(s).log_prob(x)),
    "Mixture.log_prob": ("x", lambda s, x: _mixture(s).log_prob(x)),
    "MoserFlow.log_prob": ("x", lambda s, x: _moser(s).log_prob(x)),
    "WrappedNormal.loss": ("x", lambda s, x: _wrapped_normal(s).loss(x)),
    "MoserFlow.loss": ("x", lambda s, x: _moser(s).loss(x)),
    "KernelDensity.fit": ("X", lambda s, x: gf.KernelDensity(s).fit(x)),
    "Mixture.fit": ("X", lambda s, x: _mixture(s).fit(x)),
    "MoserFlow.fit": (
        "X",
        lambda s, x: gf.MoserFlow(s).fit(x, max_steps=1, progress=False),
    ),
    "validation of fit": (
        "validation",
        lambda s, x: gf.MoserFlow(s).fit(
            points(s, 9), validation=x, max_steps=1, progress=False
        ),
    ),
    "divergence": ("points", lambda s, x: gf.divergence(s, Field(), x)),
    "gradient": ("points", lambda s, x: gf.gradient(s, _sum, x)),
    "laplacian": ("points", lambda s, x: gf.laplacian(s, _sum, x)),
    "MoserTransport.forward": ("z", lambda s, x: _moser(s).transport().forward(x)),
    "MoserTransport.inverse": ("z", lambda s, x: _moser(s).transport().inverse(x)),
    "check_points": ("y", lambda s, x: geometry.check_points(s, x, "y")),
}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("call", TAKES_POINTS)
@pytest.mark.parametrize("name", ["S2", "SO3", "T2", "S2xSO3"])
def test_bad_points(name, call, spoiled):
    argument, function = TAKES_POINTS[call]
    if call == "validation of fit" and spoiled == "None":
        pytest.skip("validation=None is an option")
    space = make_space(name)
    x = points(space, 4, torch.float32)
    with refuses(argument):
        function(space, SPOILED[spoiled](x))


@pytest.mark.parametrize("call", TAKES_POINTS)
def test_bad_points_of_euclidean_space(call):
    argument, function = TAKES_POINTS[call]
    space = make_space("R3")
    x = points(space, 4, torch.float32)
    for name in ("nan", "inf", "one point", "a coordinate too many", "empty"):
        with refuses(argument):
            function(space, SPOILED[name](x))


@pytest.mark.parametrize("name", ["S2", "SO3", "T2", "S2xSO3", "R3"])
@pytest.mark.parametrize("make", [_wrapped_normal, _kernels, _mixture, _moser])
def test_points_of_another_dtype(make, name):
    space = make_space(name)
    distribution = make(space)
    for call in (distribution.log_prob, distribution.loss):
        with refuses("x"):
            call(points(space, 4, torch.float64))
        with refuses("x"):
            call(points(space, 4, torch.float16))
    with refuses("x"):
        distribution.double().log_prob(points(space, 4, torch.float32))


@pytest.mark.parametrize("name", ["S2", "SO3", "T2"])
def test_points_of_uniform(name):
    space = make_space(name)
    x = points(space, 4, torch.float32)
    for spoil in SPOILED.values():
        with refuses("x"):
            gf.Uniform(space, dtype=torch.float32).log_prob(spoil(x))


def test_reflections_are_off_the_rotations():
    space = make_space("SO3")
    x = -points(space, 4)
    with pytest.raises(ValueError, match="points: .*constraint residual"):
        gf.divergence(space, Field(), x)


def test_an_error_says_how_far_off_and_what_to_type():
    space = make_space("S2")
    x = 1.25 * points(space, 4)
    with pytest.raises(ValueError, match=r"x: .*0\.25.*geometry\.projection"):
        gf.Uniform(space, dtype=x.dtype).log_prob(x)


@pytest.mark.parametrize("spoiled", sorted(set(SPOILED) - {"one point"}))
def test_bad_means(spoiled):
    space = make_space("S2")
    mean = points(space, 2, torch.float32)[0]
    value = SPOILED[spoiled](mean)
    if spoiled in ("a list", "None"):
        pytest.skip("lists of floats are means, and None is the default")
    with refuses("mean"):
        gf.WrappedNormal(space, mean=value)


# Coordinates --------------------------------------------------------------------------


@pytest.mark.parametrize("spoiled", SPOILED)
def test_chart_inverse_of_bad_points(spoiled):
    space = make_space("T2")
    x = points(space, 4, torch.float32)
    with refuses("z"):
        gf.layers.Chart(space).inverse(SPOILED[spoiled](x))


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(4, 3),
        torch.zeros(2),
        torch.zeros(4, 2, 2),
        torch.full((4, 2), NAN),
        torch.full((4, 2), INF),
        torch.zeros(4, 2, dtype=torch.long),
        torch.zeros(4, 2, dtype=torch.complex64),
        [[0.0, 0.0]],
        None,
        "angles",
    ],
    ids=[
        "a coordinate too many",
        "one row",
        "one axis too many",
        "nan",
        "inf",
        "integers",
        "complex",
        "a list",
        "None",
        "a string",
    ],
)
def test_chart_of_bad_coordinates(z):
    with refuses("z"):
        gf.layers.Chart(make_space("T2")).forward(z)


@pytest.mark.parametrize("name", ["S2", "S4", "SO3", "S2xSO3"])
def test_no_chart_without_one(name):
    with refuses("space"):
        gf.layers.Chart(make_space(name))


# Spaces -------------------------------------------------------------------------------

NO_SPACES = {
    "string": lambda: "sphere",
    "None": lambda: None,
    "number": lambda: 2,
    "class": lambda: Hypersphere,
    "complex matrices": lambda: HPDMatrices(2),
    "intrinsic": lambda: Hypersphere(2, intrinsic=True),
}


def _some_points(space):
    shape = () if isinstance(space, type) else getattr(space, "shape", ())
    return torch.zeros(3, *(shape or (3,)))


TAKES_SPACE = {
    "Uniform": gf.Uniform,
    "WrappedNormal": gf.WrappedNormal,
    "KernelDensity": gf.KernelDensity,
    "Mixture": lambda s: gf.Mixture(s, [gf.Uniform(make_space("S2"))]),
    "MoserFlow": gf.MoserFlow,
    "Chart": gf.layers.Chart,
    "divergence": lambda s: gf.divergence(s, Field(), _some_points(s)),
    "gradient": lambda s: gf.gradient(s, _sum, _some_points(s)),
    "laplacian": lambda s: gf.laplacian(s, _sum, _some_points(s)),
    "random_uniform": lambda s: geometry.random_uniform(s, 3),
    "equip by name": lambda s: gf.equip_with_distribution(s, "uniform"),
    "equip by class": lambda s: gf.equip_with_distribution(s, gf.Uniform),
}


@pytest.mark.parametrize("make", NO_SPACES.values(), ids=NO_SPACES)
@pytest.mark.parametrize("call", TAKES_SPACE.values(), ids=TAKES_SPACE)
def test_unknown_spaces(call, make):
    with refuses("space"):
        call(make())


@pytest.mark.parametrize("make", [gf.Uniform, geometry.random_uniform])
def test_nothing_is_uniform_on_euclidean_space(make):
    arguments = (3,) if make is geometry.random_uniform else ()
    with refuses("space"):
        make(make_space("R3"), *arguments)


# Counts and other numbers -------------------------------------------------------------


@pytest.mark.parametrize("n", [-1, True, False, 1.5, "3", None, [3]], ids=repr)
@pytest.mark.parametrize("make", [_wrapped_normal, _kernels, _mixture, _moser])
def test_bad_numbers_of_samples(make, n):
    distribution = make(make_space("S2"))
    for call in (distribution.sample, distribution):
        with refuses("num_samples"):
            call(n)


@pytest.mark.parametrize("n", [-1, 0, 1, True, 1.5, "3", None], ids=repr)
def test_bad_sizes_of_a_normalization_check(n):
    with refuses("n"):
        gf.check_normalization(_wrapped_normal(make_space("S2")), n)


@pytest.mark.parametrize("n", [-1, True, 1.5, "3", None], ids=repr)
def test_bad_numbers_of_uniform_points(n):
    with refuses("n"):
        geometry.random_uniform(make_space("S2"), n)
    with refuses("n"):
        geometry.quasi_uniform(make_space("S2"), n)


@pytest.mark.parametrize(
    "generator", [3, "seed", np.random.default_rng(0)], ids=["number", "str", "numpy"]
)
@pytest.mark.parametrize("make", [_wrapped_normal, _kernels, _mixture, _moser])
def test_bad_generators(make, generator):
    distribution = make(make_space("S2"))
    for call in (distribution.sample, distribution):
        with refuses("generator"):
            call(2, generator=generator)


@pytest.mark.parametrize("value", ["gauss", None, Field(), 3], ids=repr)
def test_check_normalization_of_no_distribution(value):
    with refuses("distribution"):
        gf.check_normalization(value, 100)


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, NAN, INF, "wide", [1.0, 2.0], 1j, None], ids=repr
)
def test_bad_scales(scale):
    with refuses("scale"):
        gf.WrappedNormal(make_space("S2"), scale=scale)


@pytest.mark.parametrize(
    "bandwidth", [0.0, -1.0, NAN, INF, [], [0.1, -0.1], "wide", 1j, [None]], ids=repr
)
def test_bad_bandwidths(bandwidth):
    with refuses("bandwidth"):
        gf.KernelDensity(make_space("S2"), bandwidth=bandwidth)


def test_kernel_density_needs_points_first():
    kernels = gf.KernelDensity(make_space("S2"), dtype=torch.float64)
    x = points(make_space("S2"), 3)
    for call in (
        lambda: kernels.log_prob(x),
        lambda: kernels.sample(2),
        lambda: kernels.bandwidths,
        lambda: kernels.weights,
        lambda: kernels.loss(x),
    ):
        with pytest.raises(ValueError, match=r"fit\(X\)"):
            call()
    with refuses("X"):
        kernels.fit(x[:1])


@pytest.mark.parametrize("components", [[], None, 3, ["uniform"], [None]], ids=repr)
def test_bad_components(components):
    with refuses("components"):
        gf.Mixture(make_space("S2"), components)


def test_components_on_another_space():
    with refuses("components"):
        gf.Mixture(make_space("S2"), [_wrapped_normal(make_space("S4"))])


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [1.0, NAN], [1.0, INF], "ab", 3, [None] * 2],
    ids=repr,
)
def test_bad_weights(weights):
    space = make_space("S2")
    parts = [_wrapped_normal(space), _kernels(space)]
    with refuses("weights"):
        gf.Mixture(space, parts, weights=weights)


# MoserFlow ----------------------------------------------------------------------------

MOSER = {
    "base": ["uniform", 3, Field()],
    "field": ["mlp", 3, lambda x: x],
    "floor": [0, 1, -0.1, 2.0, NAN, "small", None, True],
    "normalizer_tolerance": [0, 1, -0.1, NAN, "small", None, True],
}


@pytest.mark.parametrize(
    "argument, value", [(name, v) for name, values in MOSER.items() for v in values]
)
def test_bad_arguments_of_moser_flow(argument, value):
    with refuses(argument):
        gf.MoserFlow(make_space("S2"), **{argument: value})


def test_a_base_on_another_space():
    with refuses("base"):
        gf.MoserFlow(make_space("S2"), base=_wrapped_normal(make_space("S4")))


def test_a_field_of_the_wrong_shape():
    space = make_space("S2")
    flow = gf.MoserFlow(space, field=torch.nn.Linear(3, 2))
    with refuses("field"):
        flow.log_prob(points(space, 3, torch.float32))


FIT = {
    "max_steps": [0, -1, 1.5, True, "many"],
    "batch_size": [0, -1, 1.5, True, "many", None],
    "learning_rate": [0, -1.0, NAN, INF, "small", None],
    "validation": [1.0, -0.1, 2, NAN, "some"],
    "patience": [-1, 1.5, "some"],
    "seed": [1.5, "seed"],
    "device": ["nowhere"],
}


@pytest.mark.parametrize(
    "argument, value", [(name, v) for name, values in FIT.items() for v in values]
)
def test_bad_arguments_of_fit(argument, value):
    space = make_space("S2")
    x = points(space, 8, torch.float32)
    options = {"max_steps": 1, "progress": False, argument: value}
    with refuses(argument):
        gf.MoserFlow(space).fit(x, **options)


def test_too_few_points_to_fit():
    space = make_space("S2")
    for n, validation in ((1, None), (2, 0.5), (1, 0.1)):
        x = points(space, 2, torch.float32)[:n]
        with refuses("X"):
            gf.MoserFlow(space).fit(x, validation=validation, progress=False)


# Equipping ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["gauss", "", None, 3, Field(), int], ids=repr)
def test_bad_distributions_to_equip_with(value):
    space = make_space("S2")
    with refuses("distribution"):
        space.equip_with_distribution(value)
    assert not hasattr(space, "distribution")


def test_distributions_of_another_space_and_superfluous_arguments():
    space = make_space("S2")
    with refuses("distribution"):
        space.equip_with_distribution(_wrapped_normal(make_space("S2")))
    with refuses("distribution"):
        space.equip_with_distribution(_wrapped_normal(space), scale=2.0)
    assert not hasattr(space, "distribution")


@pytest.mark.parametrize("name", [None, 3, "", gf.Uniform], ids=repr)
def test_bad_names_to_register(name):
    with refuses("name"):
        gf.register_distribution(name)


def test_names_that_are_taken():
    with refuses("name"):
        gf.register_distribution("uniform")(gf.WrappedNormal)


@pytest.mark.parametrize("value", [int, Field, "class"], ids=repr)
def test_registering_what_is_no_distribution(value):
    with pytest.raises(TypeError, match="log_prob"):
        gf.register_distribution("no distribution")(value)
    with refuses("distribution"):
        make_space("S2").equip_with_distribution("no distribution")


DECOMPOSED = ["FullRankCorrelationMatrices(3) off-log", "RankKPSDMatrices(3, 2)", "product"]


@pytest.mark.parametrize("value", [NAN, INF, 1e300])
@pytest.mark.parametrize("name", DECOMPOSED)
def test_points_that_cannot_be_decomposed_are_refused(name, value):
    if name == "product":
        factors = [Hypersphere(2), CATALOGUE[DECOMPOSED[0]]()]
        space = ProductManifold(factors)
    else:
        space = CATALOGUE[name]()
    x = gf.WrappedNormal(space, scale=0.3, dtype=torch.float64).sample(5)
    geometry.check_points(space, x)
    x[0] = value
    message = "expected points on" if math.isfinite(value) else "expected finite points"
    with pytest.raises(ValueError, match=f"x: {message}"):
        geometry.check_points(space, x)
