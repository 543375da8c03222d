"""What is saved comes back bit for bit; what is no such file is refused, and runs nothing."""

import copy
import errno
import functools
import json
import os
import pickle
import re

import geomstats.backend as gs
import layers_table
import normflows as nf
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from conftest import make_space, points, rng_untouched, run_under
from geomstats.geometry.base import LevelSet
from geomstats.geometry.euclidean import Euclidean
from hypothesis import given, settings
from hypothesis import strategies as st
from saved.make import EXPECTED, FOLDER
from torch import nn

import geoflow_plugin as gf
from geoflow_plugin import layers, networks
from geoflow_plugin.layers.chain import smooth_couplings
from geoflow_plugin.layers.embedding import Embedding, LinearEmbedding, Reshape
from geoflow_plugin.persistence import container, registry, versions
from geoflow_plugin.spaces import MeshSurface

# What comes back ----------------------------------------------------------------------


def _fitted_moser(dtype):
    space = make_space("S2")
    background = networks.FourierField((3,), 4, 8, dtype=dtype)
    field = networks.SourceField(space, 20, background=background, dtype=dtype)
    flow = gf.MoserFlow(space, field=field, floor=0.02)
    return flow.fit(points(space, 60, dtype), max_steps=3, progress=False)


def _moser_on_mixture(dtype):
    space = make_space("T2 scales 1, 2")
    estimate = gf.KernelDensity(space).fit(points(space, 30, dtype))
    base = gf.Mixture(space, [gf.Uniform(space, dtype=dtype), estimate], [1.0, 2.0])
    return gf.MoserFlow(space, base, networks.FourierField((2, 2), 4, 8, dtype=dtype))


def _mesh():
    corners = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    return MeshSurface(corners, [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def _on_a_mesh(dtype):
    mesh = _mesh()
    field = networks.EigenfunctionField(mesh, 2, dtype=dtype)
    flow = gf.MoserFlow(mesh, field=field)
    return flow.fit(points(mesh, 60, dtype), max_steps=3, progress=False)


def _monge_ampere(dtype):
    flow = gf.MongeAmpereFlow(
        Euclidean(2),
        potential=networks.OneHiddenLayerPotential(2, 8, dtype=dtype),
        n_steps=3,
        symmetry=networks.sign_flip(2),
    )
    flow.fit(torch.randn(50, 2, dtype=dtype), max_steps=3, progress=False)
    flow.layer.solver = "reversible"  # as its documentation allows
    return flow


def _nested(dtype):
    space = Euclidean(2)
    convex = networks.InputConvexPotential((2,), 6, dtype=dtype)
    base = gf.MongeAmpereFlow(space, potential=convex, n_steps=2)
    parts = [networks.FourierPotential((2,), 4, 8, dtype=dtype) for _ in range(2)]
    potential = networks.TimeDependentPotential(parts, 0.1)
    rotations = [torch.eye(2, dtype=torch.float64), -torch.eye(2, dtype=torch.float64)]
    return gf.MongeAmpereFlow(space, base, potential, n_steps=2, symmetry=rotations)


def _lattice(dtype):
    space = Euclidean(16)
    potential = networks.LatticePotential(4, width=2, dtype=dtype)
    return gf.MongeAmpereFlow(space, gf.LatticeNormal(space, 4, dtype=dtype), potential)


def _injective(dtype):
    torch.set_default_dtype(dtype)
    try:
        circle = make_space("S1")
        flow = gf.InjectiveFlow(
            3,
            circle,
            gf.MoserFlow(circle, field=networks.FourierField((2,), 4, 8)),
            high_layers=[*smooth_couplings(3, 2, 8), nf.flows.ActNorm((3,))],
            embedding=LinearEmbedding(2, 3),
            n_probes=2,
            method="hutchinson",
        )
        return flow.fit(torch.randn(40, 3), max_steps=2, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)


def _free_form(dtype):
    nets = {"encoder": nn.Linear(3, 2, dtype=dtype), "decoder": nn.Linear(2, 3, dtype=dtype)}
    return gf.FreeFormInjectiveFlow(3, dim=2, **nets).to(dtype)


def _on_normflows(dtype):
    spline = nf.flows.AutoregressiveRationalQuadraticSpline(2, 1, 8)
    coupling = nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 2], init_zeros=True))
    parts = [coupling, nf.flows.Permute(2, "swap"), nf.flows.ActNorm((2,)), spline]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), parts).to(dtype)
    model.log_prob(torch.randn(10, 2, dtype=dtype))  # an ActNorm takes its scale
    return gf.MongeAmpereFlow(
        Euclidean(2), model, networks.OneHiddenLayerPotential(2, 4, dtype=dtype)
    )


