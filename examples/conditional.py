"""Densities given covariates: orientations given a place, side chains given a backbone.

    GEOFLOW_DATA=../shared/data python examples/conditional.py --name nickel

Held-out conditional likelihood of flows and kernel densities, with and without the
covariates, on one split 80/10/10. Validation points stop the flows and weigh the mixture;
test points are scored once. ``--blocks`` holds out whole areas of the nickel surface, so that
a test place has no measured neighbours.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from geomstats.geometry.hypersphere import Hypersphere  # noqa: E402
from geomstats.geometry.nfold_manifold import NFoldManifold  # noqa: E402
from geomstats.geometry.special_orthogonal import SpecialOrthogonal  # noqa: E402

import geoflow_plugin as gf  # noqa: E402


def nickel(blocks):
    """Crystal orientation given the place on a surface of 12 by 10 micrometres."""
    points, places = gf.datasets.load_orientations(one_per_location=True)
    path = os.path.join(os.environ["GEOFLOW_DATA"], "so3", "nickel_ebsd.npz")
    with np.load(path, allow_pickle=False) as arrays:
        first = [np.flatnonzero(arrays["location"] == place)[0] for place in places]
        covariates = np.stack([arrays["xpos"][first], arrays["ypos"][first]], axis=1)
    areas = np.floor(covariates / 1.0).astype(int) @ [100, 1]  # squares of a micrometre
    return SpecialOrthogonal(3), points, covariates, areas if blocks else None


def rotamers(blocks):
    """Side chain (chi1, chi2) of isoleucine given the backbone (phi, psi)."""
    angles, _ = gf.datasets.load_torsions("ile", drop_duplicates=True)
    backbone, side_chain = angles[:, :2], angles[:, 2:]
    return NFoldManifold(Hypersphere(1), 2), side_chain, backbone.reshape(-1, 4), None


SETS = {"nickel": nickel, "rotamers": rotamers}


def fit(space, train, validation, context, given, args):
    """Models with their names; whether they listen is ``conditional``."""
    options = {
        "max_steps": args.steps,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "progress": False,
    }
    torch.manual_seed(args.seed)
    plain = gf.MoserFlow(space).fit(train, validation=validation, **options)
    torch.manual_seed(args.seed)
    flow = gf.MoserFlow(space, context_dim=context.shape[1])
    flow.fit(train, context=context, validation=(validation, given), **options)
    kernels = gf.ConditionalKernelDensity(space).fit(train, context)
    mixture = gf.Mixture(space, [kernels, flow]).fit(validation, context=given)
    return {
        "KernelDensity": gf.KernelDensity(space).fit(train),
        "MoserFlow": plain,
        "conditional KernelDensity": kernels,
        "conditional MoserFlow": flow,
        "conditional mixture": mixture,
    }


def main(args):
    space, points, covariates, groups = SETS[args.name](args.blocks)
    rows = gf.datasets.split(np.arange(len(points)), args.seed, groups=groups)
    rows = [part[: args.points] for part in rows]
    X = [torch.tensor(points[r], dtype=torch.float32) for r in rows]
    c = [torch.tensor(covariates[r], dtype=torch.float32) for r in rows]
    print(f"{args.name}: {', '.join(str(len(x)) for x in X)} points to train, validate, test")
    start = time.perf_counter()
    models = fit(space, X[0], X[1], c[0], c[1], args)
    print(f"fitted in {time.perf_counter() - start:.0f} s\n")

    print("model                        test NLL (nats)    gain of a point over KernelDensity")
    baseline = None
    for name, model in models.items():
        given = {"context": c[2]} if model.conditional else {}
        with torch.no_grad():
            nll = -model.log_prob(X[2], **given).double()
        baseline = nll if baseline is None else baseline
        gain, root = baseline - nll, len(nll) ** 0.5
        print(
            f"{name:<27}{nll.mean():9.3f} ± {nll.std() / root:.3f}"
            f"{gain.mean():14.3f} ± {gain.std() / root:.3f}",
            flush=True,
        )
    kernels, flow = models["conditional KernelDensity"], models["conditional MoserFlow"]
    mixture = models["conditional mixture"]
    weights = [f"{w:.2f}" for w in mixture.weights.tolist()]
    print(f"\nmixture            {weights[0]} kernels + {weights[1]} flow")
    widths = ", ".join(f"{b:.3g}" for b in kernels.context_bandwidths.tolist())
    print(f"context bandwidths {widths} of the kernels, in the covariates' units")
    generator = torch.Generator().manual_seed(args.seed)
    for i in range(args.checks):
        at = gf.AtContext(flow, c[2][i])
        integral, error = gf.check_normalization(at, args.check_size, generator=generator)
        place = ", ".join(f"{value:.2f}" for value in c[2][i].tolist())
        print(f"integral at c = ({place}): {integral:.4f} ± {error:.4f}", flush=True)
    path = args.output or f"conditional_{args.name}.png"
    figure = DRAW[args.name](models, X[2], c[2], generator)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"picture            {path}")


def draw_nickel(models, points, places, generator):
    """Test places, coloured by the third axis of crystals: measured, and drawn by models."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    flow = models["conditional MoserFlow"]
    panels = {
        "measured": points,
        "a sample of p(R | place) each": flow.sample(
            len(points), generator=generator, context=places
        ),
        "a sample of p(R) each": models["MoserFlow"].sample(len(points), generator=generator),
    }
    for ax, (title, shown) in zip(axes, panels.items(), strict=True):
        colour = ((shown[:, :, 2] + 1) / 2).clamp(0, 1).numpy()
        ax.scatter(*places.T.numpy(), c=colour, s=28)
        ax.set(title=title, aspect="equal", xlabel="x (µm)", ylabel="y (µm)")
    return figure


