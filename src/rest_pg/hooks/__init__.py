"""Cross-cutting hooks, one file each."""
