"""Densities of natural events on the Earth: baselines, a Moser flow and their mixture.

    GEOFLOW_DATA=/path/to/data python examples/earth.py --name flood

The data are those of the papers on flows on the sphere; see gf.datasets.load_earth.
"""

import argparse
import sys
import time

import matplotlib.pyplot as plt
import torch
from geomstats.geometry.hypersphere import Hypersphere

import geoflow_plugin as gf
from geoflow_plugin.plotting import plot_density


def sample(model, n, generator):
    """Points, and how many proposals they took where they come by rejection."""
    if isinstance(model, gf.MoserFlow):
        return model.sample_with_count(n, generator)
    return model.sample(n, generator=generator), None


def main(args):
    space = Hypersphere(2)
    points = gf.datasets.load_earth(args.name, drop_duplicates=not args.rows)
    points = torch.as_tensor(points, dtype=torch.float32)
    train, validation, test = gf.datasets.split(points, args.seed)
    what = "rows" if args.rows else "distinct locations"
    print(
        f"{args.name}: {len(points)} {what}, "
        f"split {len(train)} / {len(validation)} / {len(test)}"
    )

    start = time.perf_counter()
    kde = gf.KernelDensity(space).fit(train)
    torch.manual_seed(args.seed)
    flow = gf.MoserFlow(space)
    flow.fit(train, validation=validation, max_steps=args.steps, seed=args.seed)
    mixture = gf.Mixture(space, [kde, flow]).fit(validation)
    print(f"fitted in {time.perf_counter() - start:.0f} s\n")

    models = {
        "Uniform": gf.Uniform(space),
        "KernelDensity": kde,
        "MoserFlow": flow,
        "Mixture": mixture,
    }
    print(
        "model           test NLL (nats)            integral   10,000 samples   proposals each"
    )
    generator = torch.Generator().manual_seed(args.seed)
    for name, model in models.items():
        with torch.no_grad():
            nll = -model.log_prob(test)
        integral, error = gf.check_normalization(model, 10_000, generator=generator)
        start = time.perf_counter()
        _, n_proposals = sample(model, 10_000, generator)
        seconds = time.perf_counter() - start
        proposals = "-" if n_proposals is None else f"{n_proposals / 10_000:.1f}"
        print(
            f"{name:<14}{nll.mean():8.3f} ± {nll.std() / len(nll) ** 0.5:.3f}"
            f"{integral:13.4f} ± {error:.4f}{seconds:15.2f} s{proposals:>17}"
        )
    weights = [f"{weight:.2f}" for weight in mixture.weights.tolist()]
    print(f"\nmixture         {weights[0]} KernelDensity + {weights[1]} MoserFlow")
    print(f"negative mass   {flow.negative_mass():.1e}")

    path = args.output or f"earth_{args.name}.png"
    ax = plot_density(mixture, test)
    ax.set_title(f"{args.name}: density, and the {len(test)} events of the test")
    ax.figure.savefig(path, dpi=150)
    plt.close(ax.figure)
    print(f"picture         {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="flood", choices=sorted(gf.datasets.EARTH))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most; default of MoserFlow.fit")
    parser.add_argument("--rows", action="store_true", help="keep repeated locations")
    parser.add_argument("--output", help="default: earth_<name>.png")
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        sys.exit(str(error))
