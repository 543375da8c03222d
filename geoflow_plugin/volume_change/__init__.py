"""Volume change of injective maps, exact or stochastic."""

from geoflow_plugin.volume_change.exact import VolumeChangeError
from geoflow_plugin.volume_change.log_volume import (
    log_volume_change,
    log_volume_change_and_error,
    value_and_log_volume_change,
)

__all__ = [
    "VolumeChangeError",
    "log_volume_change",
    "log_volume_change_and_error",
    "value_and_log_volume_change",
]
