"""Real data on SO(3), SPD matrices and tori: baselines, flows and their mixture.

    GEOFLOW_DATA=../shared/data python examples/many_spaces.py --names rna eeg

Every row of the table is one data set, split 80/10/10: validation points stop the flows
and weigh the mixture, test points are scored once. The data are those of gf.datasets.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402
from geomstats.geometry.nfold_manifold import NFoldManifold  # noqa: E402
from geomstats.geometry.spd_matrices import (  # noqa: E402
    SPDAffineMetric,
    SPDLogEuclideanMetric,
    SPDMatrices,
)
from geomstats.geometry.special_orthogonal import SpecialOrthogonal  # noqa: E402

import geoflow_plugin as gf  # noqa: E402
from geoflow_plugin import geometry  # noqa: E402

MODELS = ["plain", "KernelDensity", "MoserFlow", "recipe"]
RECIPES = ["mixture", "base"]


def nickel(one_per_location=True):
    """Crystal orientations; places stay on one side of the split."""
    points, places = gf.datasets.load_orientations(one_per_location=one_per_location)
    return SpecialOrthogonal(3), points, places


def eeg(metric, n_channels):
    """Covariances of brain signals, a trial a row."""
    points, _ = gf.datasets.load_eeg(n_channels=n_channels)
    space = SPDMatrices(n_channels, equip=False)
    return space.equip_with_metric(metric), points, None


def torsions(name, group=None, by_structure=False):
    """Torsion angles without repeats; by structure where chains are related."""
    points, structures = gf.datasets.load_torsions(name, group=group, drop_duplicates=True)
    space = NFoldManifold(Hypersphere(1), points.shape[1])
    return space, points, structures if by_structure else None


SETS = {
    "nickel": nickel,
    "nickel, all scans": lambda: nickel(one_per_location=False),
    "eeg, affine": lambda: eeg(SPDAffineMetric, 4),
    "eeg, log-Euclidean": lambda: eeg(SPDLogEuclideanMetric, 4),
    "rna": lambda: torsions("rna"),
    "isoleucine": lambda: torsions("ile"),
    "tryptophan": lambda: torsions("top8000", "trp", by_structure=True),
    "phi-psi General": lambda: torsions("dockbench", "General", by_structure=True),
    "phi-psi Glycine": lambda: torsions("dockbench", "Glycine", by_structure=True),
    "phi-psi Proline": lambda: torsions("dockbench", "Proline", by_structure=True),
    "phi-psi Pre-Pro": lambda: torsions("dockbench", "Pre-Pro", by_structure=True),
}


def normal_by_moments(space, points, n_iterations=20):
    """WrappedNormal at the Frechet mean, as wide as the mean squared distance to it."""
    mean = geometry.projection(space, points.mean(0, keepdim=True))
    for _ in range(n_iterations):
        step = geometry.log(space, points, mean.expand_as(points)).mean(0, keepdim=True)
        mean = geometry.exp(space, step, mean)
    squared = geometry.dist(space, points, mean.expand_as(points)).square().mean()
    return gf.WrappedNormal(space, mean[0], float((squared / space.dim).sqrt()))


def fit(space, train, validation, recipe, steps, seed):
    """The same defaults on every space; returns MODELS.

    The recipe is a mixture of the kernel density and the flow on the plain base, or a
    flow whose base is the kernel density.
    """
    torch.manual_seed(seed)
    options = {"validation": validation, "max_steps": steps, "seed": seed, "progress": False}
    compact = geometry.is_compact(space)
    plain = gf.Uniform(space) if compact else normal_by_moments(space, train)
    kde = gf.KernelDensity(space).fit(train)
    flow = gf.MoserFlow(space, base=plain).fit(train, **options)
    if recipe == "mixture":
        both = gf.Mixture(space, [kde, flow]).fit(validation)
    else:
        both = gf.MoserFlow(space, base=kde).fit(train, **options)
    return [plain, kde, flow, both]


def at_most(points, n, generator):
    """A random subset of n points, if there are more."""
    return points if len(points) <= n else points[generator.permutation(len(points))[:n]]


def run(name, seed, n_points, recipe, steps):
    """Fit and score one split; returns what a row shows."""
    space, points, groups = SETS[name]()
    parts = gf.datasets.split(points.astype("float32"), seed, groups=groups)
    generator = np.random.default_rng(seed)
    train, validation, test = (
        torch.as_tensor(at_most(part, n_points, generator)) for part in parts
    )
    start = time.perf_counter()
    models = fit(space, train, validation, recipe, steps, seed)
    seconds = time.perf_counter() - start
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        held_out = [[-float(m.log_prob(x).mean()) for m in models] for x in (validation, test)]
    return {
        "dim": space.dim,
        "sizes": f"{len(train)} / {len(validation)} / {len(test)}",
        "validation": held_out[0],
        "test": held_out[1],
        "integral": gf.check_normalization(models[3], 4000, draws),
        "weight": float(models[3].weights[1]) if recipe == "mixture" else 1.0,
        "negative": models[2].negative_mass(),
        "seconds": seconds,
    }


def show(values, digits=3):
    """Mean, and the standard deviation over seeds if there are several."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def cells(name, rows):
    """The cells of one data set, from a row for each seed."""
    test = [show(column) for column in zip(*(row["test"] for row in rows), strict=True)]
    validation = np.mean([row["validation"] for row in rows], axis=0)
    # of the seed that is furthest from one
    integral, error = max(
        (row["integral"] for row in rows), key=lambda z: abs(z[0] - 1) / max(z[1], 1e-3)
    )
    return [
        name,
        str(rows[0]["dim"]),
        rows[0]["sizes"],
        *test,
        *(f"{value:.3f}" for value in validation[[1, 3]]),
        show([row["weight"] for row in rows], 2),
        f"{integral:.3f} ± {error:.3f}",
        f"{max(row['negative'] for row in rows):.1e}",
        f"{np.mean([row['seconds'] for row in rows]):.0f}",
    ]


HEAD = ["set", "dim", "train / validation / test", *(f"test NLL: {c}" for c in MODELS),
        *(f"validation: {MODELS[k]}" for k in (1, 3)), "share of the flow",
        "integral: recipe", "negative mass", "fit, s"]  # fmt: skip


def main(args):
    """Print the table row by row."""
    print("| " + " | ".join(HEAD) + " |")
    print("| --- " * len(HEAD) + "|", flush=True)
    for name in args.names:
        rows = [
            run(name, seed, args.points, args.recipe, args.steps) for seed in range(args.seeds)
        ]
        print("| " + " | ".join(cells(name, rows)) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=1, help="splits 0, 1, ...")
    parser.add_argument("--points", type=int, default=2000, help="of each part, at most")
    parser.add_argument("--recipe", default="mixture", choices=RECIPES)
    parser.add_argument("--steps", type=int, help="at most; default of MoserFlow.fit")
    torch.set_num_threads(1)
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        sys.exit(str(error))