def draw_rotamers(models, points, backbones, generator):
    """Densities of the side chain at a helix and a strand, and test points near by."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 7.4), layout="constrained")
    angle = np.linspace(0, 2 * np.pi, 120)
    grid = np.stack(np.meshgrid(angle, angle, indexing="ij"), -1).reshape(-1, 2)
    grid = torch.tensor(np.stack([np.cos(grid), np.sin(grid)], -1), dtype=torch.float32)
    places = {"helix": (-63, -43), "strand": (-115, 130)}
    for row, (name, degrees) in zip(axes, places.items(), strict=True):
        angles = np.radians(degrees)
        at = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], -1).ravel()).float()
        near = (backbones - at).norm(dim=1) < 0.3
        shown = np.degrees(torch.atan2(points[near, :, 1], points[near, :, 0]).numpy()) % 360
        models_shown = ["conditional KernelDensity", "conditional MoserFlow"]
        for ax, model in zip(row, models_shown, strict=True):
            with torch.no_grad():
                density = gf.AtContext(models[model], at).log_prob(grid).exp()
            density = density.reshape(120, 120)
            ax.imshow(density.T.sqrt(), origin="lower", extent=(0, 360, 0, 360))
            ax.plot(*shown.T, "w.", ms=3)
            ax.set(title=f"{name}: {model}", xlabel="χ1", ylabel="χ2")
    return figure


DRAW = {"nickel": draw_nickel, "rotamers": draw_rotamers}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="nickel", choices=sorted(SETS))
    parser.add_argument("--blocks", action="store_true", help="hold out areas of the surface")
    parser.add_argument("--points", type=int, help="at most, of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most; default of MoserFlow.fit")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--checks", type=int, default=3, help="contexts to integrate at")
    parser.add_argument("--check-size", type=int, default=10_000)
    parser.add_argument("--output", help="default: conditional_<name>.png")
    try:
        if "GEOFLOW_DATA" not in os.environ:
            raise FileNotFoundError("GEOFLOW_DATA is not set; see docs/data.md.")
        main(parser.parse_args())
    except FileNotFoundError as error:
        sys.exit(str(error))