MODELS = {
    "uniform": lambda dtype: gf.Uniform(make_space("SO3"), dtype=dtype),
    "wrapped normal": lambda dtype: gf.WrappedNormal(
        make_space("S2 doubled"), torch.tensor([0.0, 0.6, 0.8], dtype=dtype), 0.3
    ),
    "kernel density": lambda dtype: gf.KernelDensity(make_space("S2xSO3")).fit(
        points(make_space("S2xSO3"), 20, dtype)
    ),
    "moser": _fitted_moser,
    "moser on a mixture": _moser_on_mixture,
    "moser on a mesh": _on_a_mesh,
    "monge-ampere": _monge_ampere,
    "nested, time-dependent": _nested,
    "lattice": _lattice,
    "injective": _injective,
    "free-form": _free_form,
    "normflows": _on_normflows,
    "at a context": lambda dtype: gf.AtContext(
        gf.ConditionalWrappedNormal(make_space("S2"), 2, dtype=dtype), torch.ones(2)
    ),
    "low rank": lambda dtype: gf.LowRankNormal(Euclidean(4), 2, dtype=dtype),
}


@functools.cache
def made(name, dtype):
    return MODELS[name](dtype)


def assert_same(model, again):
    """Same modules and modes, and tensors with the same bits, dtypes and flags."""
    assert [(n, type(m), m.training) for n, m in model.named_modules()] == [
        (n, type(m), m.training) for n, m in again.named_modules()
    ]
    for ours, theirs in (
        (dict(model.named_parameters()), dict(again.named_parameters())),
        (dict(model.named_buffers()), dict(again.named_buffers())),
        (model.state_dict(), again.state_dict()),
    ):
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert tensor.requires_grad == theirs[name].requires_grad, name
            assert torch.equal(tensor.cpu(), theirs[name].cpu()), name


def draw(model, n=5, **context):
    torch.manual_seed(7)  # normflows takes no generator
    return model.sample(n, generator=torch.Generator(model.device).manual_seed(1), **context)


PRECISE = ["wrapped normal", "kernel density", "moser on a mixture", "injective"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in MODELS] + [(name, torch.float64) for name in PRECISE],
)
def test_models_come_back(name, dtype, tmp_path):
    model = made(name, dtype).eval()
    rng_untouched(lambda: model.save(tmp_path / "model"))
    again = rng_untouched(lambda: gf.load(str(tmp_path / "model")))
    assert_same(model, again)
    assert (again.dtype, again.space.shape) == (dtype, model.space.shape)
    assert getattr(again, "history_", None) == getattr(model, "history_", None)
    x = draw(model)
    assert torch.equal(x, draw(again))
    assert torch.equal(model.log_prob(x), again.log_prob(x))
    gf.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


def test_every_public_class_is_among_the_models():
    models = [made(name, torch.float32) for name in MODELS]
    models += [*_conditional(torch.randn(40, 2)), *_maps()]
    seen = {type(part) for model in models for part in model.modules()}
    public = {
        cls
        for room in (gf, layers, networks)
        for cls in vars(room).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    }
    assert public <= seen | {gf.Distribution, gf.Flow}


def _maps():
    sphere = make_space("S2")
    field = networks.FourierField((3,), 4, 8)
    return [
        layers.Chart(make_space("R3")),
        layers.Logit(1e-3),
        Embedding(2, 3),
        Reshape((4,), (2, 2)),
        layers.MoserTransport(gf.MoserFlow(sphere, field=field), rtol=1e-4),
        layers.MongeAmpere(sphere, networks.FourierPotential((3,), 4, 8), n_steps=2),
    ]


