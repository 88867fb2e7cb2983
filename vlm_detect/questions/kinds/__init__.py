"""The kinds of question, one file each; they register when `questions.kind.KINDS` is first asked."""
