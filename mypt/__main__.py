"""`python -m mypt` is the `mypt` command."""

from mypt.cli.main import main

raise SystemExit(main())
