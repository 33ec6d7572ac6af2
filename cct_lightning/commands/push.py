"""``cct push``: what is typed, and what is told."""

from cct_lightning.commands.words import read_words
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.run_folder import newest
from cct_lightning.weights.sources import HUB, find_source

OPTIONS = ("private", "license", "dry-run")
HELP = """cct push CHECKPOINT OWNER/NAME [--private] [--license ID] [--dry-run]

Puts the network of a run (its folder, or a .ckpt) on the Hugging Face Hub: model.safetensors and config.json as `cct export --format safetensors`
writes them, and a card (README.md) with data, figures, limits and recipe. Nothing else is sent: no images, no names of files, no path.
hf:OWNER/NAME then stands for it wherever weights are named: cct predict hf:OWNER/NAME PATH..., --model.pretrained hf:OWNER/NAME.

  --private         only you see it
  --license ID      apache-2.0, mit, cc-by-4.0, other, ...; left out, the card states none
  --dry-run         writes everything and sends nothing: the card is shown; needs no network and no token

A folder that `cct export --format safetensors` wrote may be given in the place of CHECKPOINT: its card can be edited before. The token that may write
is taken from HF_TOKEN or `hf auth login`; HF_ENDPOINT names another hub. A repository that is there gets a further commit."""


def main(arguments: list[str]) -> None:
    """Runs ``cct push`` with the words after ``push``.

    Raises:
        InputError: Anything the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    typed = read_words(arguments, "push", ("private", "dry-run"), _meant)
    if len(typed.alone) != 2:
        found = next(iter(newest()), "runs/.../checkpoints/best.ckpt")
        raise InputError(f"push needs a checkpoint and a name: cct push {found} OWNER/NAME")
    source, name = typed.alone
    private, dry_run = (any(option.key == key for option in typed.options) for key in ("private", "dry-run"))
    find_source(source)
    from cct_lightning.inference.push import push

    done = push(source, name.removeprefix(HUB), private=private, license=typed.last("license"), dry_run=dry_run)
    sizes = ", ".join(f"{file} ({f'{size / 1e6:,.1f} M' if size >= 1e5 else f'{size / 1e3:.1f} k'}B)" for file, size in done.sizes.items())
    if dry_run:
        print(f"{done.card}\nnothing was sent; these would be, to {done.name}{' (private)' * private}: {sizes}")
        return
    print(f"pushed: {done.address}, commit {done.commit[:12]}: {sizes}")
    print(f"next\n  cct predict {HUB}{done.name} PATH...\n  cct finetune DIR --model.pretrained {HUB}{done.name}")


def _meant(key: str) -> str:
    if key not in OPTIONS:
        raise InputError(f"push does not take '--{key}'.{did_you_mean(f'--{key}', map('--{}'.format, OPTIONS))}")
    return key
