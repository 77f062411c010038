"""Everything that turns finished (or growing) text into numbers."""
