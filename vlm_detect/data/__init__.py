"""Data on its way to training: decoding, pairs on disk, questions, edits and their audit."""
