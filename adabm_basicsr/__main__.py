"""``python -m adabm_basicsr`` is the ``adabm-basicsr`` command."""

from adabm_basicsr.cli import main

if __name__ == "__main__":
    main()