@pytest.mark.parametrize("layer", _maps(), ids=lambda layer: type(layer).__name__)
def test_layers_come_back(layer, tmp_path):
    gf.save(layer, tmp_path / "layer")
    again = gf.load(tmp_path / "layer")
    assert_same(layer, again)
    assert repr(layer) == repr(again)


def _conditional(context):
    space = make_space("S2")
    X = points(space, len(context), torch.float32)
    background = networks.FourierField((3,), 4, 8, context_dim=2)
    field = networks.ConditionalSourceField(space, 2, 20, background)
    flow = gf.MoserFlow(space, field=field)
    return [
        flow.fit(X, context=context, max_steps=2, progress=False),
        gf.ConditionalKernelDensity(space).fit(X, context),
        gf.ConditionalWrappedNormal(space, 2),
    ]


def test_conditional_models_come_back(tmp_path):
    context = torch.randn(40, 2)
    given = {"context": context[:5]}
    for model in _conditional(context):
        model.save(tmp_path / "model")
        again = gf.load(tmp_path / "model")
        assert_same(model, again)
        x = draw(model, **given)
        assert torch.equal(x, draw(again, **given))
        assert torch.equal(model.log_prob(x, **given), again.log_prob(x, **given))


@pytest.mark.parametrize("name", CATALOGUE)
def test_spaces_come_back(name, tmp_path):
    space = CATALOGUE[name]()
    law = gf.Uniform if gf.Uniform.supports(space) else gf.WrappedNormal
    law = law(space, dtype=torch.float64)
    law.save(tmp_path / "law")
    again = gf.load(tmp_path / "law")
    assert type(again.space) is type(space) and again.space.shape == space.shape
    assert type(getattr(again.space, "metric", None)) is type(getattr(space, "metric", None))
    x = law.sample(3)
    assert torch.equal(law.log_prob(x), again.log_prob(x))


def test_meshes_come_back(tmp_path):
    space = _mesh()
    gf.save(space, tmp_path / "mesh")
    again = gf.load(tmp_path / "mesh")
    assert torch.equal(again.vertices, space.vertices)
    assert torch.equal(again.areas, space.areas)


@pytest.mark.parametrize("name", layers_table.LAYERS)
def test_layers_of_normflows_come_back(name, tmp_path):
    layer = layers_table.LAYERS[name]()
    layer = getattr(layer, "layer", layer)
    gf.save(layer, tmp_path / "layer")
    again = gf.load(tmp_path / "layer")
    assert_same(layer, again)
    assert repr(layer) == repr(again)


def test_what_is_shared_stays_shared(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Softplus(2.0), nn.Linear(3, 3))
    net.append(net[0])  # a module twice
    net[2].weight = net[0].weight  # a tied weight
    net[2].bias.requires_grad_(False)
    net.spare = nn.ModuleDict({"keys and values": nn.Tanh()})
    model = gf.MoserFlow(make_space("S2"), field=net)
    model.save(tmp_path / "model")
    net = gf.load(tmp_path / "model").field
    assert "keys and values" in net.spare
    assert net[3] is net[0] and net[2].weight is net[0].weight
    assert not net[2].bias.requires_grad and net[0].bias.requires_grad
    space = gf.load(tmp_path / "model")
    assert space.base.space is space.space


def test_a_model_goes_where_it_is_mapped(device, tmp_path):
    model = _fitted_moser(torch.float32).to(device)
    model.save(tmp_path / "model")
    assert gf.load(tmp_path / "model").device.type == "cpu"
    again = gf.load(tmp_path / "model", map_location=device)
    assert again.device.type == device.type
    x = draw(model)
    assert torch.equal(model.log_prob(x), again.log_prob(x))


def test_a_loaded_model_is_an_ordinary_one(tmp_path):
    model = _fitted_moser(torch.float32)
    model.save(tmp_path / "model")
    again = gf.load(tmp_path / "model")
    for other in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert_same(model, other)
    X = points(model.space, 60, torch.float32)
    for flow in (model, again):
        flow.fit(X, max_steps=3, progress=False)
    assert_same(model, again)  # and goes on learning in the same way


