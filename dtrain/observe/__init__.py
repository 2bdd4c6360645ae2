"""What a run shows and writes: JSON lines, a summary, progress. Observers read records; nothing flows back."""
