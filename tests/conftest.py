"""Spaces, points and fixtures that every test file shares."""

import json
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.nfold_manifold import NFoldManifold, NFoldMetric
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.special_orthogonal import SpecialOrthogonal

# workers of pytest-xdist, and what they start, share the cores
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "geoflow",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=10,
    print_blob=True,
    # the `space` and `device` fixtures are the same for every example
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("geoflow")


def _scaled_torus():
    space = NFoldManifold(Hypersphere(1), 2, equip=False)
    return space.equip_with_metric(NFoldMetric, scales=[1.0, 2.0])


def _doubled_sphere():
    space = Hypersphere(2)
    space.metric = 2.0 * space.metric
    return space


_MAKE = {
    "S1": lambda: Hypersphere(1),
    "S2": lambda: Hypersphere(2),
    "S4": lambda: Hypersphere(4),
    "T2": lambda: NFoldManifold(Hypersphere(1), 2),
    "T3": lambda: NFoldManifold(Hypersphere(1), 3),
    "S1xS1": lambda: ProductManifold([Hypersphere(1), Hypersphere(1)]),
    "SO2": lambda: SpecialOrthogonal(2),
    "SO3": lambda: SpecialOrthogonal(3),
    "SO4": lambda: SpecialOrthogonal(4),
    "R3": lambda: Euclidean(3),
    "S2xSO3": lambda: ProductManifold([Hypersphere(2), SpecialOrthogonal(3)]),
    "T2 scales 1, 2": _scaled_torus,
    "S2 doubled": _doubled_sphere,
}
NAMES = list(_MAKE)
COMPACT = [name for name in NAMES if name != "R3"]


def make_space(name):
    """A space of its own for whoever asks, so that its metric may be changed."""
    space = _MAKE[name]()
    space.name = name
    return space


def spaces(*names, without=()):
    """Parametrise the ``space`` fixture: by default, over every space."""
    chosen = [name for name in names or NAMES if name not in without]
    return pytest.mark.parametrize("space", chosen, indirect=True)


@pytest.fixture
def space(request):
    """The space named by ``spaces(...)``, made anew."""
    return make_space(request.param)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Every device there is."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what geomstats draws from


def points(space, n, dtype=torch.float64, device="cpu"):
    """Points of geomstats' own making, shape (n, *space.shape)."""
    drawn = np.asarray(space.random_point(n)).reshape(n, *space.shape)
    return torch.tensor(drawn, dtype=dtype, device=device)


def vectors(space, base_point, length=None):
    """Random tangent vectors, by geomstats' own projection; of a Riemannian length."""
    base = base_point.cpu().numpy()
    ambient = np.random.default_rng(len(base)).normal(size=base.shape)
    tangent_vec = space.to_tangent(ambient, base).reshape(base.shape)
    if length is not None:
        squared = space.metric.inner_product(tangent_vec, tangent_vec, base)
        shape = (len(base),) + (1,) * len(space.shape)
        tangent_vec = tangent_vec * (length / np.sqrt(squared)).reshape(shape)
    return torch.tensor(tangent_vec).to(base_point)


def rows(array):
    """A batch of points as a batch of flat vectors."""
    return array.reshape(len(array), -1)


def assert_mean(values, expected, sigmas=4.0, floor=1e-12):
    """The sample mean, over the first axis, is within 4 standard errors."""
    values = values.double()
    error = values.std(0) / len(values) ** 0.5
    off = (values.mean(0) - expected).abs()
    worst = (off / (error + floor)).max()
    assert bool((off <= sigmas * error + floor).all()), (
        f"mean {values.mean(0)} is {float(worst):.1f} standard errors from {expected}"
    )


def rng_untouched(function):
    """Run a function; return its result, having seen torch's global state unmoved."""
    before = torch.get_rng_state()
    result = function()
    assert torch.equal(torch.get_rng_state(), before), "the global stream was consumed"
    return result


def run_under(backend, *arguments):
    """What a Python process prints as JSON in its last line, under a geomstats backend."""
    environment = dict(os.environ, GEOMSTATS_BACKEND=backend)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
