"""Which files can be a baseline, by their names. Apart from what reads them, which needs NumPy."""

CSV = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET, NPY, NPZ = (".parquet",), (".npy",), (".npz",)
_PACKED = ".gz"
SUFFIXES = (
    *CSV,
    *JSON_LINES,
    *PARQUET,
    *NPY,
    *NPZ,
    *(f"{suffix}{_PACKED}" for suffix in (CSV[0], JSON_LINES[0])),
)


def kind_of(path: str) -> tuple[str, ...] | None:
    """One of the kinds, None for what cannot be read; text files may be packed."""
    name = path.lower()
    kinds = (CSV, JSON_LINES) if name.endswith(_PACKED) else (CSV, JSON_LINES, PARQUET, NPY, NPZ)
    return next((kind for kind in kinds if name.removesuffix(_PACKED).endswith(kind)), None)


def is_readable(path: str) -> bool:
    """Whether the file can be read, by its name."""
    return kind_of(path) is not None
