"""Density estimation in the manner of scikit-learn: arrays in, arrays out."""

import copy
import inspect
import math

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from geoflow_plugin import equip, geometry
from geoflow_plugin.distributions.base import Distribution, seeded_sample
from geoflow_plugin.distributions.checks import as_device
from geoflow_plugin.spaces.euclidean import euclidean
from geoflow_plugin.training import own_stream

__all__ = ["FlowDensity"]

_CHUNK = 4096  # points scored at a time


class FlowDensity(DensityMixin, BaseEstimator):
    """Density estimation on a geomstats space, as a scikit-learn estimator.

    Densities are those of this package, in nats, with respect to the Riemannian volume of
    ``space.metric``; manners are those of ``sklearn.neighbors.KernelDensity``.

    Parameters
    ----------
    space : geomstats Manifold, optional
        Where the points live. Default: that of ``distribution`` if this is an object, or
        else Euclidean space of as many dimensions as X has columns.
    distribution : str, class or Distribution
        A registered name (``"moser"``, ``"monge_ampere"``, ``"kernel_density"``, ...), a
        class that takes the space first, such as ``InjectiveFlow``, or an object, of which
        every fit takes a copy and goes on from its weights.
    distribution_params : dict, optional
        Further keyword arguments of the class; every fit copies the modules among them.
    max_steps, batch_size, learning_rate, patience
        See ``Flow.fit``. Distributions that take no steps need none of them.
    validation : float, array or None
        Share of X to hold out, or points to validate on, as in ``Flow.fit``.
    random_state : int, numpy.random.RandomState or None
        Decides the split, the initial weights and the batches. With None the seed is drawn
        from NumPy's global stream, as everywhere in scikit-learn; nothing else ever is, and
        the streams of torch stay as they were.
    device : torch.device or str, optional
        Where to train and to evaluate; default: the CPU.
    dtype : {"float32", "float64"}, numpy or torch dtype, optional
        To compute in; default: that of X. Single precision takes two thirds of the time.
    verbose : int
        0 is silent, more shows a progress bar.

    Attributes
    ----------
    distribution_ : Distribution
        What was fitted: ``log_prob`` and ``sample`` on tensors, and all else it can do.
    history_ : dict of lists
        ``step``, ``loss`` and ``validation``; empty if there were no steps.
    n_features_in_, feature_names_in_
        Entries of the array of one point, and their names if X was a data frame.
    point_shape_ : tuple of int
        Shape of one point in the X that was fitted, and in samples.

    Notes
    -----
    Points of shape (3, 3), say, are arrays (n, 3, 3) or (n, 9), everywhere: which of the two
    is seen by the number of axes. Samples have the form that the fitted X had.

    Examples
    --------
    >>> import numpy as np
    >>> from geomstats.geometry.hypersphere import Hypersphere
    >>> import geoflow_plugin as gf
    >>> X = np.random.default_rng(0).normal([2.0, 0.0, 0.0], size=(200, 3))
    >>> X /= np.linalg.norm(X, axis=1, keepdims=True)
    >>> density = gf.FlowDensity(Hypersphere(2), max_steps=50, random_state=0).fit(X)
    >>> density.score_samples(X).shape
    (200,)
    >>> density.score(X) > -2.53  # which the uniform law has
    True
    >>> density.sample(5, random_state=1).shape
    (5, 3)
    """

    def __init__(
        self,
        space=None,
        distribution="moser",
        *,
        distribution_params=None,
        max_steps=None,
        batch_size=1024,
        learning_rate=1e-3,
        validation=0.1,
        patience=None,
        random_state=None,
        device=None,
        dtype=None,
        verbose=0,
    ):
        self.space = space
        self.distribution = distribution
        self.distribution_params = distribution_params
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation = validation
        self.patience = patience
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    def fit(self, X, y=None):
        """Learn the density of points.

        Parameters
        ----------
        X : array, shape=(n, *space.shape) or (n, n_features_in_)
            Points of the space.
        y : None

        Returns
        -------
        self : FlowDensity

        Raises
        ------
        TypeError, ValueError
            For anything but finite points of the space, and parameters out of range.
        """
        space = self._space()
        X, point_shape = self._rows(X, space, reset=True)
        space = euclidean(X.shape[1]) if space is None else space
        points = _points(X, space)
        device = torch.device("cpu") if self.device is None else as_device(self.device)
        dtype = points.dtype if self.dtype is None else _as_dtype(self.dtype)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with own_stream(device, seed):
            distribution = self._new(space).to(device, dtype)
            if hasattr(distribution, "fit"):
                options = self._fit_options(distribution.fit, space, seed)
                distribution.fit(points.to(device, dtype), **options)
        self.distribution_ = distribution
        self.history_ = getattr(distribution, "history_", {})
        self.point_shape_, self._sample_dtype = point_shape, X.dtype
        return self

    def score_samples(self, X):
        """Log density of points, in nats.

        Parameters
        ----------
        X : array, shape=(n, *space.shape) or (n, n_features_in_)

        Returns
        -------
        log_prob : numpy.ndarray, shape=(n,)
            In the dtype of X.
        """
        check_is_fitted(self)
        distribution = self.distribution_
        X, _ = self._rows(X, distribution.space)
        x = _points(X, distribution.space).to(distribution.device, distribution.dtype)
        with torch.no_grad():
            log_prob = torch.cat([distribution.log_prob(part) for part in x.split(_CHUNK)])
        return log_prob.cpu().numpy().astype(X.dtype)

    def score(self, X, y=None):
        """Mean log density of points, in nats: larger is better.

        The mean, as of ``GaussianMixture``, not the sum, as of ``KernelDensity``: folds need
        not be equally large.
        """
        return float(self.score_samples(X).mean(dtype=np.float64))

    def sample(self, n_samples=1, random_state=None):
        """Draw points.

        Parameters
        ----------
        n_samples : int
        random_state : int, numpy.random.RandomState or None

        Returns
        -------
        X : numpy.ndarray, shape=(n_samples, *point_shape_)
            In the dtype of the X that was fitted.
        """
        check_is_fitted(self)
        is_bool = isinstance(n_samples, bool)
        if is_bool or not isinstance(n_samples, (int, np.integer)) or n_samples < 0:
            raise ValueError(f"n_samples: expected an integer >= 0, got {n_samples!r}.")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        distribution = self.distribution_
        with torch.no_grad():
            x = seeded_sample(distribution, n_samples, seed, distribution.device).cpu()
            if self._sample_dtype == np.float64 and x.dtype == torch.float32 and len(x):
                # the digits that a computation in single precision lacks
                x = geometry.projection(distribution.space, x.double())
        return x.numpy().astype(self._sample_dtype).reshape(-1, *self.point_shape_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        space = self._space()
        tags.input_tags.three_d_array = space is not None and len(space.shape) > 1
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "distribution_")

    # What fit is made of

    def _space(self):
        """The space of points, or None where it depends on X."""
        if self.space is None and isinstance(self.distribution, Distribution):
            return self.distribution.space
        if self.space is not None and not hasattr(self.space, "shape"):
            raise TypeError(f"space: expected a geomstats space, got {self.space!r}.")
        return self.space

    def _rows(self, X, space, reset=False):
        """Points as rows (n, n_features_in_) of a floating-point array, and their shape."""
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu()
        shape = np.shape(X)
        if space is not None and len(space.shape) > 1 and shape[1:] == tuple(space.shape):
            X = np.asarray(X).reshape(len(X), -1)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            allow_nd=space is not None,  # of another shape: refused below
            ensure_min_samples=1 + reset,
        )
        if space is not None and X.shape[1:] != (math.prod(space.shape),):
            raise ValueError(
                f"X: expected points of {type(space).__qualname__}, shape "
                f"(n, {', '.join(map(str, space.shape))}), got {shape}."
            )
        return np.array(X), shape[1:]

    def _new(self, space):
        """The distribution to fit, which shares with the parameters the space alone."""
        given = self.distribution_params
        if given is not None and not isinstance(given, dict):
            kind = type(given).__name__
            raise TypeError(f"distribution_params: expected a dict, got {kind}.")
        known = self.distribution
        if isinstance(known, Distribution):
            if given:
                raise ValueError(
                    f"distribution_params: expected none beside an object, got {given}."
                )
            _check_same(space, known.space)
            return copy.deepcopy(known, _kept(known.space))
        if isinstance(known, str):
            known = equip.distribution_named(known, space)
        if not (isinstance(known, type) and issubclass(known, Distribution)):
            raise TypeError(
                "distribution: expected a registered name, a class of distributions or a "
                f"distribution, got {known!r}."
            )
        return known(space, **copy.deepcopy(given or {}, _kept(space)))

    def _fit_options(self, fit, space, seed):
        """Those of the options that a distribution's ``fit`` takes."""
        validation = self.validation
        if validation is not None and np.ndim(validation):
            rows, _ = self._rows(validation, space)
            validation = _points(rows, space, "validation")
        names = ("max_steps", "batch_size", "learning_rate", "patience")
        options = {name: getattr(self, name) for name in names}
        options |= {"validation": validation, "seed": seed, "progress": bool(self.verbose)}
        taken = inspect.signature(fit).parameters
        if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            return options
        return {name: value for name, value in options.items() if name in taken}


def _points(rows, space, name="X"):
    """Checked tensor (n, *space.shape) of the points in rows, in their dtype."""
    points = torch.as_tensor(rows.reshape(len(rows), *space.shape))
    geometry.check_points(space, points, name)
    return points


def _kept(space):
    """Memo for ``copy.deepcopy`` under which a space is shared and not copied."""
    return {id(part): part for part in (space, getattr(space, "metric", None))}


def _check_same(space, other):
    kind, expected = (
        (type(s).__qualname__, tuple(s.shape), type(getattr(s, "metric", None)).__qualname__)
        for s in (space, other)
    )
    if kind != expected:
        raise ValueError(f"space: expected that of the distribution, {expected}, got {kind}.")


def _as_dtype(dtype):
    known = {"float32": torch.float32, "float64": torch.float64}
    try:
        name = str(dtype)[6:] if isinstance(dtype, torch.dtype) else np.dtype(dtype).name
        return known[name]
    except (TypeError, KeyError) as error:
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}.") from error
