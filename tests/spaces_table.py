"""Writes docs/spaces.md from what each row of the catalogue does when it is run.

    python tests/spaces_table.py

A cell says yes where the conformance suite of ``geoflow_plugin.testing`` passes there.
"""

import math
import platform
from pathlib import Path

import torch
from catalogue import BANDWIDTHS, CATALOGUE, REFUSED

import geoflow_plugin as gf
from geoflow_plugin import geometry
from geoflow_plugin.geometry.dispatch import UnsupportedError
from geoflow_plugin.testing import check_distribution, check_space

HEADER = """# Spaces

One row for every kind of space geomstats 2.8.0 exports, written by
`python tests/spaces_table.py` ({where}); no cell is written by hand.

**yes** means that the conformance suite passed: `check_space` (float64, float32; the
laws of tangent spaces, metric, volume element, gradient, divergence, Laplacian, exp, log,
distance and chart that the space has, Stokes' theorem and the volume by Monte Carlo),
`check_distribution` for the base law and for a `KernelDensity`, and for `MoserFlow` 20
steps of training in float32, then samples on the space and an integral of one within four
standard errors. The volume is that of `space.metric`; ∞ for a space that is not compact.
exp / log: ✓ there, ✗ not (iterative are the log of Stiefel manifolds, and both under the
Fisher metrics of beta, gamma and Dirichlet laws: NaN where they do not converge). Chart:
R^d ⇄ space with exact volume change (`layers.Chart`).
"""

NOTES = """## Notes

**Level sets and coordinates nobody registered.** Any user `LevelSet` (also with geomstats'
five obligatory methods alone, or an oblique `to_tangent`), any `ImmersedSet` in its
intrinsic coordinates and any space with a `metric_matrix` work under geomstats' pytorch
backend (`GEOMSTATS_BACKEND=pytorch`); under numpy they are refused with that advice. What
coordinates fill nobody can guess: until `geometry.model` says so, in the one line that the
refusal shows, there are fields, divergences and Laplacians, and no normal laws or kernels.
`Euclidean` and the linear spaces of matrices under a metric nobody registered need no such
line, small spheres have their uniform law as level sets; SO(n), Grassmannians and rotation
vectors have no laws then. The
uniform measure of a level set is a pool of 65,536 points from a shell, moved along the
surface; its volume has a stated error (`spaces.level_set_measure.log_volume_error`), means
over it share an error of 0.4 % of a standard deviation. Up to six numbers a point, compact.

**Without a row.** `GraphSpace` is `Matrices`. SPD Lie-Cholesky has its log for 2 x 2 matrices
alone.

**Normal laws.** On spaces without cut locus, exp of a normal vector; on spheres, SO(n) and
Kendall shapes the sum over all preimages; on Stiefel and Grassmann manifolds the Cayley map
in place of exp; under a metric that is not complete or has no exp in closed form (SPD
Euclidean, Bures-Wasserstein, power, correlation quotient, Fisher metrics of beta, gamma,
Dirichlet ...) the exp of a complete metric on the same set, with the exact change of volume;
on matrices of rank k, coordinates of the lower-trapezoidal factor. On generic level sets
kernels have a bounded reach (a fraction of an estimate of the reach of the surface) and
`KernelDensity` adds a share of the uniform law; on meshes see [meshes.md](meshes.md).

**Complex spaces** (a tree of their own in geomstats): `gf.spaces.RealView(space)`, whose
points are `torch.view_as_real` of the complex ones, dimension the real one.

**Kendall shapes** are what `PreShapeSpace(k, m).equip_with_group_action("rotations")` and
`equip_with_quotient()` make, for m = 2 and 3. For m = 3 shapes of collinear landmarks are
singular and left out (a null set); wide kernels have integrable spikes there.

**Several arrays, one point.** Through half turns of rotation vectors, the edges of the
Klein bottle's square, and rotations of a pre-shape, functions of the array are no functions
on the space, and divergences of networks of the array would not integrate to zero. Fields
and potentials therefore see `geometry.embed(space, x)` there (a rotation matrix, a point of
R^7, invariants of the shape), and their vectors are projected and pulled back; elsewhere
`embed` is the identity.

**Where we differ from geomstats 2.8.0.** Haar measure of SO(n) (its sampler is not
uniform), `PoincareBall.projection` for negative coordinates, orthogonal projectors of
hyperboloid and SE(n), hollow matrices without their diagonal, and the Fisher metric of
diagonal normal laws, whose `inner_product` takes variances for standard deviations while
its `dist` does not (ours agrees with its `dist`). On SE(2) vectors geodesics are straight
lines, as the metric matrix, the identity, says (geomstats' `exp` is another), and the
Bures-Wasserstein distance of matrices of rank k agrees with a search for the nearest pair
of factors, where geomstats' does not.

**torch 2.13** gets second derivatives through forward mode of `linalg.solve`, `slogdet` and
`det` wrong without a word; geometry uses `inv`, `cholesky`, `qr` and `solve_triangular`.
"""

