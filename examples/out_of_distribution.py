"""Which images are of another kind: likelihood and reconstruction on a learned manifold.

Caterini et al. (2021) fit an injective flow of 20 dimensions to MNIST, or to Fashion-MNIST,
and tell the test images of the two apart by a decision stump, grown on training images, on
the log density of the projection or on the reconstruction error. They report 92 % (MNIST from
Fashion-MNIST) and 91 % (the other way) for likelihoods with the exact volume.

    GEOFLOW_DATA=/path/to/data python examples/out_of_distribution.py --inliers mnist

Pixels are (pixel + u) / 256, u uniform, less the mean image of the training set. The learned
manifold starts as the plane of the principal components, whose row is printed as well: what
a flow adds is the difference. The threshold is learned on training images only.
"""

import argparse
import sys
import time

import matplotlib.pyplot as plt
import normflows as nf
import torch

import geoflow_plugin as gf

LOADERS = {"mnist": gf.datasets.load_mnist, "fashion": gf.datasets.load_fashion_mnist}
SCORES = {
    "log density": ["log_prob"],
    "reconstruction": ["reconstruction_error"],
    "the pair": ["log_prob", "reconstruction_error"],
}


def load(name, split, n_points, generator):
    images, _ = LOADERS[name](split)
    pixels = gf.datasets.dequantize(images[:n_points], generator, dtype=torch.float32)
    return pixels.flatten(1)


def principal_plane(x, dim):
    """A linear embedding in the principal directions of centred points."""
    embedding = gf.layers.LinearEmbedding(dim, x.shape[1], dtype=x.dtype)
    _, vectors = torch.linalg.eigh(x.T.double() @ x.double())
    embedding.weight.data.copy_(vectors[:, -dim:])
    return embedding


def make_flow(args, x):
    if args.method == "free-form":
        return gf.FreeFormInjectiveFlow(
            x.shape[1], dim=args.dim, reconstruction_weight=args.weight
        )
    layers = []
    for coupling in gf.layers.smooth_couplings(x.shape[1], args.couplings, 128)[::2]:
        layers += [coupling, nf.flows.Permute(x.shape[1])]
    y = x  # where the embedding ends, once the permutations are undone
    for layer in reversed(layers):
        y, _ = layer.inverse(y)
    latent = gf.layers.smooth_couplings(args.dim, args.couplings, 64)
    return gf.InjectiveFlow(
        x.shape[1],
        None,
        None,
        latent,
        layers,
        dim=args.dim,
        method=args.method,
        reconstruction_weight=args.weight,
        embedding=principal_plane(y.detach(), args.dim),
    )


def report(name, flow, train, test):
    """Accuracy of stumps on each score, beside what the scores are."""
    accuracy = [
        gf.OutlierStump(flow, scores).fit(*train).accuracy(*test) for scores in SCORES.values()
    ]
    log_prob, error = gf.outlier_scores(flow, test[0]).double().unbind(1)
    figures = "".join(f"{100 * value:16.2f}" for value in accuracy)
    print(f"{name:<16}{figures}{log_prob.mean():14.2f}{error.square().mean():14.3f}")


def draw(flow, test, samples, mean, path):
    rows = {"test": test, "projected": flow.project(test).detach(), "samples": samples}
    fig, axes = plt.subplots(3, 1, figsize=(9, 3.2), layout="constrained")
    for ax, (title, x) in zip(axes, rows.items(), strict=True):
        ax.imshow(
            torch.cat((x + mean).reshape(-1, 28, 28).unbind(), 1),
            cmap="gray_r",
            vmin=0,
            vmax=1,
        )
        ax.set_title(title, loc="left", fontsize="small")
        ax.set_axis_off()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(args):
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    (outliers,) = set(LOADERS) - {args.inliers}
    inside, outside = (
        [load(name, split, args.points, generator) for split in ("train", "test")]
        for name in (args.inliers, outliers)
    )
    mean = inside[0].mean(0)
    inside, outside = ([x - mean for x in pair] for pair in (inside, outside))
    train, test = zip(inside, outside, strict=True)
    stump_train = [x[: args.stump_points] for x in train]
    print(f"{args.inliers} against {outliers}: {len(train[0])} training images")

    flow = make_flow(args, train[0])
    plane = gf.InjectiveFlow(
        784,
        dim=args.dim,
        high_layers=[],
        embedding=principal_plane(train[0], args.dim),
    )
    plane._place_base(plane.encode(train[0]).detach())
    start = time.perf_counter()
    flow.fit(
        train[0],
        max_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        device=args.device,
    )
    print(f"fitted in {time.perf_counter() - start:.0f} s ({args.method})\n")
    print(f"accuracy, %     {''.join(f'{name:>16}' for name in SCORES)}", end="")
    print(f"{'log p':>14}{'squared error':>14}")
    report("principal plane", plane, stump_train, test)
    report("InjectiveFlow", flow, stump_train, test)
    samples = flow.sample(16, generator=torch.Generator(flow.device).manual_seed(args.seed))
    draw(flow.cpu(), test[0][:16], samples.cpu(), mean, args.output)
    print(f"picture         {args.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--inliers", choices=LOADERS, default="mnist")
    add("--method", choices=["exact", "hutchinson", "free-form"], default="exact")
    add("--dim", type=int, default=20)
    add("--couplings", type=int, default=6)
    add("--weight", type=float, default=50.0, help="of the squared reconstruction error")
    add("--steps", type=int, default=300)
    add("--batch-size", type=int, default=100)
    add("--learning-rate", type=float, default=1e-3)
    add("--points", type=int, help="use at most so many images of each part")
    add("--stump-points", type=int, default=5000, help="training images the stump sees")
    add("--device", help="default: the CPU")
    add("--seed", type=int, default=0)
    add("--output", default="out_of_distribution.png")
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        sys.exit(str(error))
