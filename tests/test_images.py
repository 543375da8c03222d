"""Images: idx files, downloads that are checked, dequantisation, logits."""

import gzip
import hashlib
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import hypothesis
import normflows as nf
import numpy as np
import pytest
import torch
from conftest import assert_mean, rng_untouched
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.image import imread

from geoflow_plugin import datasets
from geoflow_plugin.datasets import images as module
from geoflow_plugin.layers import Logit

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("GEOFLOW_DATA", ROOT.parent / "shared" / "data"))
LOADERS = {"mnist": datasets.load_mnist, "fashion-mnist": datasets.load_fashion_mnist}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
BOTH = pytest.mark.parametrize("name", LOADERS)


def needs(folder):
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(), reason=f"no {folder} data; set GEOFLOW_DATA"
    )


def idx(array):
    head = struct.pack(">HBB", 0, 8, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


# Files


@hypothesis.given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_idx_round_trip(array):
    values = module.parse_idx(idx(array), array.ndim)
    assert values.dtype == torch.uint8
    assert np.array_equal(values.numpy(), array)


@hypothesis.given(
    arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=4)), st.data()
)
def test_a_truncated_or_padded_idx_file_is_refused(array, data):
    content = idx(array)
    for damaged in (
        content[: data.draw(st.integers(0, len(content) - 1))],
        content + data.draw(st.binary(min_size=1, max_size=3)),
    ):
        with pytest.raises(ValueError, match="content: (expected an idx file|the header)"):
            module.parse_idx(damaged, array.ndim)
    other = data.draw(st.integers(1, 4).filter(lambda n: n != array.ndim))
    with pytest.raises(ValueError, match=f"bytes in {other} dimensions"):
        module.parse_idx(content, other)


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.binary(max_size=64), st.integers(1, 3), st.booleans())
def test_hostile_bytes_are_parsed_or_refused(noise, n_dims, with_magic):
    content = struct.pack(">HBB", 0, 8, n_dims) + noise if with_magic else noise
    try:
        values = module.parse_idx(content, n_dims)
    except ValueError as error:
        assert str(error).startswith("content: ")
    else:
        assert idx(values.numpy()) == content


@pytest.mark.parametrize("shape", [(0,), (2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1)])
def test_a_header_of_no_size_or_of_too_great_a_size_is_refused(shape):
    content = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    with pytest.raises(ValueError, match="content: the header says .* bytes, got 0"):
        module.parse_idx(content, len(shape))


