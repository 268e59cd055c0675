"""Which documents a reader gets: dealt, shuffled in blocks, the same from any place on."""

import itertools
import json

import pytest

from mypt.streams.document_reader import Cursor, DocumentReader
from mypt.streams.stream_config import JitConfig
from mypt.text.sources import Unit

SIZES = (7, 11, 1, 6, 10)
FIRST = Cursor()


@pytest.fixture
def units(tmp_path):
    numbers = itertools.count()
    for index, size in enumerate(SIZES):
        lines = (json.dumps({"text": str(next(numbers))}) for _ in range(size))
        (tmp_path / f"{index}.jsonl").write_text("\n".join(lines))
    return [Unit("all", "jsonl", (str(tmp_path / f"{index}.jsonl"),)) for index in range(len(SIZES))]


def lane(units, number=0, lanes=1, keep=lambda text: text, **options):
    return DocumentReader(units, number, lanes, keep, JitConfig(block_size=8, **{"shuffle_buffer": 4, **options}))


def drawn(lane, count, place=FIRST):
    return [(place, int(text)) for place, text in itertools.islice(lane.documents(place), count)]


def test_a_block_is_shuffled_within_itself(units):
    numbers = [number for _, number in drawn(lane(units, max_examples=35), 35)]
    blocks = [numbers[start : start + 4] for start in range(0, 35, 4)]
    assert [sorted(block) for block in blocks] == [list(range(s, min(s + 4, 35))) for s in range(0, 35, 4)]
    assert sum(block != sorted(block) for block in blocks) >= 6


def test_units_go_to_one_lane_each_and_others_are_dealt_by_number(units):
    unit_of = [index for index, size in enumerate(SIZES) for _ in range(size)]
    for lanes, whole in ((5, True), (6, False)):
        for number in range(lanes):
            documents = drawn(lane(units, number, lanes), 40)
            found = {unit_of[number] for place, number in documents if place.epoch == 0}
            assert (len(found) == 1) == whole


@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_from_any_place_on_it_gives_the_rest(units, lanes):
    mine = lane(units, 0, lanes, keep=lambda text: None if text.endswith("3") else text)
    whole = drawn(mine, 60)
    assert [place.documents for place, _ in whole] == list(range(60))
    for index, (place, _) in enumerate(whole):
        assert drawn(mine, 60 - index, place) == whole[index:]


@pytest.mark.parametrize("lanes", [1, 2, 4, 9])
def test_the_documents_of_the_first_epoch_are_counted(units, lanes):
    counted = 0
    for number in range(lanes):
        documents = drawn(lane(units, number, lanes), 100)
        assert all((place.first_documents > 0) == (place.epoch > 0) for place, _ in documents)
        assert len({place.first_documents for place, _ in documents if place.epoch}) == 1
        counted += documents[-1][0].first_documents
    assert counted == 35


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 6])
def test_every_document_comes_once_per_epoch_and_no_lane_gets_a_unit_more_than_another(units, lanes):
    for epoch in range(3):
        given = []
        for number in range(lanes):
            mine = lane(units, number, lanes)
            found = [number for place, number in drawn(mine, 200) if place.epoch == epoch]
            given += found
            whole = mine._deal(epoch)[0][mine._deal(epoch)[1] :]
            assert len(whole) == len(SIZES) // lanes
        assert sorted(given) == list(range(35))
