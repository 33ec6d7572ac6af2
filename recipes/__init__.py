"""The shipped recipes: YAML files, found by name by ``cct fit -c NAME``. In a checkout this folder is ``cct_lightning.recipes``."""
