"""``python -m adabm_basicsr`` is the ``adabm-basicsr`` command."""

from adabm_basicsr.commands.main import main

if __name__ == "__main__":
    main()
