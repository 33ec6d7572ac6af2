"""The command line in a bare checkout: ``python cli.py fit -c digits`` is ``cct fit -c digits``."""

from cct_lightning.__main__ import main

if __name__ == "__main__":
    main()
