from geoflow_plugin import calculus, geometry, spaces
