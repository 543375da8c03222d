"""Tables of numbers as points of a curved surface of half their dimension.

    GEOFLOW_DATA=/path/to/data python examples/tabular.py

Columns are standardised with the training rows; repeated rows are dropped, and the rows of
one Parkinson's patient are on one side of the split (training, validation, test: 80, 10 and
10 %). Rows of the table:

    plane      principal components and a normal law on their plane
    two steps  the surface by reconstruction alone, then the density on it
    joint      both at once, with the exact volume (Caterini et al. 2021)
    free-form  encoder and decoder of any kind (Sorrenson et al. 2024)

"squared error" is the mean squared distance of a test row to its projection, of a total
variance of about D; "log p" the mean log density of the projection in nats, for the volume of
a d-dimensional surface: they are to be read together, since a surface that leaves out more
of the data is easier to fill. "moments" is the Fréchet distance of the first two moments of
samples and test rows, as in the paper's table; a normal law would have next to none.
"""

import argparse
import sys
import time

import numpy as np
import torch
from geomstats.geometry.euclidean import Euclidean
from scipy.linalg import sqrtm

import geoflow_plugin as gf

N_VOICE = 16  # of Parkinson's: the last columns; the others are of the patient


def load(name, seed):
    """Standardised training, validation and test rows."""
    points, _ = gf.datasets.load_tabular(name, drop_duplicates=True)
    groups = None
    if name == "parkinsons":
        groups, points = points[:, 0].astype(str), points[:, -N_VOICE:]
    parts = gf.datasets.split(points, seed, groups=groups)
    mean, scale = parts[0].mean(0), parts[0].std(0)
    return [torch.tensor((part - mean) / scale, dtype=torch.float32) for part in parts]


def frechet_distance(x, y):
    """Squared distance of the normal laws with the moments of two samples."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(gap + np.trace(a + b - 2 * sqrtm(a @ b).real))


def plane(ambient_dim, dim, train):
    embedding = gf.layers.LinearEmbedding(dim, ambient_dim, dtype=train.dtype)
    _, vectors = torch.linalg.eigh(train.T.double() @ train.double())
    embedding.weight.data.copy_(vectors[:, -dim:])
    space = Euclidean(dim)
    base = gf.LowRankNormal(space, dim - 1, dtype=train.dtype)
    base.fit((train @ embedding.weight).detach())
    return gf.InjectiveFlow(ambient_dim, space, base, high_layers=[], embedding=embedding)


def report(name, flow, test, seconds):
    log_prob, error = gf.outlier_scores(flow, test).double().unbind(1)
    sample = flow.sample(len(test), generator=torch.Generator().manual_seed(0))
    print(
        f"  {name:<12}{error.square().mean():14.4f}{log_prob.mean():10.3f}"
        f"{frechet_distance(sample, test):10.3f}{seconds:8.0f}",
        flush=True,
    )


def main(args):
    for name in args.names:
        train, validation, test = load(name, args.seed)
        ambient_dim = train.shape[1]
        dim = ambient_dim // 2
        print(
            f"{name}: {len(train)} / {len(validation)} / {len(test)} rows, "
            f"d = {dim} in D = {ambient_dim}"
        )
        print(f"  {'':<12}{'squared error':>14}{'log p':>10}{'moments':>10}{'CPU s':>8}")
        report("plane", plane(ambient_dim, dim, train), test, 0)
        options = {
            "validation": validation,
            "max_steps": args.steps,
            "batch_size": 500,
            "learning_rate": 3e-3,
            "seed": args.seed,
            "progress": False,
        }
        for way in ["two steps", "joint", "free-form"]:
            torch.manual_seed(args.seed)
            flow_class = gf.FreeFormInjectiveFlow if way == "free-form" else gf.InjectiveFlow
            flow = flow_class(
                ambient_dim,
                dim=dim,
                low_layers=gf.layers.smooth_couplings(dim, 4, 64),
                reconstruction_weight=args.weight,
            )
            start = time.process_time()
            fit = flow.fit_in_two_steps if way == "two steps" else flow.fit
            fit(train, **options)
            report(way, flow, test, time.process_time() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(gf.datasets.TABULAR)
    parser.add_argument("--names", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=30.0, help="of the squared error")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        sys.exit(str(error))
