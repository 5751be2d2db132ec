"""What belongs to one running session."""
