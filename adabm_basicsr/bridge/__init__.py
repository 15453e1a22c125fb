"""All that reaches behind BasicSR's registries: the hook, patches, registration and the pipeline."""
