"""``python -m cct_lightning``, and where ``cct`` begins."""

from cct_lightning.commands.main import main as main

if __name__ == "__main__":
    main()
