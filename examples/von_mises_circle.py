"""Von Mises data on the unit circle: joint training against two steps, circle against line.

The data are those of Caterini et al. (2021): angles of a von Mises law of concentration 1
about pi / 2. A line as latent space leaves a gap or an overlap, a circle does not.

    python examples/von_mises_circle.py --seeds 5 --output von_mises_circle.png
"""

import argparse
import itertools
import math
import time

import matplotlib.pyplot as plt
import normflows as nf
import numpy as np
import torch
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hypersphere import Hypersphere
from scipy.stats import vonmises

import geoflow_plugin as gf

TRUTH = vonmises(1.0, loc=math.pi / 2)


def make_data(seed, n):
    angle = TRUTH.rvs(n, random_state=np.random.default_rng(seed))
    return torch.tensor(np.stack([np.cos(angle), np.sin(angle)], axis=1), dtype=torch.float32)


def couplings():
    """Four couplings without the linear maps; their random start bends the circle."""
    layers = gf.layers.smooth_couplings(2, n_blocks=4, width=32)[::2]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return layers


def circle_with_splines():
    """Base and splines make the density on the circle, couplings the circle's image."""
    circle = Hypersphere(1)
    chart = gf.layers.Chart(circle)  # angles to points
    low_layers = [nf.flows.Reverse(chart)]
    for _ in range(2):
        low_layers += [
            nf.flows.CircularAutoregressiveRationalQuadraticSpline(
                1, 1, 16, ind_circ=[0], tail_bound=math.pi
            ),
            nf.flows.PeriodicShift([0], bound=math.pi, shift=math.pi),  # moves the cut
        ]
    return gf.InjectiveFlow(
        2, circle, None, [*low_layers, chart], couplings(), reconstruction_weight=1000.0
    )


def circle_alone():
    """A uniform base, so that the density is how fast the couplings run along the circle."""
    return gf.InjectiveFlow(
        2, Hypersphere(1), high_layers=couplings(), reconstruction_weight=100.0
    )


def line():
    """As in the paper, a normal law on a line, with a mean and a scale to learn."""
    base = gf.WrappedNormal(Euclidean(1))
    low_layers = [nf.flows.AffineConstFlow((1,))]
    return gf.InjectiveFlow(
        2,
        None,
        base,
        low_layers,
        gf.layers.smooth_couplings(2, 6, 32),
        dim=1,
        reconstruction_weight=100.0,
    )


@torch.no_grad()
def trace(flow, n=20_000):
    """Points along the learned curve, and what the flow says of the arcs between them."""
    if flow.latent_space.shape == (1,):  # the base, far out
        z = torch.linspace(-8, 8, 2 * n + 1)[:, None]
        x = flow.decode(z)
    else:
        angle = torch.linspace(-math.pi, math.pi, 2 * n + 1)
        x = flow.decode(torch.stack([angle.cos(), angle.sin()], dim=1))
    length = (x[2::2] - x[:-2:2]).double().norm(dim=1)
    density = torch.cat([flow.log_prob(part) for part in x[1::2].split(4096)]).double().exp()
    return x[1::2], density, density * length


def shares(x, n_bins, weights=None):
    """Masses of equal bins of the angle."""
    angle = torch.atan2(x[:, 1], x[:, 0]).numpy()
    return np.histogram(angle, n_bins, (-math.pi, math.pi), weights=weights)[0]


def true_shares(n_bins):
    return np.diff(TRUTH.cdf(np.linspace(-math.pi, math.pi, n_bins + 1)))


@torch.no_grad()
def judge(flow, test):
    x, _, mass = trace(flow)
    true, model = true_shares(200), shares(x, 200, mass.numpy())
    with np.errstate(divide="ignore"):
        divergence = float((true * np.log(true / model)).sum())  # infinite across a gap
    sample = flow.sample(100_000, generator=torch.Generator().manual_seed(0))
    drawn = shares(sample, 50) / len(sample)  # by chance alone, off by 0.01
    radius = sample.norm(dim=1)
    return {
        "KL": divergence,
        "TV": 0.5 * float(np.abs(true_shares(50) - drawn).sum()),
        "rms error": float(flow.reconstruction_error(test).square().mean().sqrt()),
        "radius": float((radius - 1).abs().mean()),
        "5% off": float(((radius - 1).abs() > 0.05).float().mean()),
        "integral": float(mass.sum()),
        "NLL": -float(flow.log_prob(test).mean()),
    }


def main(args):
    torch.set_num_threads(1)
    models = {  # and how many times the steps
        "circle, splines": (circle_with_splines, 1),
        "circle, uniform": (circle_alone, 1),
        "line, normal": (line, 2),
    }
    print(f"true entropy {TRUTH.entropy():.4f} nats")
    fitted = {}
    for (name, (make, times)), way in itertools.product(
        models.items(), ["joint", "two steps"]
    ):
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            data = make_data(seed, 16_000)
            flow, start = make(), time.process_time()
            fit = flow.fit if way == "joint" else flow.fit_in_two_steps
            fit(
                data[:10_000],
                validation=data[10_000:11_000],
                max_steps=times * args.steps,
                batch_size=1000,
                learning_rate=5e-3,
                seed=seed,
                progress=False,
            )
            row = judge(flow, data[11_000:])
            row["CPU s"] = time.process_time() - start
            if not fitted:
                print(f"{'latent':16} {'training':10} seed", *(f"{k:>9}" for k in row))
            print(
                f"{name:16} {way:10} {seed:4}",
                *(f"{v:9.4f}" for v in row.values()),
                flush=True,
            )
            fitted.setdefault((name, way), flow)
    draw(fitted, args.output)


def draw(fitted, output):
    figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
    for ax, ((name, way), flow) in zip(axes.T.flat, fitted.items(), strict=True):
        x, density, _ = trace(flow, 1000)
        keep = x.norm(dim=1) < 3
        color = density[keep].log().clamp(-4, 0)
        points = ax.scatter(*x[keep].T, c=color, s=4, vmin=-4, vmax=0)
        sample = flow.sample(300, generator=torch.Generator().manual_seed(1))
        ax.scatter(*(1.15 * sample).T, s=1, c="black", alpha=0.4)
        ax.set(title=f"{name}: {way}", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
        ax.set_axis_off()
    figure.colorbar(points, ax=axes, label="log density along the curve", shrink=0.6)
    figure.suptitle("Learned curves; samples in black, at 1.15 times their radius")
    figure.savefig(output, dpi=150)
    plt.close(figure)
    print(f"picture {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", default="von_mises_circle.png")
    main(parser.parse_args())
