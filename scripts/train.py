"""`accelerate launch scripts/train.py RECIPE` is `mypt train RECIPE`."""

import sys

from mypt.cli.main import main

raise SystemExit(main(["train", *sys.argv[1:]]))
