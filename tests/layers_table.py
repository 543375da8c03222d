"""Writes docs/normflows_layers.md from what each layer of normflows does when it is run.

    python tests/layers_table.py

tests/test_normflows_layers.py compares the page with another run.
"""

import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import normflows as nf
import torch
from normflows import flows

from geoflow_plugin.volume_change import exact, log_volume_change, value_and_log_volume_change

PAGE = Path(__file__).parent.parent / "docs" / "normflows_layers.md"
HEADER = """# Which layers of normflows serve injective flows

One row for every layer that normflows {normflows} exports, in both directions, written by
`python tests/layers_table.py` ({where}); no cell is written by hand, and
`tests/test_normflows_layers.py` compares the page with another run.

- **jvp**: `torch.func.jvp` gives the Jacobian that reverse mode gives, in float64.
- **tangents**: so does `vmap` over tangent vectors, the points batched inside: one pass of
  the layer for all columns, which is how `log_volume_change` takes them.
- **double backward**: the gradient of ½ log det JᵀJ for the layer's parameters is finite, and
  alike through forward mode and through reverse mode alone.
- **log det**: what the layer itself says in a float64 model: the dtype and shape where they
  are not float64 and (n,), and where its value is not log |det J| (to 1e-10; *once
  differentiable* means that J cannot be had with a graph).
- **exact**: `log_volume_change(mapping, z)`, mapping being the layer after zero padding of
  d coordinates, is the Gram determinant to 1e-10; *reverse* where the layer has no forward
  mode, so that its columns come from two batched reverse passes, with a warning.
- **stochastic**: the gradient with `method="hutchinson"`, whose products come from reverse
  mode alone, is the exact one (its mean over many probes, within five standard errors).
- **cuda**: all of it again on a GPU; – where there was none.

**yes** means that it holds; ✗ that the layer has no such map.

"""
NOTES = """## What to do where a cell says no

- **0-d or float32 log-determinants** (`AffineConstFlow`, `ActNorm`, `InvertibleAffine`,
  `Permute`, `Split`, `Merge`, `Squeeze`, `Composite`, ...): broadcast to (n,) and cast when
  adding them up, as `InjectiveFlow` does on its low side. On the high side no
  log-determinant is used at all: the volume change comes from the map's derivatives.
- **ActNorm** (in `GlowBlock`, too) sets itself up by its first batch. That must not happen
  inside `torch.func` (it raises, leaves a poisoned parameter, and has crashed the process).
  `log_volume_change` evaluates the mapping once beforehand, without gradients;
  before `value_and_log_volume_change`, do so yourself, with more than one sample.
- **Residual** cannot be traced by `torch.func` (buffers written in place, `requires_grad_`
  inside): the fallback to reverse mode serves, and says so once. With `reduce_memory=True`
  (its default) training uses a custom function that can be differentiated once: construct it
  with `reduce_memory=False`. The direction that inverts by fixed-point iteration is
  differentiated through the iteration; its own log-determinant is a truncated or random
  series (about 1e-7 at best).
- **BatchNorm** makes every row depend on the others: there is no Jacobian of a row, and
  its log-determinant leaves out the derivatives of the statistics by design. Use `ActNorm`.
- **MetropolisHastings, HamiltonianMonteCarlo** are random: no map, no volume change.
- **Composite** adds log-determinants up on the CPU, which fails on a GPU: give a flow its
  layers one by one.
- **Radial, Planar** have no inverse (Planar with leaky ReLU has), which the left inverse of
  an injective flow needs; so they serve as low-side layers of a base, or to sample.
- **Circular splines** map what is outside [-B, B] to zero, silently, in every coordinate:
  keep their input inside.
- Smooth activations (`torch.nn.SiLU`, tanh) where networks can be chosen: those of
  `nf.nets.MLP` and the splines' (ReLU) make log det JᵀJ jump across kinks.
"""

N, SIZE, LATENT = 7, 4, 3
IMAGE = (4, 4, 4)


