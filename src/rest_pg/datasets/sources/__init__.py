"""Where raw documents come from: the embedded corpus, or a user's own files."""
