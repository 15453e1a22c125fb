import adabm_basicsr  # noqa: F401  (makes basicsr importable)
