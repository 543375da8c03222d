"""Outliers by likelihood and reconstruction together, as Caterini et al. (2021) judge them."""

import torch
from sklearn.tree import DecisionTreeClassifier

from geoflow_plugin.distributions.checks import as_points
from geoflow_plugin.distributions.injective import InjectiveFlow
from geoflow_plugin.geometry.checks import check_counts

__all__ = ["OutlierStump", "outlier_scores"]

SCORES = ("log_prob", "reconstruction_error")


@torch.no_grad()
def outlier_scores(flow, x, context=None, batch_size=512):
    """Log density of projections, and distance to them: the pair to judge by.

    Neither is enough alone. Likelihood is that of the projection, which may be likely for
    points that are far off; reconstruction says nothing of where on the manifold.

    Parameters
    ----------
    flow : InjectiveFlow
    x : torch.Tensor or array, shape=(n, *space.shape)
    context : torch.Tensor, shape=(n, k), optional
    batch_size : int
        Points at a time, since exact volumes take memory.

    Returns
    -------
    scores : torch.Tensor, shape=(n, 2)
        ``log_prob`` and ``reconstruction_error``.
    """
    _check_flow(flow)
    check_counts(batch_size=batch_size)
    if not hasattr(x, "__len__"):
        raise TypeError(f"x: expected a batch of points, got {type(x).__name__}.")
    rows = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        given = None if context is None else context[part]
        log_prob = flow.log_prob(x[part], given)
        error = flow.reconstruction_error(x[part], given)
        rows.append(torch.stack([log_prob, error], dim=1))
    return torch.cat(rows) if rows else torch.zeros(0, 2)


class OutlierStump:
    """Decision stump on scores: one of them, and one threshold.

    A depth-one tree (scikit-learn's ``DecisionTreeClassifier``) learns from known inliers
    and outliers, and is judged on others. The released code of the paper grows two, on one
    score each, and reports both accuracies: ``scores=["log_prob"]`` and
    ``scores=["reconstruction_error"]``. Given the pair, the stump takes whichever separates
    the training points better.

    Parameters
    ----------
    flow : InjectiveFlow
        Fitted.
    scores : sequence of str
        Which of ``"log_prob"`` and ``"reconstruction_error"`` it may use.

    Attributes
    ----------
    score_ : str
        The score that it uses.
    threshold_ : float
    tree_ : sklearn.tree.DecisionTreeClassifier
    """

    def __init__(self, flow, scores=SCORES):
        known = isinstance(scores, (list, tuple)) and len(scores)
        if not known or any(score not in SCORES for score in scores):
            raise ValueError(f"scores: expected some of {SCORES}, got {scores}.")
        _check_flow(flow)
        self.flow, self.scores = flow, tuple(scores)

    def fit(self, inliers, outliers):
        """Learn from points (n, *space.shape) inside and (m, *space.shape) outside."""
        inside = self._features(inliers, "inliers")
        outside = self._features(outliers, "outliers")
        labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
        self.tree_ = DecisionTreeClassifier(max_depth=1, random_state=0)
        self.tree_.fit(torch.cat([inside, outside]).numpy(), labels.numpy())
        if self.tree_.tree_.node_count == 1:
            raise ValueError("inliers, outliers: expected points that some score tells apart.")
        self.score_ = self.scores[self.tree_.tree_.feature[0]]
        self.threshold_ = float(self.tree_.tree_.threshold[0])
        return self

    def predict(self, x):
        """Whether points are outliers, a tensor of bool on the CPU, shape=(n,)."""
        return self._predict(x, "x")

    def accuracy(self, inliers, outliers):
        """Share of points on the right side, as many inliers as outliers or not."""
        inside = self._predict(inliers, "inliers")
        outside = self._predict(outliers, "outliers")
        return float(torch.cat([~inside, outside]).double().mean())

    def _predict(self, x, name):
        if not hasattr(self, "tree_"):
            raise RuntimeError("OutlierStump: call fit first.")
        return torch.as_tensor(self.tree_.predict(self._features(x, name).numpy()))

    def _features(self, x, name):
        x = as_points(self.flow.space, x, name).to(self.flow.device, self.flow.dtype)
        scores = outlier_scores(self.flow, x).double().cpu()
        return scores[:, [SCORES.index(name) for name in self.scores]]


def _check_flow(flow):
    if not isinstance(flow, InjectiveFlow):
        kind = type(flow).__name__
        raise TypeError(f"flow: expected an InjectiveFlow, got {kind}.")
