"""How data are kept on disk: who is writing, which versions are read, what may be removed."""
