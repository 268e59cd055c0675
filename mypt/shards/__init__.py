"""The only code that knows the on-disk format of token shards."""