def _net(*sizes):
    return nf.nets.MLP(list(sizes), leaky=0.1)


def _residual(reduce_memory):
    net = nf.nets.LipschitzMLP([SIZE, 8, SIZE], init_zeros=False, max_lipschitz_iter=20)
    return flows.Residual(net, reduce_memory=reduce_memory)


class _Images(torch.nn.Module):
    """A layer of images as one of vectors of 64 numbers."""

    shape = IMAGE

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        x, log_det = self.layer(z.reshape(-1, *self.shape))
        return x.flatten(1), log_det

    def inverse(self, z):
        x, log_det = self.layer.inverse(z.reshape(-1, *self.shape))
        return x.flatten(1), log_det


class _Pairs(torch.nn.Module):
    """A layer to or from two halves as one of vectors: halves are joined and split."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def _run(self, function, z):
        try:
            x, log_det = function(z)
        except (ValueError, RuntimeError):  # it takes a pair
            x, log_det = function(list(z.tensor_split(2, 1)))
        return (x if isinstance(x, torch.Tensor) else torch.cat(x, 1)), log_det

    def forward(self, z):
        return self._run(self.layer, z)

    def inverse(self, z):
        return self._run(self.layer.inverse, z)


class _Conditional(torch.nn.Module):
    """A class-conditional layer, of one class."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        return self.layer(z, torch.eye(2).to(z)[:1].expand(len(z), 2))

    def inverse(self, z):
        return self.layer.inverse(z, torch.eye(2).to(z)[:1].expand(len(z), 2))


def _glow(**options):
    return _Images(flows.GlowBlock(4, 6, init_zeros=False, **options))


