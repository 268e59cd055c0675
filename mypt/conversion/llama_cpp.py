"""Run a GGUF file in llama.cpp's own server, in a process of its own: its faults are errors here, not crashes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from mypt.errors import CheckFailed, MyPTError
from mypt.versions import version_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_SECONDS = 600  # for one answer
# One thread and float32 for keys and values, so that results are comparable. The process ends with its input.
_SERVER = """
import sys
import xllamacpp as llama
file, context = sys.argv[1:]
params = llama.CommonParams()
params.model.path, params.n_ctx = file, int(context)
params.n_parallel, params.port, params.warmup, params.n_gpu_layers = 1, 0, False, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
server = llama.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""


def quantize(data: np.ndarray, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 (rows, columns) in a ggml type, uint8 of `shape`, by llama.cpp's own function.

    Raises MyPTError if the build of llama.cpp does not have it.
    """
    import ctypes

    import numpy as np
    import xllamacpp

    try:
        function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    except (AttributeError, OSError):
        raise MyPTError("this xllamacpp cannot quantize; install another, or choose --dtype q8_0") from None
    function.restype = ctypes.c_size_t
    data, found = np.ascontiguousarray(data, np.float32), np.empty(shape, np.uint8)
    # type, source, target, first value, rows, columns, importance of columns
    places = [ctypes.c_void_p(array.ctypes.data) for array in (data, found)]
    written = function(
        ctypes.c_int(kind), *places, ctypes.c_int64(0), ctypes.c_int64(len(data)), ctypes.c_int64(data.shape[1]), None
    )
    if written != found.nbytes:
        raise MyPTError(f"llama.cpp wrote {written} bytes of a tensor where {found.nbytes} were expected")
    return found


class LlamaCppRunner:
    """A model in a running server. Raises MyPTError when the server dies."""

    normalized = True

    def __init__(self, address: str, process: subprocess.Popen, log: Any, size: int, context: int):
        self.name = f"llama.cpp of xllamacpp {version_of('xllamacpp')}"
        self.address, self.process, self._log, self._size = address, process.pid, log, size
        self.every = min(8, context)  # the server gives the probabilities of one position a request
        self._letter = self.tokenize("a", special=False)[-1]  # a whole character

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text, with what the tokenizer adds around it."""
        return self._ask("/tokenize", content=text, add_special=special, parse_special=True)["tokens"]

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        import torch

        rows, length = ids.shape
        positions = range(self.every // 2, length, self.every)
        found = torch.zeros(rows, len(positions), self._size)
        for row in range(rows):
            padding = length - int(mask[row].sum())
            known = ids[row, padding:].tolist()
            for place, position in enumerate(positions):
                if position >= padding:
                    found[row, place] = self._log_probabilities(known[: position - padding + 1])
        return found

    def losses(self, ids: Tensor) -> Tensor:
        import torch

        known = ids[0].tolist()
        return torch.tensor([self._loss(known[:place], known[place]) for place in range(1, len(known))])

    def greedy(self, prompt: Tensor, new: int) -> list[int]:
        answer = self._complete(prompt[0].tolist(), new)
        return answer["tokens"]

    def decode(self, prompt: Tensor, new: int) -> float:
        return self._complete(prompt[0].tolist(), new, ignore_eos=True)["timings"]["predicted_per_second"]

    def _log_probabilities(self, known: list[int]) -> Tensor:
        """float32 (V,), of the token after `known`."""
        import torch

        found = torch.full((self._size,), float("nan"))
        step = self._choose(known, self._letter, self._size)
        ids, values = zip(*((entry["id"], entry["logprob"]) for entry in step["top_logprobs"]), strict=True)
        found[list(ids)] = torch.tensor([_number(value) for value in values])
        return found

    def _loss(self, known: list[int], token: int) -> float:
        step = self._choose(known, token, 1)
        return -_number(step["logprob"]) if step else -self._log_probabilities(known)[token].item()

    def _choose(self, known: list[int], token: int, count: int) -> dict[str, Any] | None:
        """Make the server choose `token`; returns its log-probability and the `count` largest, before that.

        None for a token that is no whole character, about which the server reports nothing. Raises CheckFailed if the
        server chooses another, as it does where logits are NaN.
        """
        answer = self._complete(known, 1, n_probs=count, logit_bias=[[token, 1e9]])
        if answer["tokens"] != [token]:
            raise CheckFailed(
                f"{self.name} chose {answer['tokens']} where {token} was asked for: its logits are NaN or infinite "
                "(float16 overflows where float32 does not), or it ignores logit_bias; choose another --dtype, or "
                "update xllamacpp; nothing is kept"
            )
        return next(iter(answer.get("completion_probabilities", [])), None)

    def _complete(self, known: list[int], new: int, **options) -> dict[str, Any]:
        settings = {"temperature": 0, "repeat_penalty": 1.0, "return_tokens": True, "cache_prompt": True}
        return self._ask("/completion", prompt=known, n_predict=new, **settings | options)

    def _ask(self, path: str, **content) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise MyPTError(f"{self.name} refused a request: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise MyPTError(f"{self.name} gave no answer ({error}){_last_words(self._log)}") from None


@contextmanager
def serve(file: Path, size: int, context: int) -> Iterator[LlamaCppRunner]:
    """A server of a GGUF file with `size` ids, for texts of `context` tokens. Raises MyPTError if it does not start."""
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(file), str(context)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            words = process.stdout.readline().split()
            if words[:1] != ["listening"]:
                raise CheckFailed(f"llama.cpp does not load the file{_last_words(log)}; nothing is kept")
            yield LlamaCppRunner(words[1], process, log, size, context)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _number(value: float | None) -> float:
    """A number of the server's JSON, which writes NaN as null."""
    return math.nan if value is None else value


def _last_words(log: Any) -> str:
    """The line of a server's log that names a fault, or its last one, for a message."""
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()] or lines[-1:]
    return f": {telling[0][:300]}" if telling else ""
