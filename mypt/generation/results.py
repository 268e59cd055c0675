"""A file of completions, one JSON object per line, written as they come and continued after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from mypt.errors import MyPTError
from mypt.files import require_file
from mypt.json_files import parse_json


class Completion(TypedDict):
    """A line of the file; what else it holds is kept."""

    prompt: str
    seed: int


class ResultsFile:
    """`path` holds the completions of the first `done` jobs, in order; `write` adds the next one.

    resume: continue after the complete lines of the file; a line that was cut off is written again.
    Raises MyPTError for a file that exists when `resume` is not asked for.
    """

    def __init__(self, path: str, resume: bool = False):
        self.path = Path(path)
        data = b""
        if self.path.exists():
            if not resume:
                raise MyPTError(f"{path} exists already; --resume continues it, or name another file")
            require_file(path)
            data = self.path.read_bytes()
        self._whole = data.rfind(b"\n") + 1
        self.records = [
            parse_json(line, Completion, f"{path} line {number}", MyPTError, "name a file of completions")
            for number, line in enumerate(data[: self._whole].splitlines(), start=1)
        ]
        self.seed = self.records[0]["seed"] if self.records else None
        self.done = len(self.records)

    def continue_for(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Make the file ready for the jobs (prompt, seed) after those it has.

        Raises MyPTError if it has others, and OSError if it cannot be written.
        """
        for number, record in enumerate(self.records):
            found = (record.get("prompt"), record.get("seed"))
            if number >= len(jobs) or found != jobs[number]:
                asked = f"prompt {jobs[number][0]!r}, seed {jobs[number][1]}" if number < len(jobs) else "no more"
                raise MyPTError(
                    f"{self.path} line {number + 1} is of prompt {found[0]!r}, seed {found[1]}, but {asked} was asked "
                    "for; resume with the same prompts and options, or name another file"
                )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._whole)

    def write(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
