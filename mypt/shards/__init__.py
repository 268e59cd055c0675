"""Shards of token ids on the disk: only this package knows their format."""
