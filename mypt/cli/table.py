"""The table of a dataset that several commands print."""

from mypt.terminal import print_table, say


def print_dataset(facts: dict) -> None:
    """Print what `mypt.inspection.dataset.summary` tells: a dataset's splits, and its sources if there are several."""
    counts = ["documents", "tokens", "bytes", "shards"]
    rows = [[name, *(f"{split[count]:,}" for count in counts)] for name, split in facts["splits"].items()]
    print_table(facts["path"], ["split", *counts], rows)
    say()
    if len(facts["sources"]) > 1:
        rows = [[source["name"], *(f"{source[count]:,}" for count in counts[:3])] for source in facts["sources"]]
        print_table("", ["source", *counts[:3]], rows)
        say()
    say(f"token ids     {facts['dtype']}, vocabulary {facts['vocab_size']:,}")
