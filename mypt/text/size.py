"""How many documents a source has, without reading it: counted from metadata, or guessed from its first bytes."""

from collections.abc import Sequence
from pathlib import Path

from mypt.text import hub
from mypt.text.opening import compression
from mypt.text.sources import Unit

SAMPLE_BYTES = 1 << 20


def document_count(units: Sequence[Unit]) -> int:
    """Documents of record sources; 0 where nothing is known.

    Exact for Parquet, large Arrow files and dataset directories; what the hub says of its datasets; for lines of JSON
    or CSV by the mean length of the first ones.
    """
    hub_places = {path for unit in units if unit.kind == "hub" for path in unit.paths}
    counts = [_count(path, unit) for unit in units if unit.kind != "hub" for path in unit.paths]
    counts += map(hub.documents, hub_places)
    return round(sum(counts)) if all(counts) else 0


def _count(path: str, unit: Unit) -> float:
    if unit.kind == "arrow":
        return unit.stop - unit.start
    if unit.kind == "parquet":
        from pyarrow.parquet import read_metadata

        metadata = read_metadata(path)
        groups = range(metadata.num_row_groups)[unit.start : unit.stop]
        return sum(metadata.row_group(group).num_rows for group in groups)
    if unit.kind == "ipc" and unit.stop is not None:
        import pyarrow

        with pyarrow.memory_map(path) as source:
            reader = pyarrow.ipc.open_file(source)
            return sum(reader.get_batch(index).num_rows for index in range(unit.start, unit.stop))
    if unit.kind not in ("jsonl", "csv") or compression(path):
        return 0
    with open(path, "rb") as file:
        sample = file.read(SAMPLE_BYTES)
    size = Path(path).stat().st_size
    stop = size if unit.stop is None else min(size, unit.stop)
    lines = max(1, sample.count(b"\n"))
    return (stop - unit.start) * lines / max(1, len(sample))