def test_the_other_backend_reads_it(tmp_path):
    gf.WrappedNormal(CATALOGUE["R2 with a matrix"]()).save(tmp_path / "matrix")
    gf.Uniform(CATALOGUE["T2 scales 1, 2"]()).save(tmp_path / "torus")
    code = (
        "import sys, json, torch, geoflow_plugin as gf\n"
        "laws = [gf.load(path) for path in sys.argv[1:]]\n"
        "torch.manual_seed(0)\n"
        "print(json.dumps([float(law.log_prob(law.sample(1))) for law in laws]))"
    )
    paths = [str(tmp_path / name) for name in ("matrix", "torus")]
    torch.manual_seed(0)
    laws = [gf.load(path) for path in paths]
    ours = [float(law.log_prob(law.sample(1))) for law in laws]
    np.testing.assert_allclose(run_under("pytorch", "-c", code, *paths), ours, rtol=1e-6)


# Classes of strangers -----------------------------------------------------------------


class Wave(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden, self.out = nn.Linear(3, width), nn.Linear(width, 3)
        self.shift = width / 3

    def forward(self, x):
        return self.out((self.hidden(x) + self.shift).sin())


class Ellipsoid(LevelSet):
    def __init__(self, axis):
        self.axis = axis
        super().__init__(dim=2, equip=False)

    def _define_embedding_space(self):
        return Euclidean(3)

    def submersion(self, point):
        return gs.sum(point**2 * gs.array([1.0, 1.0, self.axis]), axis=-1) - 1

    def tangent_submersion(self, vector, point):
        raise NotImplementedError

    def to_tangent(self, vector, base_point):
        raise NotImplementedError

    def random_point(self, n_samples=1, bound=1.0):
        raise NotImplementedError


@pytest.fixture
def registered():
    classes = dict(registry._CLASSES)
    yield gf.register_saved
    registry._CLASSES.clear()
    registry._CLASSES.update(classes)


def test_a_strangers_classes_join_by_a_decorator(registered, tmp_path):
    assert registered(Wave) is Wave
    registered(Ellipsoid)
    model = gf.MoserFlow(make_space("S2"), field=Wave(5))
    model.save(tmp_path / "model")
    again = gf.load(tmp_path / "model")
    assert again.field.shift == model.field.shift
    assert_same(model, again)
    gf.save(Ellipsoid(0.5), tmp_path / "space")
    assert gf.load(tmp_path / "space").axis == 0.5
    registry._CLASSES.clear()
    with pytest.raises(ValueError, match="Ellipsoid.*register_saved"):
        gf.load(tmp_path / "space")


def test_what_no_file_can_hold_is_refused_before_one_is_written(tmp_path):
    path = tmp_path / "model"
    sphere, hooked = make_space("S2"), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *args: None)
    odd = nn.Linear(3, 3)
    odd.extra = lambda x: x
    for thing, match in {
        gf.MoserFlow(sphere, field=Wave(4)): r"field.*Wave.*register_saved",
        gf.MoserFlow(sphere, field=hooked): r"field.*hooks",
        gf.MoserFlow(sphere, field=odd): r"field\.extra",
        gf.MoserFlow(sphere, field=nn.LazyLinear(3)): "field",
        Ellipsoid(0.5): r"Ellipsoid.*register_saved",
        object(): "builtins.object",
    }.items():
        with pytest.raises(TypeError, match=match):
            gf.save(thing, path)
    for where in (None, 3, b"model", ["model"]):
        with pytest.raises(TypeError, match="path"):
            gf.Uniform(sphere).save(where)
        with pytest.raises(TypeError, match="path"):
            gf.load(where)
    stale = gf.Uniform(sphere)
    sphere.metric = 2.0 * sphere.metric
    with pytest.raises(ValueError, match="metric"):
        stale.save(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [3, "Wave", lambda: None])
def test_only_classes_are_registered(cls):
    with pytest.raises(TypeError, match="register_saved"):
        gf.register_saved(cls)


# Writing ------------------------------------------------------------------------------


