"""Normal laws of the tangent space, carried to a space by a map of known volume change."""

import functools
import math

from geoflow_plugin import geometry
from geoflow_plugin.geometry.tangent import isometric_model


def register_carried_normal(where, separation, carry):
    """Register wrapped normals and kernels as normal laws carried by a map.

    A space that is isometric to a known one has the laws of that one.

    Parameters
    ----------
    where : tuple
        Class of the space, and of its metric if it matters.
    separation : callable
        (space, point, center), broadcast, to the squared length of the tangent vector at
        the centre that is carried to the point, exactly zero for equal points, and the
        log volume change of the map there.
    carry : callable
        (space, tangent_vec, base_point) to the point: exp, or another injective map.
    """

    def register(function):
        def decorator(implementation):
            @functools.wraps(implementation)
            def choose(space, *args, **kwargs):
                known = isometric_model(space) is not None
                served = function.__wrapped__ if known else implementation
                return served(space, *args, **kwargs)

            function.register(*where)(choose)
            return implementation

        return decorator

    @register(geometry.wrapped_normal_log_prob)
    def _(space, point, mean, scale):
        squared, log_volume = separation(space, point, mean)
        normalizer = geometry.log_kernel_normalizer(space, scale)
        return -0.5 * squared / scale.square() - log_volume - normalizer

    @register(geometry.kernel_separation)
    def _(space, point, centers):
        return separation(space, point.unsqueeze(1), centers.unsqueeze(0))

    @register(geometry.log_kernel_normalizer)
    def _(space, bandwidth):
        return geometry.dim(space) * (0.5 * math.log(2 * math.pi) + bandwidth.log())

    @register(geometry.random_wrapped_normal)
    @register(geometry.random_kernel)
    def _(space, center, scale, generator=None):
        normal = geometry.random_tangent_normal(space, center, generator)
        scale = scale.reshape(-1, *[1] * len(space.shape))  # one, or one a point
        return carry(space, scale * normal, center)