@BOTH
@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_the_files(name, split, n, monkeypatch):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} data; set GEOFLOW_DATA")
    monkeypatch.setenv("GEOFLOW_DATA", str(DATA))
    images, labels = LOADERS[name](split)
    assert images.shape == (n, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (n,) and labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=10)
    if name == "fashion-mnist":
        assert (counts == n // 10).all()
    else:
        assert len(counts) == 10 and counts.min() > 0.08 * n
        # rows and columns in order: digits are centred by mass
        weight = images.double().mean(0) / images.double().mean(0).sum()
        where = torch.arange(28.0, dtype=torch.float64)
        centre = torch.stack([weight.sum(1) @ where, weight.sum(0) @ where])
        torch.testing.assert_close(centre, torch.full_like(centre, 14), atol=0.2, rtol=0)
        ones, zeros = (images[labels == digit].double().mean(0) for digit in (1, 0))
        assert ones[14, 14] > 200 and zeros[14, 14] < 50


@needs("mnist")
def test_plain_files_read_like_the_gzipped_ones(tmp_path):
    for file in "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte":
        packed = (DATA / "mnist" / f"{file}.gz").read_bytes()
        (tmp_path / file).write_bytes(gzip.decompress(packed))
    expected = datasets.load_mnist("test", DATA / "mnist")
    for part, other in zip(datasets.load_mnist("test", tmp_path), expected, strict=True):
        assert torch.equal(part, other)
    assert len(list(tmp_path.iterdir())) == 2


@BOTH
def test_absence_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.delenv("GEOFLOW_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=f"GEOFLOW_DATA is not set.*{name}/train"):
        LOADERS[name]()
    with pytest.raises(FileNotFoundError, match="download needs a place.*GEOFLOW_DATA"):
        LOADERS[name](download=True)
    with pytest.raises(FileNotFoundError, match=f"no t10k-images.*{name}; download=True"):
        LOADERS[name]("test", tmp_path)
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no train-images.*download=True"):
        LOADERS[name]()
    assert not list(tmp_path.iterdir())


@BOTH
def test_other_files_and_splits_are_refused(name, tmp_path):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    with pytest.raises(ValueError, match="SHA-256.*damaged or another edition"):
        LOADERS[name](path=tmp_path)
    with pytest.raises(ValueError, match="path: expected the folder of train-images"):
        LOADERS[name](path=file)
    for split in "validation", None, 0:
        with pytest.raises(ValueError, match='split: expected "train" or "test"'):
            LOADERS[name](split, tmp_path)


# Downloads, from a folder that stands for the server


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder of a server with small images, whose checksums are taken for the true ones."""
    folder = tmp_path / "server"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    contents = {
        "t10k-images-idx3-ubyte": idx(pixels),
        "t10k-labels-idx1-ubyte": idx(np.arange(5, dtype=np.uint8)),
    }
    for file, content in contents.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    known = tuple((file, hashlib.sha256(c).hexdigest()) for file, c in contents.items())
    monkeypatch.setitem(module._FILES, ("mnist", "test"), known)
    monkeypatch.setitem(module._SERVED, "mnist", folder.as_uri() + "/")
    return folder


def test_a_download_is_written_once_and_where_asked(served, tmp_path, monkeypatch):
    place = tmp_path / "data" / "mnist"
    with pytest.raises(FileNotFoundError):
        datasets.load_mnist("test", place)
    assert not place.exists()
    images, labels = datasets.load_mnist("test", place, download=True)
    assert images.shape == (5, 28, 28) and labels.tolist() == [0, 1, 2, 3, 4]
    names = sorted(path.name for path in served.iterdir())
    assert sorted(path.name for path in place.iterdir()) == names
    for file in served.iterdir():
        assert (place / file.name).stat().st_mode == file.stat().st_mode
        file.unlink()  # a second call asks no server
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path / "data"))
    again, _ = datasets.load_mnist("test", download=True)
    assert torch.equal(again, images)


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: gzip.compress(b"page")])
def test_a_damaged_download_is_refused_and_not_kept(served, tmp_path, damage):
    file = served / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="damaged"):
        datasets.load_mnist("test", tmp_path / "data", download=True)
    assert not list((tmp_path / "data").iterdir())


def test_without_a_network_the_error_says_so(served, tmp_path):
    (served / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConnectionError, match="could not get file:.*labels.*pass its folder"):
        datasets.load_mnist("test", tmp_path / "data", download=True)
    # what did arrive stays
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["t10k-images-idx3-ubyte.gz"]


# Dequantisation


@DTYPES
def test_dequantisation_is_uniform_noise_on_bytes(dtype, device):
    images = torch.arange(256, dtype=torch.uint8).repeat(40).reshape(40, 16, 16).to(device)
    generator = torch.Generator(device).manual_seed(1)
    points = rng_untouched(lambda: datasets.dequantize(images, generator, dtype))
    assert points.shape == (40, 256)
    assert points.dtype == dtype and points.device.type == device.type
    noise = 256 * points - images.flatten(1)
    assert noise.min() >= 0 and noise.max() <= 1
    if dtype == torch.float64:
        assert torch.equal((256 * points).floor(), images.flatten(1).double())
    assert_mean(noise.flatten().cpu(), 0.5)
    assert_mean(noise.flatten().cpu() ** 2, 1 / 3)
    again = datasets.dequantize(images, generator.manual_seed(1), dtype)
    assert torch.equal(again, points)


@pytest.mark.parametrize(
    "images, dtype, error",
    [
        (torch.rand(2, 28, 28), torch.float32, "images: .*torch.uint8, got torch.float32"),
        (np.zeros((2, 28, 28), np.uint8), torch.float32, "images: .*got uint8"),
        ([1, 2], torch.float32, "images: .*got list"),
        (torch.zeros(3, dtype=torch.uint8), torch.float32, r"images: .*\(n, ...\)"),
        (torch.zeros(3, 2, dtype=torch.uint8), torch.float16, "dtype: .*torch.float16"),
    ],
)
def test_what_dequantisation_refuses(images, dtype, error):
    with pytest.raises((TypeError, ValueError), match=error):
        datasets.dequantize(images, dtype=dtype)


# Logits


@DTYPES
@hypothesis.given(st.sampled_from([0.0, 1e-6, 0.05, 0.3]), st.sampled_from([(5,), (2, 3)]))
def test_logit_is_inverted_and_its_log_det_is_that_of_the_jacobian(
    device, dtype, alpha, shape
):
    layer = Logit(alpha)
    generator = torch.Generator(device).manual_seed(len(shape))
    z = 3 * torch.randn(4, *shape, generator=generator, dtype=dtype, device=device)
    x, log_det = layer.forward(z)
    back, log_det_back = layer.inverse(x)
    assert x.shape == back.shape == z.shape and log_det.shape == log_det_back.shape == (4,)
    assert x.dtype == log_det.dtype == back.dtype == log_det_back.dtype == dtype
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det_back, -log_det, rtol=tolerance, atol=tolerance)
    size = math.prod(shape)
    for one_way, points, value in (
        (layer.forward, z, log_det),
        (layer.inverse, x, log_det_back),
    ):
        jacobian = torch.func.jacrev(lambda p, f=one_way: f(p)[0].sum(0))(points.double())
        jacobian = jacobian.reshape(size, 4, size).movedim(1, 0)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


@DTYPES
def test_logit_is_exact_at_black_and_white(dtype):
    alpha = 1e-6
    x = torch.tensor([[0.0, 2**-24, 0.5, 1 - 2**-24, 1.0]], dtype=dtype)
    z, log_det = Logit(alpha).inverse(x)
    exact = x.double()
    y, rest = alpha + (1 - 2 * alpha) * exact, alpha + (1 - 2 * alpha) * (1 - exact)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), y.log() - rest.log(), rtol=eps, atol=eps)
    expected = (math.log1p(-2 * alpha) - y.log() - rest.log()).sum(1)
    torch.testing.assert_close(log_det.double(), expected, rtol=eps, atol=eps)


def test_logit_is_that_of_normflows():
    z = torch.linspace(-6, 6, 42, dtype=torch.float64).reshape(3, 2, 7)
    ours, theirs = Logit(0.01), nf.transforms.Logit(0.01)
    for found, expected in zip(ours.forward(z), theirs.forward(z), strict=True):
        torch.testing.assert_close(found, expected)
    x = ours.forward(z)[0]
    for found, expected in zip(ours.inverse(x), theirs.inverse(x), strict=True):
        torch.testing.assert_close(found, expected)


@DTYPES
def test_a_density_of_pixels_integrates_to_one(dtype):
    base = nf.distributions.DiagGaussian(1).to(dtype)
    model = nf.NormalizingFlow(base, [Logit(0.1)])
    a = 0.1 / 0.8
    cells = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = (-a + (1 + 2 * a) * cells).to(dtype)[:, None]
    with torch.no_grad():
        integral = model.log_prob(x).double().exp().mean() * (1 + 2 * a)
    assert float(integral) == pytest.approx(1, abs=1e-4)


def test_logit_takes_forward_derivatives_vmap_and_compiles():
    layer = Logit(0.05)
    z = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(4, 3)
    x, slope = torch.func.jvp(lambda p: layer.forward(p)[0], (z,), (torch.ones_like(z),))
    torch.testing.assert_close(slope.log().sum(1), layer.forward(z)[1])
    mapped = torch.func.vmap(lambda p: layer.inverse(p[None])[0][0])(x)
    torch.testing.assert_close(mapped, z)
    compiled = torch.compile(layer.inverse, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer.inverse(x))


@DTYPES
def test_what_logit_refuses(dtype):
    layer = Logit()
    fine = torch.full((2, 3), 0.5, dtype=dtype)
    for value in -1e-3, 1.001, math.nan, math.inf:
        off = fine.clone()
        off[1, 2] = value
        with pytest.raises(ValueError, match=r"z: expected pixels inside \(-a, 1 \+ a\)"):
            layer.inverse(off)
    for value in math.nan, math.inf:
        with pytest.raises(ValueError, match="z: expected finite logits"):
            layer.forward(torch.full((2, 3), value, dtype=dtype))
    for way in layer.forward, layer.inverse:
        with pytest.raises(ValueError, match=r"z: expected shape \(n, ...\)"):
            way(fine[0])
        for given in fine.int(), [[0.5]]:
            with pytest.raises(TypeError, match="z: expected a floating-point tensor"):
                way(given)
    with pytest.raises(ValueError, match="some beyond or NaN, or so close"):
        Logit(0).inverse(torch.zeros(1, 2, dtype=dtype))


@pytest.mark.parametrize("alpha", [0.5, -1e-9, 1, math.nan, "0.1", True, None])
def test_alpha_is_checked(alpha):
    with pytest.raises(
        (TypeError, ValueError), match=r"alpha: expected a number in \[0, 0.5\)"
    ):
        Logit(alpha)


# The convention of the published figures


@needs("mnist")
def test_a_gaussian_in_logit_space_has_the_published_figures():
    """Papamakarios et al. (2017): 1366.9 +- 1.4 nats in logit space, 2.01 bits per pixel."""
    layer, generator = Logit(), torch.Generator().manual_seed(0)

    def load(split, n):
        images = datasets.load_mnist(split, DATA / "mnist")[0][:n]
        z, log_det = layer.inverse(datasets.dequantize(images, generator, torch.float32))
        return z, log_det.double()

    train, test = load("train", 50_000)[0], load("test", None)
    mean, factor = train.mean(0), torch.linalg.cholesky(train.T.cov(correction=0).double())
    white = torch.linalg.solve_triangular(factor, (test[0] - mean).T.double(), upper=False)
    nll = 0.5 * (white**2).sum(0) + factor.diagonal().log().sum() + 392 * math.log(2 * math.pi)
    assert float(nll.mean()) == pytest.approx(1366.9, abs=1.4)
    assert 2 * float(nll.std()) / 100 == pytest.approx(1.4, abs=0.05)
    in_pixels = (nll - test[1]).mean()
    assert float(in_pixels / 784 / math.log(2) + 8) == pytest.approx(2.01, abs=0.01)


def run_example(folder, *options, data=None):
    environment = {k: v for k, v in os.environ.items() if k != "GEOFLOW_DATA"}
    environment |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if data is not None:
        environment["GEOFLOW_DATA"] = str(data)
    command = [sys.executable, str(ROOT / "examples" / "mnist.py"), *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@needs("mnist")
def test_the_example(tmp_path):
    options = ["--points", "800", "--steps", "2", "--n-steps", "2", "--noise", "2"]
    result = run_example(tmp_path, *options, "--out", "run", data=DATA)
    assert result.returncode == 0, result.stderr
    assert "800 (x 2) / 800 / 800" in result.stdout and "804460" in result.stdout
    rows = re.findall(r"^(\w+) +(\d+\.\d+) ± (\d+\.\d+) +(\d\.\d+)$", result.stdout, re.M)
    assert [row[0] for row in rows] == ["Gaussian", "MongeAmpereFlow"]
    curve = [float(x) for x in re.findall(r"^ +\d+ +(\d+\.\d+)$", result.stdout, re.M)]
    assert len(curve) >= 2 and min(curve) == pytest.approx(float(rows[1][1]), rel=0.05)
    # nats in logit space and bits per pixel differ by the logit's mean log-determinant
    differences = [
        float(nll) - 784 * math.log(2) * (float(bits) - 8) for _, nll, _, bits in rows
    ]
    assert differences == pytest.approx([4620, 4620], abs=40)
    for name in "run_samples.png", "run_curve.png":
        assert imread(tmp_path / name)[..., :3].std() > 0.05


def test_the_example_without_data(tmp_path):
    result = run_example(tmp_path)
    assert result.returncode == 1
    assert "GEOFLOW_DATA is not set" in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
