"""Convert a dataset of the original MyPT's or of nanoGPT's to today's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mypt.errors import DataError
from mypt.folders import only_writer
from mypt.legacy.shards import find_shards
from mypt.shards.format import SPLITS, Manifest, dtype_for, read_metadata
from mypt.shards.open_dataset import open_dataset
from mypt.shards.publishing import fingerprints, made_before, publish, require_dataset_folder, staged
from mypt.shards.scan import checked_chunks
from mypt.shards.writer import ShardWriter, write_stream
from mypt.terminal import bytes_bar
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from mypt.tokenization.token_bytes import TextOf


def convert_dataset(
    directory: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Manifest:
    """Write the dataset in `directory` to `out` in today's format, token for token, and return its manifest.

    `dtype` is that of the shards as they are (uint32 unless their metadata says otherwise), `tokenizer` a name as
    load_tokenizer takes it (else the directory's own). Every id is checked; uint16 is written where the tokenizer fits.
    Raises DataError if `directory` is in today's format already or is no dataset, or `out` holds something else.
    """
    directory, out = Path(directory), Path(out)
    manifest = _read(directory, dtype, tokenizer)
    made = {"did": "convert", "of": str(directory), "from": manifest.origin, "fingerprints": fingerprints(manifest)}
    require_dataset_folder(out, "mypt convert")
    with only_writer(out):
        if previous := made_before(out, made):
            say(f"{out} is already converted from the same data")
            return previous
        loaded = load_tokenizer(tokenizer or directory)
        text, eos, written = TextOf(loaded), manifest.eos_token_id, dtype_for(manifest.vocab_size - 1)
        counted = manifest.report.get("total_tokens_in_metadata", manifest.tokens)
        if counted != manifest.tokens:
            say(f"its metadata counts {counted:,} tokens, its files hold {manifest.tokens:,}: the files are converted")
        with staged(out) as staging, bytes_bar("converting", manifest.bytes) as bar:
            save_tokenizer(loaded, staging)
            splits = {}
            for split in SPLITS:
                writer = ShardWriter(staging, split, written)
                write_stream(checked_chunks(directory, manifest, split, bar.update), writer, eos, text.sizes)
                splits[split] = writer.close()
            names = ("documents", "bytes", "tokens")
            counts = {name: sum(getattr(split, name) for split in splits.values()) for name in names}
            converted = Manifest(
                dtype=written,
                vocab_size=manifest.vocab_size,
                eos_token_id=eos,
                tokenizer_hash=manifest.tokenizer_hash,
                splits=splits,
                sources=[{"name": directory.name, **counts}],
                report={"tokenizer": manifest.report["tokenizer"]},
                history=[made],
            )
        publish(out, converted)
    return converted


def _read(directory: Path, dtype: str | None, tokenizer: str | None) -> Manifest:
    metadata = read_metadata(directory) if directory.is_dir() else None
    if not find_shards(directory, metadata) and "format" not in (metadata or {}):
        raise DataError(
            f"{directory} holds no dataset of the original MyPT (shard_00000.bin, with dataset_metadata.json or "
            f"tokenizer_state.json) nor of nanoGPT (train.bin), and no checkpoint (config.json, model.pt; a .pt file)"
        )
    manifest = open_dataset(directory, dtype, tokenizer)
    if manifest.origin is None:
        raise DataError(f"{directory} is a dataset in today's format already; nothing needs to be converted")
    return manifest
