"""The training stream, at the position where the run starts or resumes, and the evaluation sets."""

from dataclasses import replace
from pathlib import Path

from transformers import TrainingArguments

from mypt.evaluation.baseline import measured_data
from mypt.hardware.processes import say_once
from mypt.recipe import Recipe
from mypt.streams.curriculum import stages
from mypt.streams.eval_windows import EvalWindows
from mypt.streams.jit_stream import JitStream
from mypt.streams.shard_stream import ShardStream
from mypt.streams.size import fingerprint
from mypt.training.data.run_data import RunData


def build_stream(recipe: Recipe, data: RunData, saved: dict | None) -> ShardStream | JitStream:
    """The recipe's training sources as one stream; saved: its state in the checkpoint that the run resumes from.

    Raises DataError as `ShardStream` or `JitStream` does.
    """
    section = recipe.data
    shared = {
        "block_size": section.block_size,
        "seed": recipe.training.get("data_seed", recipe.training.get("seed", 42)),
        "document_mask": section.document_mask,
        "state": saved,
    }
    if not data.streamed:
        reading = {"order": section.order, "reading": section.reading, "dtype": section.dtype}
        return ShardStream(data.train, **shared, **reading)
    return JitStream(
        data.streamed.units,
        data.tokenizer,
        shuffle_buffer=section.shuffle_buffer,
        stride=section.stride,
        max_examples=section.max_train_examples,
        val_fraction=data.streamed.held_out,
        expected=data.streamed.expected,
        **shared,
    )


def place_stream(stream: ShardStream | JitStream, recipe: Recipe, args: TrainingArguments) -> None:
    """Give the stream this process's share of each step and, when a run starts, the stages of its curriculum."""
    share = {"rank": args.process_index, "world_size": args.world_size}
    stream.config = replace(stream.config, micro_batch_size=args.per_device_train_batch_size, **share)
    if isinstance(stream, JitStream):
        workers = max(1, args.dataloader_num_workers)
        stream.begin(workers)
        readers = args.world_size * workers
        say_once(f"streaming {stream.name}: {len(stream.units)} units, {readers} readers, "
                 f"shuffled {stream.config.shuffle_buffer:,} documents at a time")  # fmt: skip
        return
    if recipe.data.curriculum and stream.curriculum is None:
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        stream.curriculum = stages(**recipe.data.curriculum, block_size=stream.block_size, samples_per_step=per_step)
    for reader in stream.readers:
        say_once(f"reading {reader.summary}")
    if stream.curriculum:
        later = "".join(f", {length} from sample {first:,} on" for first, length in stream.curriculum[1:])
        say_once(f"sequences of {stream.curriculum[0][1]} tokens{later}")


def build_eval_sets(recipe: Recipe, data: RunData, going_on: bool) -> dict[str, EvalWindows]:
    """The split of each set, or the part of it that the run's baseline was measured on.

    A split that holds other data altogether is refused later, by the baseline itself.
    """
    limit = None if recipe.forgetting.eval_windows == "all" else recipe.forgetting.eval_windows
    measured = measured_data(Path(recipe.training["output_dir"])) if going_on else {}
    sets = {}
    for name, directory in data.eval.items():
        manifest, split = data.manifests[directory], data.eval_splits.get(name, "val")
        shards = manifest.shards_of(split, measured[name]) if name in measured and split in manifest.splits else None
        sets[name] = EvalWindows(
            directory,
            split,
            block_size=recipe.data.block_size,
            max_windows=limit,
            document_mask=recipe.data.document_mask,
            shards=shards,
            reading=recipe.data.reading,
            manifest=manifest,
        )
        if shards and shards < len(manifest.splits[split].shards):
            say_once(
                f"{name} was extended since the run began; it is still measured on the {len(sets[name].reader):,} "
                "tokens that it had then, so that the baseline stays comparable"
            )
    return sets


def data_identity(data: RunData, recorded: list[str]) -> list[str]:
    """The fingerprint of every training source; of one that only grew since, the recorded one."""
    if data.streamed:
        return [fingerprint(data.streamed.units)]
    manifests = [data.manifests[directory] for directory in data.train]
    found = [manifest.fingerprint("train") for manifest in manifests]
    if len(found) != len(recorded):
        return found
    return [
        old if manifest.shards_of("train", old) else new
        for manifest, old, new in zip(manifests, recorded, found, strict=True)
    ]
