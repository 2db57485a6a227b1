"""What a run learned, as pictures and one page."""
