"""``python -m cct_lightning``, and where ``cct`` begins."""

import os
import sys

if __name__ == "__main__" and sys.path and sys.path[0] == os.getcwd() and not sys.flags.safe_path:
    # `python -m` looks for every module in the folder it stands in first: wandb.py among somebody's images would be run. `cct` does not.
    del sys.path[0]

from cct_lightning.commands.main import main as main

if __name__ == "__main__":
    main()
