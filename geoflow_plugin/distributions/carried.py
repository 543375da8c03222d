"""A distribution on the model of a space, carried to the space."""

from geoflow_plugin import geometry
from geoflow_plugin.distributions.base import Distribution, Flow
from geoflow_plugin.distributions.checks import as_points, check_component
from geoflow_plugin.geometry.dispatch import unsupported

__all__ = ["Carried"]


class Carried(Flow):
    """Image of a distribution under the map from a space's model to the space.

    ``geometry.model(space)`` is a known space in bijection with this one: rotation
    matrices for rotation vectors, the hyperboloid for the Poincaré ball, R^d for the log-
    Euclidean metric. What lives there lives here, with the exact volume change. This is
    how a Moser flow gets on coordinates with a seam, through which no field of the
    coordinates is continuous (rotation vectors at half turns)::

        space = SpecialOrthogonal(3, point_type="vector")
        flow = Carried(space, MoserFlow(geometry.model(space).space))

    Parameters
    ----------
    space : geomstats Manifold
    distribution : Distribution
        On ``geometry.model(space).space``, or on a space of that class and shape.

    Raises
    ------
    TypeError
        If the space has no model.
    ValueError
        If the distribution lives on another space than the model.
    """

    def __init__(self, space, distribution):
        found = geometry.model(space)
        if found is None:
            raise unsupported(space, "model")
        check_component(found.space, distribution, "distribution")
        if not isinstance(distribution, Distribution):
            raise TypeError(
                "distribution: expected a geoflow_plugin distribution, got "
                f"{type(distribution).__name__}."
            )
        super().__init__(space, distribution.dtype)
        self.to(distribution.device)
        self.distribution = distribution

    def fit(self, X, *, validation=0.1, **kwargs):
        """Fit the distribution on the images of the points; see its own ``fit``."""
        self._check_metric()
        to_model = geometry.model(self.space).to_model
        X = to_model(as_points(self.space, X))
        if validation is not None and not isinstance(validation, (int, float)):
            validation = to_model(as_points(self.space, validation, "validation"))
        if isinstance(self.distribution, Flow):
            kwargs["validation"] = validation
        self.distribution.fit(X, **kwargs)
        self.history_ = getattr(self.distribution, "history_", None)
        return self.to(self.distribution.device, self.distribution.dtype)

    def _log_prob(self, x):
        image = geometry.model(self.space).to_model(x)
        change = geometry.model_log_volume(self.space, x)
        return self.distribution._log_prob(image) + change

    def training_log_prob(self, x, generator=None):
        """Log density to train on: the distribution's own, carried."""
        image = geometry.model(self.space).to_model(x)
        change = geometry.model_log_volume(self.space, x)
        return self.distribution.training_log_prob(image, generator) + change

    def _draw(self, n, generator):
        image = self.distribution.sample(n, generator=generator)
        return geometry.model(self.space).from_model(image), None
