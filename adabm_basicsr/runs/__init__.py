"""What a run records of itself: facts, pictures, observations and training states."""

# First, as importing it registers the plugin, which takes from the modules of this room.
import basicsr  # noqa: F401
