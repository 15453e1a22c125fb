"""What a network consists of, found by running it, and the replacement of its layers."""
