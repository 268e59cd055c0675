"""The processes of a launch: what one of them does for all, and what all have to agree on."""

from collections.abc import Callable

from mypt.errors import MyPTError
from mypt.terminal import say


def is_main_process() -> bool:
    from accelerate import PartialState  # which imports torch

    return PartialState().is_main_process


def say_once(*lines: object) -> None:
    """Print lines from the main process."""
    if is_main_process():
        say(*lines)


def agreed(own):
    """The main process's value, in all processes. It can be pickled."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([own])[0]


def on_main(action: Callable):
    """The result of `action` in the main process, None in the others. A MyPTError is raised in all of them, since the
    others would wait for a process that has left."""
    result, refused = None, None
    if is_main_process():
        try:
            result = action()
        except MyPTError as error:
            refused = error
    if error := agreed(refused):
        raise error
    return result