def test_a_write_that_fails_loses_nothing(tmp_path, monkeypatch):
    path, model = tmp_path / "model", gf.Uniform(make_space("S2"))
    model.save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:
            gf.WrappedNormal(make_space("S2")).save(path)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="nowhere"):
        model.save(tmp_path / "nowhere" / "model")
    with pytest.raises(OSError):
        model.save(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert torch.equal(gf.load(path).sample(0), model.sample(0))


# Versions -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_earlier_versions_load(name):
    model = gf.load(FOLDER / name)
    x, expected = (torch.tensor(v, dtype=model.dtype) for v in EXPECTED[name])
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(model.log_prob(x), expected, rtol=tolerance, atol=tolerance)


def test_a_later_format_is_refused_and_an_earlier_one_brought_up(tmp_path, monkeypatch):
    path = tmp_path / "model"
    gf.Uniform(make_space("S2")).save(path)
    for version in ([0, 2], [1, 0]):
        forge(path, lambda d, t, version=version: d.update(format=version))
        with pytest.raises(ValueError, match=r"format \d\.\d.*upgrade"):
            gf.load(path)

    def rename(description):
        text = json.dumps(description).replace("Even", "Uniform")
        return json.loads(text)

    forge(path, lambda d, t: d["objects"][1].update({"class": "geoflow_plugin.Even"}))
    forge(path, lambda d, t: d.update(format=[0, 0]))
    monkeypatch.setitem(versions.MIGRATIONS, (0, 0), (versions.FORMAT, rename))
    assert isinstance(gf.load(path), gf.Uniform)


# Hostile files ------------------------------------------------------------------------


def forge(path, edit):
    """Change a file and make its digest right again."""
    description, tensors = container.from_bytes(path.read_bytes())
    edited = edit(description, tensors)
    content = edited if isinstance(edited, bytes) else container.to_bytes(description, tensors)
    path.write_bytes(content)


def refuses(path, match=""):
    with pytest.raises(ValueError, match=re.escape(str(path)) + r"(.|\n)*" + match):
        gf.load(path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A file with everything in it: a fitted flow, its networks, groups and spaces."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("content") / "model"
    _monge_ampere(torch.float32).save(path)
    return path.read_bytes()


def test_other_files_are_refused_and_run_nothing(tmp_path, content):
    path, trap = tmp_path / "model", tmp_path / "trap"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Bomb(trap))),
        lambda: torch.save(Bomb(trap), path),
        lambda: torch.save(Bomb(trap), path, _use_new_zipfile_serialization=False),
        lambda: torch.save(_monge_ampere(torch.float32).state_dict(), path),
        lambda: np.save(open(path, "wb"), np.ones(3)),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"\0" * 100),
        lambda: path.write_bytes(b"\xff" * 100),
        lambda: path.write_text("{}"),
        lambda: path.write_bytes((2**40).to_bytes(8, "little") + content[8:]),
        lambda: path.write_bytes(content + b"\0"),
        lambda: path.write_bytes(_safetensors(b"[" * 100_000)),
        lambda: path.write_bytes(_safetensors(b'{"__metadata__":{}}')),
        lambda: path.write_bytes(_safetensors(b'{"__metadata__":[1]}')),
        lambda: path.write_bytes(_safetensors(_claim(content, [2**60, 2**60]))),
        lambda: path.write_bytes(_safetensors(_claim(content, [10**9]))),
        lambda: path.write_bytes(_safetensors(_claim(content, [-1]))),
    ):
        write()
        refuses(path)
        assert not trap.exists()
    refuses(tmp_path, "file")
    with pytest.raises(FileNotFoundError):
        gf.load(tmp_path / "nothing")


def _safetensors(header):
    return len(header).to_bytes(8, "little") + header


def _claim(content, shape):
    """The header, with a tensor of another shape, and no tensors behind it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name].update(shape=shape, data_offsets=[0, 2**40])
    return json.dumps({k: header[k] for k in ("__metadata__", name)}).encode()


@given(data=st.data())
@settings(max_examples=60)
def test_damage_is_noticed(data, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "model"
    kind = data.draw(st.sampled_from(["cut", "flip", "random", "swap"]))
    if kind == "cut":
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "random":
        damaged = data.draw(st.binary(max_size=200))
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        new = content[place] ^ data.draw(st.integers(1, 255))
        damaged = content[:place] + bytes([new]) + content[place + 1 :]
        if kind == "swap":  # in the header alone, where the words are
            place = data.draw(st.integers(8, 2000))
            damaged = content[:place] + content[place + 4 : place + 8] + content[place + 4 :]
    if not _same_up_to_blanks(damaged, content):
        path.write_bytes(damaged)
        refuses(path)


def _same_up_to_blanks(damaged, content):
    """Blanks around the header's JSON say nothing."""
    length = int.from_bytes(content[:8], "little")
    if len(damaged) != len(content) or damaged[:8] != content[:8]:
        return False
    headers = [c[8 : 8 + length].strip() for c in (damaged, content)]
    return headers[0] == headers[1] and damaged[8 + length :] == content[8 + length :]


