"""A density on the Stanford bunny: an eigenfunction of its Laplacian, cut off at zero.

The truth is constant in each face, so that its entropy, the least possible likelihood
loss, is known. Needs trimesh and the meshes; GEOFLOW_DATA is the folder of ``meshes``.

    GEOFLOW_DATA=/path/to/data python examples/mesh.py --eigenfunction 10
"""

import argparse
import math
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import geoflow_plugin as gf
from geoflow_plugin.plotting import plot_density
from geoflow_plugin.spaces.mesh import MeshSurface


def unit_mesh(path):
    """The mesh, centred and scaled to the area of the unit sphere."""
    mesh = MeshSurface.from_file(path)
    scale = (mesh.areas.sum() / (4 * math.pi)).sqrt()
    return MeshSurface((mesh.vertices - mesh.centroids.mean(0)) / scale, mesh.faces)


class FaceDensity(gf.Distribution):
    """A density that is constant in each face, given up to a factor."""

    def __init__(self, mesh, density):
        super().__init__(mesh, density.dtype)
        self.density = density / (density * mesh.areas).sum()

    def entropy(self):
        """Entropy in nats."""
        return -(torch.special.xlogy(self.density, self.density) * self.space.areas).sum()

    def _log_prob(self, x):
        return self.density[self.space.nearest_face(x)].log()

    def _draw(self, n, generator):
        mass, area = (self.density * self.space.areas).cumsum(0), self.space.areas.cumsum(0)
        cube = torch.rand(n, 3, generator=generator, dtype=self.dtype)
        face = torch.searchsorted(mass, cube[:, 0] * mass[-1], right=True)
        # a first variate that leads a uniform point to this face
        cube[:, 0] = (area[face] - 0.5 * self.space.areas[face]) / area[-1]
        return gf.geometry.uniform_from_cube(self.space, cube), None


def main(args):
    folder = os.environ.get("GEOFLOW_DATA")
    if not folder:
        sys.exit("GEOFLOW_DATA is not set; it is the folder that holds meshes/.")
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    mesh = unit_mesh(Path(folder) / "meshes" / "bunny_2502.obj.gz")
    _, functions = mesh.eigenfunctions(args.eigenfunction)
    truth = FaceDensity(mesh, functions[mesh.faces, -1].mean(1).clamp_min(0))
    train, test = (
        truth.sample(n, generator=generator).float() for n in (args.points, args.points // 4)
    )

    mesh.equip_with_distribution("moser")
    flow = mesh.distribution
    flow.fit(train, max_steps=args.steps, seed=args.seed, progress=False)
    kde = gf.KernelDensity(mesh).fit(train[: len(test)], seed=args.seed)

    with torch.no_grad():
        log_prob = flow.log_prob(mesh.centroids.float()).double()
        print(
            f"              test NLL, eigenfunction {args.eigenfunction}, {len(test)} points"
        )
        print(f"uniform       {gf.geometry.log_volume(mesh):8.4f}")
        print(f"MoserFlow     {-flow.log_prob(test).mean().item():8.4f}")
        print(f"KernelDensity {-kde.log_prob(test).mean().item():8.4f} of {len(test)} points")
        print(f"entropy       {truth.entropy():8.4f} of the truth")
    normalizer, error = flow.normalizer()
    integral = (log_prob.exp() * mesh.areas).sum()
    print(f"integral      {integral:8.4f} over the faces, ± {error / normalizer:.4f} stated")
    print(f"negative mass {flow.negative_mass():8.4f}")

    figure = plt.figure(figsize=(17, 4.2), layout="constrained")
    titles = {"Truth": truth, "MoserFlow": flow, "KernelDensity": kde}
    titles["Test points"] = gf.Uniform(mesh)
    for i, (title, distribution) in enumerate(titles.items()):
        ax = figure.add_subplot(1, 4, i + 1, projection="3d", title=title)
        ax.view_init(elev=15, azim=-120, vertical_axis="y")
        plot_density(distribution, test[:500] if i == 3 else None, ax=ax)
    figure.axes[-1].remove()  # the scale of a uniform law
    figure.savefig(args.output, dpi=150)
    plt.close(figure)
    print(f"picture       {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eigenfunction", type=int, default=10)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", default="mesh.png")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
