"""Tokenizers that are plain `tokenizer.json` files, which AutoTokenizer loads."""
