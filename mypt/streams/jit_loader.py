"""`JitLoader`: a DataLoader that knows where the stream stood when the last batch was handed out, workers or not."""

from collections.abc import Iterator

import torch

from mypt.streams.jit_stream import JitStream
from mypt.streams.lane import Place


class JitLoader(torch.utils.data.DataLoader):
    """A DataLoader of a JitStream that keeps the stream's state at the last batch handed out.

    Workers read ahead, but each batch brings the place behind it along: what was read and not handed out is read again
    after a resume. num_workers and other options: as of DataLoader. Raises DataError as `JitStream.begin` does.
    """

    def __init__(self, stream: JitStream, num_workers: int = 0, **options):
        super().__init__(_WithPlaces(stream), batch_size=None, num_workers=num_workers, **options)
        stream.begin(max(1, num_workers))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, place in super().__iter__():
            self.dataset.stream.advance(place)
            yield batch


class _WithPlaces(torch.utils.data.IterableDataset):
    """A stream's batches with their places."""

    def __init__(self, stream: JitStream):
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Place]]:
        return self.stream.batches()
