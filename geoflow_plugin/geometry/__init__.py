"""What the plugin asks of a geomstats space, as open functions of that space.

Every function takes the user's ``space`` first, works on torch tensors, keeps their
device and dtype, and never calls geomstats' backend. Functions are dispatched on the
nearest class in the space's MRO, and on its metric's where a registration names one;
another package adds a space by registering on them::

    @geometry.to_tangent.register(MySpace)
    def _(space, vector, base_point): ...

    @geometry.inner_product.register(MySpace, MyMetric)
    def _(space, tangent_vec_a, tangent_vec_b, base_point): ...

What holds under a constant multiple of the product of arrays alone is registered under
``FlatMetric``; under any other metric the space is then served by what is generic, or
refused.

One idea carries all of it. A point's array has an ordinary flat (Frobenius) geometry;
``tangent_basis`` is orthonormal there. The metric enters only through
``log_volume_element`` (log of Riemannian over flat volume) and ``sharp`` (flat gradient
to Riemannian gradient), both of which follow from ``inner_product``. Where a metric is a
constant multiple of the flat one, it is enough to register that multiple on
``frobenius_scale``; where the space is another one in disguise, its ``model``.
"""

from geoflow_plugin.geometry.checks import (
    belongs,
    check_points,
)
from geoflow_plugin.geometry.dispatch import FlatMetric, bare_metric, frobenius_scale
from geoflow_plugin.geometry.measures import (
    chart,
    chart_inverse,
    kernel_radius,
    kernel_separation,
    log_kernel_integral,
    log_kernel_normalizer,
    log_volume,
    model_log_volume,
    quasi_uniform,
    random_kernel,
    random_normal,
    random_tangent_normal,
    random_uniform,
    random_wrapped_normal,
    squared_chord,
    uniform_from_cube,
    uniform_quadrature,
    unit_cube_dim,
    wrapped_normal_log_prob,
)
from geoflow_plugin.geometry.tangent import (
    Model,
    constant_scale,
    constraint_residual,
    dim,
    dist,
    embed,
    exp,
    frobenius_weight,
    gram,
    inner_product,
    interpolation,
    is_compact,
    is_euclidean,
    log,
    log_volume_element,
    mean_curvature,
    metric_scale,
    metrics,
    model,
    origin,
    outer_scale,
    projection,
    pull_back,
    push_embedding,
    retraction,
    safe_sqrt,
    sharp,
    smooth_fluxes,
    tangent_basis,
    to_tangent,
)

__all__ = [
    "FlatMetric",
    "Model",
    "bare_metric",
    "belongs",
    "chart",
    "chart_inverse",
    "check_points",
    "constant_scale",
    "constraint_residual",
    "dim",
    "dist",
    "embed",
    "exp",
    "frobenius_scale",
    "frobenius_weight",
    "gram",
    "inner_product",
    "interpolation",
    "is_compact",
    "is_euclidean",
    "kernel_radius",
    "kernel_separation",
    "log",
    "log_kernel_integral",
    "log_kernel_normalizer",
    "log_volume",
    "log_volume_element",
    "mean_curvature",
    "metric_scale",
    "metrics",
    "model",
    "model_log_volume",
    "origin",
    "outer_scale",
    "projection",
    "pull_back",
    "push_embedding",
    "quasi_uniform",
    "random_kernel",
    "random_normal",
    "random_tangent_normal",
    "random_uniform",
    "random_wrapped_normal",
    "retraction",
    "safe_sqrt",
    "sharp",
    "smooth_fluxes",
    "squared_chord",
    "tangent_basis",
    "to_tangent",
    "uniform_from_cube",
    "uniform_quadrature",
    "unit_cube_dim",
    "wrapped_normal_log_prob",
]
