"""What a run records of itself: facts, pictures, observations and training states."""
