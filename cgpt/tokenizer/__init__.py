"""Text to token ids and back, from a checkpoint's own files or the vocabularies in the package."""
