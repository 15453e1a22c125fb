"""All that reaches behind BasicSR's registries.

From the hook (`hook`) over work-arounds (`patches`) and registration (`registration`) to a run
(`pipeline`): its options (`run_options`), what they name (`named`, `described`), its processes
(`processes`) and the state that it goes on from (`resume`).
"""