COLUMNS = ["space", "point", "dim", "volume", "base", "exp / log", "chart", "float64",
           "float32", "base law", "KernelDensity", "MoserFlow", "cuda"]  # fmt: skip


def passes(function):
    """Cell of a check: yes, what failed, or that it is not there."""
    try:
        function()
    except AssertionError as error:
        return "no: " + "; ".join(str(error).splitlines()[1:3]).strip()
    except UnsupportedError:
        return "–"
    return "yes"


def has(function):
    try:
        function()
    except UnsupportedError:
        return "✗"
    return "✓"


def row(name):
    """Cells of one space."""
    space = CATALOGUE[name]()
    compact = geometry.is_compact(space)

    def law(dtype=torch.float64, scale=0.5):
        if compact:
            return gf.Uniform(space, dtype=dtype)
        return gf.WrappedNormal(space, scale=scale, dtype=dtype)

    x = law().sample(24, generator=torch.Generator().manual_seed(0))

    def kernel_density():
        if not gf.KernelDensity.supports(space):
            raise UnsupportedError
        check_distribution(
            gf.KernelDensity(space, BANDWIDTHS.get(name, [0.2, 0.4])).fit(x), n=200
        )

    def moser(device="cpu"):
        torch.manual_seed(0)
        X = law(torch.float32, 0.3).sample(64)
        field = gf.networks.SourceField(space, n_sources=16, dtype=torch.float32)
        flow = gf.MoserFlow(space, field=field)
        flow.fit(X, max_steps=20, progress=False, device=device)
        check_distribution(flow, n=200)

    def cuda():
        if not torch.cuda.is_available():
            raise UnsupportedError
        check_space(space, n=16, n_samples=1000, device="cuda")
        moser("cuda")

    arrows = (
        has(lambda: geometry.exp(space, torch.zeros_like(x), x)),
        has(lambda: geometry.log(space, x.clone(), x)),
    )
    return [
        name,
        str(tuple(space.shape)),
        str(geometry.dim(space)),
        f"{math.exp(geometry.log_volume(space)):.4g}" if compact else "∞",
        type(law()).__name__,
        " / ".join(arrows),
        has(lambda: geometry.chart(space, x)),
        passes(lambda: check_space(space, n=24, n_samples=2000)),
        passes(lambda: check_space(space, n=12, n_samples=500, dtype=torch.float32)),
        passes(lambda: check_distribution(law(), n=200)),
        passes(kernel_density),
        passes(moser),
        passes(cuda),
    ]


def main():
    """Run every row and write the page."""
    torch.set_num_threads(1)
    devices = "with a GPU" if torch.cuda.is_available() else "no GPU: cuda cells are –"
    where = f"torch {torch.__version__}, Python {platform.python_version()}, {devices}"
    lines = [HEADER.format(where=where).rstrip(), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for name in CATALOGUE:
        cells = row(name)
        print(*cells, sep=" | ", flush=True)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Not supported, and why", "", "| space | reason |", "| --- | --- |"]
    lines += [f"| {name} | {reason} |" for name, (_, reason) in REFUSED.items()]
    lines += ["", NOTES.strip()]
    page = Path(__file__).parent.parent / "docs" / "spaces.md"
    page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