def _object(name):
    def find(description):
        return next(o for o in description["objects"] if o["class"].endswith(name))

    return find


SPACE, FLOW, NET = _object("Euclidean"), _object("MongeAmpereFlow"), _object("Potential")
NAMES = [
    "os.system",
    "builtins.eval",
    "posix.system",
    "geoflow_plugin.persistence.container.os",
    "geoflow_plugin.os",
    "geoflow_plugin.Flow.fit",
    "geoflow_plugin..Uniform",
    "geoflow_plugin.persistence.description.Writer",
    "geomstats.geometry.hypersphere.gs",
    "geomstats.geometry.hypersphere.Euclidean",  # only there because it is imported there
    "geomstats.geometry.manifold.Manifold",
    "torch.nn.modules.module.torch",
    "torch.nn.modules.linear.math",
    "torch.nn.modules.linear.Module",
    "torch.hub.load",
    "normflows.core.nn",
    "normflows.flows.affine.coupling.torch",
    "__main__.Bomb",
    "../../etc/passwd",
    "torch.nn.modules.linear.__class__",
    "",
    "torch.nn.modules.linear.Línear",
    7,
    None,
    ["geoflow_plugin.Uniform"],
]
EDITS = {
    "a space of absurd size": lambda d, t: SPACE(d)["arguments"].update(dim=10**9),
    "a negative size": lambda d, t: SPACE(d)["arguments"].update(dim=-5),
    "a size of another type": lambda d, t: SPACE(d)["arguments"].update(dim="two"),
    "no size": lambda d, t: SPACE(d)["arguments"].pop("dim"),
    "an unknown argument": lambda d, t: SPACE(d)["arguments"].update(fun=1),
    "a metric that is none": lambda d, t: SPACE(d)["metric"].update({"class": "os.system"}),
    "a space for a metric": lambda d, t: SPACE(d)["metric"].update(
        {"class": SPACE(d)["class"]}
    ),
    "a scale of zero": lambda d, t: SPACE(d)["metric"].update(scale=0.0),
    "endless steps": lambda d, t: FLOW(d)["arguments"].update(n_steps=10**12),
    "too many steps": lambda d, t: FLOW(d)["arguments"].update(n_steps=10**9),
    "half a step": lambda d, t: FLOW(d)["arguments"].update(n_steps=1.5),
    "NaN as a step": lambda d, t: FLOW(d)["arguments"].update(step_size={"float": "nan"}),
    "a number for a base": lambda d, t: FLOW(d)["arguments"].update(base=3),
    "a space for a base": lambda d, t: FLOW(d)["arguments"].update(base={"object": 0}),
    "itself as a base": lambda d, t: FLOW(d)["arguments"].update(base={"object": 10**6}),
    "a reference back": lambda d, t: FLOW(d)["arguments"].update(base={"object": -1}),
    "a reference that is none": lambda d, t: FLOW(d)["arguments"].update(
        base={"object": True}
    ),
    "nesting": lambda d, t: FLOW(d)["arguments"].update(solver=_deep(200)),
    "a method as state": lambda d, t: FLOW(d)["state"].update(log_prob=1),
    "torch's dictionaries": lambda d, t: FLOW(d)["state"].update(_modules={"dict": {}}),
    "a method as attribute": lambda d, t: NET(d)["attributes"].update(forward=1),
    "a dunder": lambda d, t: NET(d)["attributes"].update(__class__="x"),
    "torch's hooks": lambda d, t: NET(d)["attributes"].update(_forward_hooks={"dict": {}}),
    "a dotted name": lambda d, t: NET(d)["buffers"].update({"a.b": None}),
    "no identifier": lambda d, t: NET(d)["attributes"].update({"a b": 1}),
    "a function": lambda d, t: NET(d)["attributes"].update(
        activation={"function": "torch.load"}
    ),
    "an unknown tag": lambda d, t: NET(d)["attributes"].update(activation={"eval": "1"}),
    "two tags": lambda d, t: NET(d)["attributes"].update(activation={"tuple": [], "size": []}),
    "a space as a module": lambda d, t: NET(d)["modules"].update(part={"object": 0}),
    "a tensor that is not there": lambda d, t: NET(d)["parameters"].update(
        weight=["no", True]
    ),
    "a tensor missing": lambda d, t: [t.pop(next(iter(t)))] and None,
    "a tensor too many": lambda d, t: t.update(extra=torch.ones(2)),
    "another shape": lambda d, t: t.update({"base.mean": torch.zeros(3)}),
    "another dtype": lambda d, t: t.update({"base.mean": torch.zeros(2, dtype=torch.int8)}),
    "training unsaid": lambda d, t: FLOW(d).update(mode={}),
    "a record too many": lambda d, t: FLOW(d).update(run={}),
    "no objects": lambda d, t: d.update(objects=[]),
    "objects that are none": lambda d, t: d.update(objects=[1, "2", None]),
    "no format": lambda d, t: [d.pop("format")] and None,
    "a format of words": lambda d, t: d.update(format="0.1"),
    "a negative format": lambda d, t: d.update(format=[-1, 0]),
    "infinity in JSON": lambda d, t: _with_text(
        t, '{"format":[0,1],"objects":[Infinity],"digest":""}'
    ),
}


