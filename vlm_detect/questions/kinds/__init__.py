"""The kinds of question, one file each; they register on first access to `questions.kind.KINDS`."""
