"""A density on a learned surface with the topology of a sphere, and geodesics on it.

The data lie on a closed surface in R^3, or in R^20, whose density is known. An injective
flow from the sphere learns both; then geomstats computes on what was learned.

    python examples/learned_sphere.py --ambient-dim 20 --output learned_sphere.png
"""

import argparse
import math
import os

os.environ.setdefault("GEOMSTATS_BACKEND", "pytorch")  # whose derivatives geodesics need

import matplotlib.pyplot as plt
import numpy as np
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.learning.frechet_mean import FrechetMean
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.spatial import ConvexHull

import geoflow_plugin as gf
from geoflow_plugin.volume_change import log_volume_change

SPHERE = Hypersphere(2)


class Surface:
    """A dented ellipsoid, and two normal laws on the sphere that it is an image of."""

    def __init__(self, ambient_dim):
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(
            ambient_dim, ambient_dim, generator=generator, dtype=torch.float64
        )
        self.frame = torch.linalg.qr(normal)[0]  # of R^D, so that no axis is special
        axis = torch.tensor([[0.0, 0.6, 0.8], [0.6, -0.8, 0.0]], dtype=torch.float64)
        laws = [gf.WrappedNormal(SPHERE, mean, 0.7) for mean in axis]
        self.law = gf.Mixture(SPHERE, [*laws, gf.Uniform(SPHERE, dtype=torch.float64)])

    def embed(self, u):
        """Points (n, D) of the surface at points (n, 3) of the sphere."""
        radius = 1 + 0.3 * torch.sin(2 * u[:, :1] + 1) * u[:, 1:2]
        x = radius * u * torch.tensor([1.3, 1.0, 0.8], dtype=u.dtype)
        n_more = len(self.frame) - 3
        waves = [0.3 * torch.sin((1 + k / 8) * u[:, k % 3] + k) for k in range(n_more)]
        return torch.cat([x, *(w[:, None] for w in waves)], dim=1) @ self.frame

    def sample(self, n, seed):
        """Points (n, D), and their log density for the area of the surface."""
        u = self.law.sample(n, generator=torch.Generator().manual_seed(seed))
        log_volume = log_volume_change(self.embed, u, space=SPHERE)
        return self.embed(u), self.law.log_prob(u) - log_volume


def triangles(n):
    """Nearly even points of the sphere, and a triangulation of them."""
    height = 1 - (2 * torch.arange(n, dtype=torch.float64) + 1) / n
    angle = math.pi * (1 + math.sqrt(5)) * torch.arange(n, dtype=torch.float64)
    radius = (1 - height.square()).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=1)
    return points, torch.tensor(ConvexHull(points.numpy()).simplices.astype(np.int64))


@torch.no_grad()
def integral(flow, n=20_000):
    """Of the density over the learned surface, by the flat triangles of a mesh of it."""
    points, faces = triangles(n)
    corner = flow.decode(points)[faces]
    a, b = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    squared = a.square().sum(1) * b.square().sum(1) - (a * b).sum(1).square()
    middle = gf.geometry.projection(SPHERE, points[faces].mean(1))
    density = torch.cat([flow.log_prob(flow.decode(p)).exp() for p in middle.split(4096)])
    return float((density * squared.clamp_min(0).sqrt() / 2).sum())


def main(args):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    surface = Surface(args.ambient_dim)
    x, _ = surface.sample(args.n, seed=args.seed)
    test, true_log_prob = surface.sample(2000, seed=args.seed + 1000)
    flow = gf.InjectiveFlow(
        args.ambient_dim, SPHERE, reconstruction_weight=args.weight
    ).double()
    flow.fit(x, max_steps=args.steps, batch_size=500, learning_rate=3e-3, seed=args.seed)
    with torch.no_grad():
        gap = (true_log_prob - flow.log_prob(test)).double()
        error = flow.reconstruction_error(test)
    print(f"entropy of the truth        {-float(true_log_prob.mean()):.3f} nats")
    print(f"mean of log p_true - log p  {float(gap.mean()):.3f} ± {float(gap.std()) / 45:.3f}")
    print(f"root mean squared error     {float(error.square().mean().sqrt()):.4f}")
    print(f"integral of the density     {integral(flow):.4f}")

    ends = test[:6]
    manifold = flow.manifold(base_point=ends[0])
    start = manifold.projection(ends[:1])
    stops = manifold.projection(ends[1:])
    velocity = manifold.metric.log(stops, start)
    times = torch.linspace(0, 1, 50, dtype=torch.float64)
    path = manifold.metric.exp(
        times[:, None, None] * velocity, start.expand(50, len(stops), -1)
    )
    curves = manifold.immersion(path)  # (50, n, D)
    lengths = (curves[1:] - curves[:-1]).norm(dim=-1).sum(0)
    print("to   chord  geodesic  length drawn  latent great circle")
    for k, stop in enumerate(stops):
        u = manifold.latent(torch.stack([start[0], stop]))
        arc = SPHERE.metric.geodesic(u[0], u[1])(times)
        shown = flow.decode(arc.double()).detach()
        great = float((shown[1:] - shown[:-1]).norm(dim=1).sum())
        chord = float((curves[-1, k] - curves[0, k]).norm())
        distance = float(manifold.metric.norm(velocity[k], start[0]))
        print(f"{k:2}{chord:8.4f}{distance:10.4f}{float(lengths[k]):14.4f}{great:21.4f}")
    near = manifold.projection(test[(test - ends[0]).norm(dim=1).argsort()[:8]])
    mean = FrechetMean(manifold).fit(near).estimate_
    spread = manifold.metric.dist(near, mean).square().mean().sqrt()
    print(f"Fréchet mean of 8 neighbours: {float(spread):.4f} from them (root mean square)")
    draw(flow, surface, curves, manifold.immersion(mean), args.output)


@torch.no_grad()
def draw(flow, surface, curves, mean, output):
    points, faces = triangles(4000)
    x = flow.decode(points)
    log_prob = flow.log_prob(x)[faces].mean(1).numpy()
    down = surface.frame.mT[:, :3]  # the three coordinates in which the surface is large
    color = plt.cm.ScalarMappable(cmap="viridis")
    color.set_clim(log_prob.min(), log_prob.max())
    corner = (x @ down)[faces].numpy()
    figure = plt.figure(figsize=(7, 6), layout="constrained")
    ax = figure.add_subplot(projection="3d", computed_zorder=False)
    ax.add_collection3d(Poly3DCollection(corner, facecolors=color.to_rgba(log_prob)))
    curves, mean = curves @ down, mean @ down
    for curve in curves.unbind(1):
        ax.plot(*curve.T, color="crimson", lw=2, zorder=3)
    ax.scatter(*curves[0, 0], color="black", zorder=4)
    ax.scatter(*mean, color="white", edgecolor="black", marker="D", zorder=4)
    away = curves.mean((0, 1)) - (x @ down).mean(0)  # the side on which the geodesics are
    ax.view_init(
        math.degrees(math.asin(away[2] / away.norm())),
        math.degrees(math.atan2(away[1], away[0])),
    )
    ax.set_axis_off()
    low, high = corner.min((0, 1)), corner.max((0, 1))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    figure.colorbar(color, ax=ax, label="log density", shrink=0.6)
    ax.set_title(f"Geodesics on a learned surface in R^{len(surface.frame)}")
    ax.set_aspect("equal")
    figure.savefig(output, dpi=150)
    plt.close(figure)
    print(f"picture {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ambient-dim", type=int, default=3)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="learned_sphere.png")
    main(parser.parse_args())
