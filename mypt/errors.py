"""Errors that a user can act on: every message says what was given, what was expected and what to do next."""


class MyPTError(Exception):
    """Bad input or a refused request; the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 2


class RecipeError(MyPTError):
    """A recipe that cannot be read: unknown key, wrong type, missing value."""


class DataError(MyPTError):
    """Text, a dataset directory or a token stream that cannot be used as asked."""


class TokenizerError(MyPTError):
    """A tokenizer that is missing, damaged or does not belong to the data or the model."""


class CheckpointError(MyPTError):
    """A run folder or a checkpoint that is missing, incomplete or belongs to another run."""


class FolderInUse(MyPTError):
    """A folder that another process is writing; the message names the host and the process."""


class CheckFailed(MyPTError):
    """The input was fine and the answer is no: a declined question, a check that did not pass."""

    exit_code = 1


class Interrupted(MyPTError):
    """Training that a signal ended, with everything saved; exits with 128 + the signal's number, as shells do."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