def _deep(n):
    value = 1
    for _ in range(n):
        value = {"tuple": [value]}
    return value


def _with_text(tensors, text):
    return container.safetensors.torch.save(tensors, {"geoflow_plugin": text})


@pytest.mark.parametrize("edit", EDITS)
def test_absurd_descriptions_are_refused(edit, content, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content)
    assert isinstance(gf.load(path), gf.MongeAmpereFlow)
    forge(path, EDITS[edit])
    assert path.read_bytes() != content
    refuses(path)


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_other_classes_are_refused(name, content, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content)
    forge(path, lambda d, t: FLOW(d).update({"class": name}))
    refuses(path, "none that a file may name")


def test_a_small_file_takes_little_memory(tmp_path):
    path, space = tmp_path / "model", make_space("S2")
    gf.KernelDensity(space, bandwidth=0.3).fit(points(space, 3000)).save(path)

    def many_kernels(description, tensors):
        kernels = _object("KernelMixture")(description)
        description["objects"] = [description["objects"][0], *[kernels] * 1000]

    def many_spaces(description, tensors):
        sphere = copy.deepcopy(description["objects"][0])
        sphere["arguments"]["dim"] = 2**14 - 1
        description["objects"] = [sphere] * 50

    content = path.read_bytes()
    for edit in (many_kernels, many_spaces):
        path.write_bytes(content)
        forge(path, edit)
        assert len(path.read_bytes()) < 2**20
        refuses(path, "memory")


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([*map(str, NAMES), "softplus", "base.mean", "layer.potential.weight"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["tensor", "object", "tuple", "dict", "numbers", "function"]),
            inner,
            max_size=1,
        ),
    ),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=100)
def test_any_description_loads_or_is_refused(data, content, tmp_path_factory):
    """Wherever one value is replaced by another, digest and all, nothing else happens."""
    path = tmp_path_factory.mktemp("forged") / "model"
    path.write_bytes(content)
    state = torch.get_rng_state()

    def edit(description, tensors):
        where, node = [], description
        while isinstance(node, (dict, list)) and node:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            parent, key = node, data.draw(st.sampled_from(list(keys)))
            where.append(key)
            node = node[key]
            if data.draw(st.booleans()) and len(where) > 2:
                break
        parent[key] = data.draw(VALUES)

    forge(path, edit)
    try:
        model = gf.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(model, nn.Module)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_may_be_anything_that_a_constructor_takes(tmp_path):
    model = _on_normflows(torch.float32)
    model.potential.weight.data.fill_(torch.nan)
    model.save(tmp_path / "model")
    assert gf.load(tmp_path / "model").potential.weight.isnan().all()
