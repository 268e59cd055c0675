"""A checkpoint is whole on the disk before its mark goes and before an older one does."""

import os
from pathlib import Path

import pytest

from mypt.checkpoints.complete import SAVING_NAME, what_is_missing
from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer


def test_every_file_is_flushed_behind_the_mark_and_before_it_goes(recipe_for, monkeypatch, tmp_path):
    content = recipe_for()
    content["training"] |= {"max_steps": 6, "save_steps": 2, "eval_steps": 6, "save_total_limit": 2}
    content["training"]["dataloader_num_workers"] = 0
    calls, flush, unlink = [], os.fsync, Path.unlink

    def watched_flush(descriptor):
        calls.append(("flush", os.fstat(descriptor).st_ino))
        flush(descriptor)

    def watched_unlink(path, **options):
        if path.name == SAVING_NAME:
            inodes = {file.stat().st_ino for file in path.parent.rglob("*")} | {path.parent.stat().st_ino}
            older = sorted(folder.name for folder in path.parents[1].glob("checkpoint-*"))
            calls.append(("unmark", inodes, older))
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", watched_flush)
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    build_trainer(parse_recipe(content)).train()
    marks = [index for index, call in enumerate(calls) if call[0] == "unmark"]
    assert len(marks) == 3
    for before, mark in zip([-1, *marks], marks, strict=False):
        flushed = {call[1] for call in calls[before + 1 : mark]}
        assert calls[mark][1] <= flushed, "each file and the folder"
        assert calls[mark + 1][0] == "flush", "that the mark is gone, too"
    # A third one is there until the newest is whole.
    assert calls[marks[2]][2] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_save_that_fails_leaves_its_mark(recipe_for, tmp_path):
    trainer = build_trainer(parse_recipe(recipe_for()))
    limit, folder = trainer.args.save_total_limit, tmp_path / "run" / "checkpoint-4"
    with pytest.raises(RuntimeError, match="power"), trainer.complete_save as save:
        with save.model_of(folder):
            pass
        raise RuntimeError("power cut")
    assert SAVING_NAME in what_is_missing(folder)
    assert trainer.args.save_total_limit == limit
