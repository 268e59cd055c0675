"""Trains a recipe in a process with little memory: `limited.py RECIPE BYTES [--section.key=value ...]`, 0 for no limit.

Prints one JSON object: the error of a run that ended with one, and the most bytes that torch allocated on the GPU.
"""

import json
import resource
import sys

import torch

from mypt import build_trainer, load_recipe
from mypt.errors import MyPTError


def limit(size: int) -> None:
    """Of a GPU: all that torch may reserve. Of a CPU: what the process may have beyond what it has now."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, resource.RLIM_INFINITY))


def main() -> None:
    recipe, size, *options = sys.argv[1:]
    trainer, refused = build_trainer(load_recipe(recipe, options), resume=True), None
    if int(size):
        limit(int(size))
    try:
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
    except MyPTError as error:
        refused = str(error)
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    print(json.dumps({"refused": refused, "allocated": allocated}))


if __name__ == "__main__":
    main()
