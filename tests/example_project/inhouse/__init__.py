"""An in-house project that uses BasicSR and quantizes its own networks."""
