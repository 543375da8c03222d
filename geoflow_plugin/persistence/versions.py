"""Which files this version reads, and how the description of an older one is brought up."""

__all__ = ["FORMAT", "up_to_date"]

# The minor version of the package that last changed what is in a file
FORMAT = (0, 1)

# Format -> (the next one, function from its description to the next one's). To change the
# format: raise FORMAT, add the way from the old one here, keep the old file of tests/saved.
MIGRATIONS: dict = {}


def up_to_date(description):
    """The description of a file in today's format.

    Raises
    ------
    ValueError
        If the file is of a later format, or of none.
    """
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, list) or [type(n) for n in version] != [int, int]:
        raise ValueError("its header says no version of the format")
    version = tuple(version)
    while version in MIGRATIONS:
        version, migrate = MIGRATIONS[version]
        description = migrate(description)
    if version != FORMAT:
        theirs, ours = (".".join(map(str, v)) for v in (version, FORMAT))
        raise ValueError(
            f"it has format {theirs}, written by geoflow_plugin "
            f"{str(description.get('version'))[:40]}; this version reads up to {ours}: "
            "upgrade geoflow_plugin"
        )
    return description
