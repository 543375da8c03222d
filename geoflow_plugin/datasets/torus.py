"""Tori: torsion angles of RNA and of proteins."""

import csv

import numpy as np

from geoflow_plugin.datasets.files import read

__all__ = ["TORSIONS", "load_torsions"]

_RESIDUE = ["phi", "psi", "chi1", "chi2", "chi3", "chi4"]

# name -> group -> the angles of a row, in order; the first group is the default
TORSIONS = {
    "rna": {"all": ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "chi"]},
    "ile": {"all": _RESIDUE[:4]},
    "dockbench": dict.fromkeys(["General", "Glycine", "Proline", "Pre-Pro"], _RESIDUE[:2]),
    # the last angle of trp and his is that of a flat ring, and left out
    "top8000": dict.fromkeys(["trp", "his"], _RESIDUE[:4])
    | {"cys": _RESIDUE[:3]}
    | dict.fromkeys(["met", "gln", "cispro"], _RESIDUE[:5])
    | dict.fromkeys(["lys", "arg-1m", "arg-1p", "arg-1t"], _RESIDUE),
}

# name -> (file, SHA-256 of its uncompressed content, where it comes from)
_FILES = {
    "rna": (
        "rna.tsv",
        "189183ca25bd45c8a7578d3c1cd8a555b5139bb1ab0ac1a0bd25672be19badf7",
        "vislearn/FFF, fff/data/raw_data/torus/rna.tsv",
    ),
    "ile": (
        "ile_torsions.csv",
        "3b22fd396d0d2e9cfae7bad1f5d0c3eb0df011bb3da4c34188f261f60eb4fd1b",
        "sungkyujung/ClusTorus, data/ILE.rda, saved as csv",
    ),
    "dockbench": (
        "dockbench55_phi_psi.csv",
        "e97c3c18a405d00166abfb02fae8505acb4ba2b7dbbbbd9dcd9badb1695e58f1",
        "no public collection: computed from octavian-ganea/equidock_public, "
        "data/benchmark5.5/structures",
    ),
    "top8000": (
        "top8000_torsions.csv",
        "d2380eb02f612ace49f98fc3beaf4a5449713e796736209d3e4f4ee69ea6cdf6",
        "rlabduke/reference_data, Top8000/Top8000_filtered_residues_rotarama, in one file",
    ),
}

_COLUMNS = {  # of a row: the structure, the group, the first angle
    "rna": (0, None, 2),
    "ile": (None, None, 0),
    "dockbench": (0, 6, 4),
    "top8000": (0, 4, 5),
}


def load_torsions(name, path=None, *, group=None, drop_duplicates=False):
    """Torsion angles of molecules, as points of NFoldManifold(Hypersphere(1), k).

    Parameters
    ----------
    name : {"rna", "ile", "dockbench", "top8000"}
        Backbone of RNA (k = 7, the set of the papers on flows); isoleucine (k = 4);
        backbone of 542 proteins (k = 2, a stand-in for the papers' Top500); side chains
        of the Top8000 proteins (k = 3 to 6).
    path : str or Path, optional
        The file, gzipped or not, or a folder that holds it. Default: the folder
        ``torus`` of the environment variable ``GEOFLOW_DATA``.
    group : str, optional
        Kind of residue, a key of ``TORSIONS[name]``; default: its first key.
    drop_duplicates : bool
        Keep one row of each tuple of angles.

    Returns
    -------
    points : np.ndarray, shape=(n, k, 2)
        Cosine and sine of each angle.
    structures : np.ndarray, shape=(n,)
        PDB entry (with chain or side, where the file has it in one column) of each
        row, for a split by ``groups``; numbers of rows where the file does not say.

    Raises
    ------
    ValueError
        For an unknown name or group, or a file of another content.
    FileNotFoundError
        With what to set, if there is no file.
    """
    if not isinstance(name, str) or name not in TORSIONS:
        raise ValueError(f"name: expected one of {sorted(TORSIONS)}, got {name!r}.")
    group = next(iter(TORSIONS[name])) if group is None else group
    if not isinstance(group, str) or group not in TORSIONS[name]:
        raise ValueError(f"group: expected one of {list(TORSIONS[name])}, got {group!r}.")
    file, checksum, source = _FILES[name]
    lines = read("torus", file, checksum, source, path).decode().splitlines()
    separator = "\t" if name == "rna" else ","
    rows = list(csv.reader(lines if name == "rna" else lines[1:], delimiter=separator))
    structure, kind, first = _COLUMNS[name]
    if kind is not None:
        rows = [row for row in rows if row[kind] == group]
    last = first + len(TORSIONS[name][group])
    angles = np.array([row[first:last] for row in rows], dtype=np.float64)
    structures = np.arange(len(rows))
    if structure is not None:
        structures = np.array([row[structure] for row in rows])
    if drop_duplicates:
        kept = np.sort(np.unique(angles, axis=0, return_index=True)[1])
        angles, structures = angles[kept], structures[kept]
    if name != "ile":  # the one file in radians
        angles = np.radians(angles)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1), structures
