"""The density of large cities on the sphere, from 50 of them: data inside geomstats.

Cross-validation: every city is scored by models that never saw it. Within the training
folds each fold is held out in turn, to decide when a Moser flow on a fitted kernel
density stops; the model is the mixture of these flows.

    python examples/cities.py --output cities.png
"""

import argparse
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from geomstats.geometry.hypersphere import Hypersphere

import geoflow_plugin as gf
from geoflow_plugin.plotting import plot_density

SHOWN = "Tokyo", "Mexico City", "New York", "Lagos", "Moscow", "Buenos Aires", "Jakarta"


def kernel_density(space, folds, args):
    return gf.KernelDensity(space).fit(torch.cat(folds))


def moser_flow(space, folds, args):
    flows = []
    for i, held_out in enumerate(folds):
        rest = torch.cat(folds[:i] + folds[i + 1 :])
        torch.manual_seed(args.seed)
        field = gf.networks.SourceField(space, n_sources=64)  # fewer than by default
        flow = gf.MoserFlow(space, base=gf.KernelDensity(space).fit(rest), field=field)
        flow.fit(rest, validation=held_out, max_steps=args.steps, progress=False)
        flows.append(flow)
    return gf.Mixture(space, flows)


RECIPES = {
    "Uniform": lambda space, folds, args: gf.Uniform(space),
    "KernelDensity": kernel_density,
    "MoserFlow": moser_flow,
}


def quadrature(distribution, n=200):
    """Integral over the sphere by Gauss-Legendre in height, trapezoids in longitude."""
    z, weight = np.polynomial.legendre.leggauss(n)
    angle = np.arange(2 * n) * math.pi / n
    z, angle = (a.ravel() for a in np.meshgrid(z, angle, indexing="ij"))
    ring = np.sqrt(1 - z**2)
    points = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
    with torch.no_grad():
        log_prob = [distribution.log_prob(p) for p in np.array_split(points, 40)]
    density = torch.cat(log_prob).double().exp().numpy()
    return float(np.repeat(weight, 2 * n) @ density) * math.pi / n


def draw(space, model, cities, names, samples, path):
    subplot_kw = {"projection": "mollweide"}
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 7.6), subplot_kw=subplot_kw, layout="constrained"
    )
    plot_density(model, cities, axes[0])
    axes[0].set_title("Density of large cities, and the 50 it was learned from")
    for name in SHOWN:
        x, y, z = cities[names.index(name)].tolist()
        where = math.atan2(y, x), math.asin(z)
        axes[0].annotate(
            name, where, (5, -9), textcoords="offset points", color="white", size="x-small"
        )
    plot_density(model, samples, axes[1])
    axes[1].set_title(f"{len(samples)} samples")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args):
    space = Hypersphere(2)
    points, names = gf.datasets.load_cities()
    points = points * [-1, -1, 1]  # geomstats counts longitude from the date line
    points = torch.as_tensor(points, dtype=torch.float32)
    order = torch.as_tensor(np.random.default_rng(args.seed).permutation(len(points)))
    folds = list(points[order].tensor_split(args.folds))

    start = time.perf_counter()
    print(f"{args.folds}-fold cross-validation on {len(points)} cities")
    print("model           test NLL (nats)   minus KernelDensity")
    scores = {}
    for name, recipe in RECIPES.items():
        models = [recipe(space, folds[:i] + folds[i + 1 :], args) for i in range(args.folds)]
        with torch.no_grad():
            nll = [-m.log_prob(x) for m, x in zip(models, folds, strict=True)]
        scores[name] = torch.cat(nll)
    for name, nll in scores.items():
        difference = nll - scores["KernelDensity"]
        mean_error = [
            f"{v.mean():6.3f} ± {v.std() / len(v) ** 0.5:.3f}" for v in (nll, difference)
        ]
        print(f"{name:<14}{mean_error[0]:>17}{mean_error[1]:>22}")
    print(f"{time.perf_counter() - start:.0f} s")

    model = moser_flow(space, folds, args)  # on all cities
    generator = torch.Generator().manual_seed(args.seed)
    integral, error = gf.check_normalization(model, 20_000, generator=generator)
    print(f"\nintegral        {integral:.4f} ± {error:.4f} by importance sampling")
    print(f"                {quadrature(model):.4f} by quadrature")
    negative = max(flow.negative_mass() for flow in model.components)
    print(f"negative mass   {negative:.1e} (largest of {args.folds} flows)")
    start = time.perf_counter()
    samples = model.sample(10_000, generator=generator)
    seconds = time.perf_counter() - start
    _, n_proposals = model.components[0].sample_with_count(10_000, generator)
    print(
        f"sampling        {seconds:.2f} s for 10,000 points, exact by rejection, "
        f"{n_proposals / 10_000:.1f} proposals each"
    )
    draw(space, model, points, names, samples[:500], args.output)
    print(f"picture         {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="at most, for a flow")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--output", default="cities.png")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