MASK = torch.tensor([1.0, 0.0] * (SIZE // 2))
ANGLES = torch.pi * torch.ones(2)
LAYERS = {
    "AffineConstFlow": lambda: flows.AffineConstFlow((SIZE,)),
    "CCAffineConst": lambda: _Conditional(flows.CCAffineConst(SIZE, 2)),
    "AffineCoupling": lambda: _Pairs(flows.AffineCoupling(_net(2, 8, 4))),
    "AffineCouplingBlock": lambda: flows.AffineCouplingBlock(_net(2, 8, 4)),
    "AffineCouplingBlock (sigmoid)": lambda: flows.AffineCouplingBlock(
        _net(2, 8, 4), scale_map="sigmoid"
    ),
    "MaskedAffineFlow": lambda: flows.MaskedAffineFlow(
        MASK, _net(SIZE, 8, SIZE), _net(SIZE, 8, SIZE)
    ),
    "MaskedAffineAutoregressive": lambda: flows.MaskedAffineAutoregressive(SIZE, 8),
    "CoupledRationalQuadraticSpline": lambda: flows.CoupledRationalQuadraticSpline(SIZE, 1, 8),
    "AutoregressiveRationalQuadraticSpline": lambda: (
        flows.AutoregressiveRationalQuadraticSpline(SIZE, 1, 8)
    ),
    "CircularCoupledRationalQuadraticSpline": lambda: (
        flows.CircularCoupledRationalQuadraticSpline(SIZE, 1, 8, [0, 1])
    ),
    "CircularAutoregressiveRationalQuadraticSpline": lambda: (
        flows.CircularAutoregressiveRationalQuadraticSpline(SIZE, 1, 8, [0, 1])
    ),
    "GlowBlock": _glow,
    "GlowBlock (checkerboard)": lambda: _glow(split_mode="checkerboard", use_lu=False),
    "Invertible1x1Conv": lambda: _Images(flows.Invertible1x1Conv(4)),
    "Invertible1x1Conv (LU)": lambda: _Images(flows.Invertible1x1Conv(4, use_lu=True)),
    "InvertibleAffine": lambda: flows.InvertibleAffine(SIZE, use_lu=False),
    "InvertibleAffine (LU)": lambda: flows.InvertibleAffine(SIZE),
    "LULinearPermute": lambda: flows.LULinearPermute(SIZE),
    "Permute": lambda: flows.Permute(SIZE),
    "ActNorm": lambda: flows.ActNorm((SIZE,)),
    "BatchNorm": flows.BatchNorm,
    "Planar": lambda: flows.Planar((SIZE,)),
    "Planar (leaky ReLU)": lambda: flows.Planar((SIZE,), act="leaky_relu"),
    "Radial": lambda: flows.Radial((SIZE,)),
    "PeriodicShift": lambda: flows.PeriodicShift([0, 1], ANGLES, torch.ones(2)),
    "PeriodicWrap": lambda: flows.PeriodicWrap([0, 1], ANGLES),
    "Residual": lambda: _residual(reduce_memory=False),
    "Residual (reduce_memory)": lambda: _residual(reduce_memory=True),
    "Split": lambda: _Pairs(flows.Split()),
    "Merge": lambda: _Pairs(flows.Merge()),
    "Squeeze": lambda: _Images(flows.Squeeze()),
    "Composite": lambda: flows.Composite([flows.AffineCouplingBlock(_net(2, 8, 4))]),
    "Reverse": lambda: flows.Reverse(flows.AffineCouplingBlock(_net(2, 8, 4))),
}
RANDOM = ["HamiltonianMonteCarlo", "MetropolisHastings"]
ROWS = [(name, direction) for name in LAYERS for direction in ("forward", "inverse")]
COLUMNS = ["layer", "direction", "jvp", "tangents", "double backward", "log det", "exact",
           "stochastic", "cuda"]  # fmt: skip


def make(name, device="cpu"):
    """A layer with random parameters, in float64, set up by data where it wants that."""
    torch.manual_seed(1)
    layer = LAYERS[name]().to(device, torch.float64)
    z = inputs(layer, device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    try:
        layer(z)
    except NotImplementedError:
        layer.inverse(z)
    return layer


def inputs(layer, device="cpu", n=N):
    generator = torch.Generator().manual_seed(0)
    size = 64 if isinstance(layer, _Images) else SIZE
    z = torch.randn(n, size, generator=generator, dtype=torch.float64)
    return (0.7 * z).clamp(-2.5, 2.5).to(device)


def reverse_jacobian(mapping, z):
    """Rows (n, size, d) of the Jacobian of every sample, by plain reverse mode."""
    z = z.detach().requires_grad_()
    value = mapping(z)
    rows = [
        torch.autograd.grad(column.sum(), z, create_graph=True, materialize_grads=True)[0]
        for column in value.unbind(1)
    ]
    return value, torch.stack(rows, 1)


def gradients(value, layer):
    """Gradients in the parameters, those that are not used being zero."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    if not parameters or not value.requires_grad:
        return torch.zeros(1, dtype=torch.float64)
    found = torch.autograd.grad(
        value.sum(), parameters, materialize_grads=True, retain_graph=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def embedded(map_of, size, latent=LATENT):
    """The mapping whose volume is asked for: zero padding, then the layer."""

    def mapping(z):
        return map_of(torch.nn.functional.pad(z, (0, size - latent)))[0]

    return mapping


def close(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape, f"{tuple(found.shape)}"
    off = float((found - expected).abs().max())
    assert off <= tolerance * max(1.0, float(expected.abs().max())), f"off by {off:.1g}"


def cells(layer, direction, device="cpu"):
    """Cells jvp, tangents, double backward, log det, exact and stochastic of a row."""
    map_of = layer.forward if direction == "forward" else layer.inverse
    z = inputs(layer, device)
    try:
        _, log_det = map_of(z)
    except NotImplementedError:
        return ["✗"] * 6
    size = z.shape[1]
    mapping = embedded(map_of, size)
    low = z[:, :LATENT]
    try:
        _, jacobian = reverse_jacobian(mapping, low)
    except RuntimeError:
        return ["no: once differentiable"] * 6
    gram = jacobian.mT @ jacobian
    root = torch.linalg.cholesky_ex(gram)[0]
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def directions():
        eye = torch.eye(LATENT, dtype=z.dtype, device=device)
        return eye[:, None].expand(-1, N, -1).contiguous()

    def jvp():
        columns = [torch.func.jvp(mapping, (low,), (e,))[1] for e in directions()]
        close(torch.stack(columns, -1), jacobian)

    def tangents():
        columns = exact.forward_mode(mapping, low, directions())[1]
        close(columns.movedim(0, -1), jacobian)

    def double_backward():
        columns = exact.forward_mode(mapping, low, directions())[1]
        found = gradients(exact.half_log_det(columns), layer)
        assert found.isfinite().all(), "not finite"
        close(found, gradients(volume, layer), 1e-8)

    def own_log_det():
        kind = []
        if not isinstance(log_det, torch.Tensor):
            return f"a number, {log_det!r}"
        if log_det.dtype != z.dtype:
            kind.append(str(log_det.dtype).removeprefix("torch."))
        if log_det.shape != z.shape[:1]:
            kind.append(f"shape {tuple(log_det.shape)}")
        _, square = reverse_jacobian(lambda y: map_of(y)[0], z)
        off = float((torch.linalg.slogdet(square)[1] - log_det).abs().max())
        if not off <= (1e-10 if log_det.dtype == z.dtype else 1e-5):
            kind.append("not log det J")
        return ", ".join(kind) or "yes"

    def row_by_row():
        alone = (mapping(low[:3]) - mapping(low)[:3]).abs().max()
        assert alone < 1e-3, "it mixes samples"

    def exact_volume():
        row_by_row()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            close(log_volume_change(mapping, low), volume)
        assert not any("singular" in str(w.message) for w in caught), "singular"
        return "reverse" if any("reverse" in str(w.message) for w in caught) else "yes"

    def stochastic_gradient():
        row_by_row()
        expected, found = gradients(volume, layer), []
        generator = torch.Generator(device)
        for seed in range(8):
            generator.manual_seed(seed)
            _, surrogate = value_and_log_volume_change(
                mapping, low, None, "hutchinson", 32, generator
            )
            found.append(gradients(surrogate, layer))
        found = torch.stack(found)
        off = (found.mean(0) - expected).norm()
        error = (found.var(0).sum() / len(found)).sqrt()
        assert off <= 5 * error + 1e-6 * (1 + expected.norm()), f"{float(off / error):.0f} σ"

    checks = [jvp, tangents, double_backward, own_log_det, exact_volume, stochastic_gradient]
    return [_cell(check) for check in checks]


def _cell(check):
    """What a check says; yes if nothing, no and why if it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check() or "yes"
    except AssertionError as error:
        return f"no: {error}"
    except (RuntimeError, ArithmeticError) as error:
        return f"no: {type(error).__name__}"


def row(name, direction):
    """All cells of one row."""
    found = cells(make(name), direction)
    on_gpu = "–"
    if torch.cuda.is_available():
        try:
            there = cells(make(name, "cuda"), direction, "cuda")
        except RuntimeError:
            there = ["RuntimeError"]
        on_gpu = "yes" if there == found else "no: " + ", ".join(there)
    return [name, direction, *found, on_gpu]


def main():
    """Run every row and write the page."""
    torch.set_num_threads(1)
    devices = "with a GPU" if torch.cuda.is_available() else "no GPU: cuda cells are –"
    where = f"torch {torch.__version__}, Python {platform.python_version()}, {devices}"
    lines = [HEADER.format(normflows=version("normflows"), where=where)]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for name, direction in ROWS:
        found = row(name, direction)
        print(*found, sep=" | ", flush=True)
        lines.append("| " + " | ".join(found) + " |")
    lines += [f"| {name} | both | " + " | ".join(["random"] * 7) + " |" for name in RANDOM]
    PAGE.write_text("\n".join([*lines, "", NOTES.strip()]) + "\n")


if __name__ == "__main__":
    main()
