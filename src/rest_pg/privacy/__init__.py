"""Forgetting a user: what is theirs is removed, and never comes back."""
