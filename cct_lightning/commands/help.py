"""Help, answered at once."""

import re
import textwrap

import cct_lightning
from cct_lightning.commands.recipes import recipe_paths

COMMANDS = {
    "check": "read all images before a training does: cct check DIR",
    "fit": "train: cct fit -c digits [--model.pooling class_token] [any key]",
    "finetune": "train on a folder or a CSV of your own: cct finetune DIR [--model.pretrained SOURCE] [any key]",
    "pretrain": "learn from images without labels first: cct pretrain DIR, then cct finetune DIR --model.pretrained RUN",
    "resume": "go on with a run that was stopped: cct resume runs/digits/20261120-095029",
    "test": "measure a checkpoint on the test images: cct test runs/.../best.ckpt",
    "validate": "the same on the validation images: cct validate runs/.../best.ckpt",
    "predict": "classify images: cct predict runs/.../best.ckpt PATH... [--out FILE]",
    "embed": "write features of images: cct embed runs/.../best.ckpt PATH... --out features.npz",
    "similar": "find images like one: cct similar runs/.../best.ckpt IMAGE DIR [-n 9] [--picture FILE.png]",
    "export": "write a network for other programs: cct export runs/.../best.ckpt --format onnx",
    "push": "put a network on the Hugging Face Hub: cct push runs/.../best.ckpt OWNER/NAME [--private] [--dry-run]",
    "study": "compare runs that differ in one thing: cct study poolings -c digits [--seeds N] [--jobs N]",
    "tune": "search for settings: cct tune -c digits --key model.optim.lr=1e-4..1e-2:log [--trials N] [--minutes M]",
    "recipes": "list the recipes; cct recipes NAME prints one",
    "models": "list the weights to start from; cct models NAME tells more of one",
}
EVALUATION = (
    "CHECKPOINT [--key value] ...",
    "What is not given is as in the training: the checkpoint knows. Any key of `cct fit --help` may differ, such as --data.root DIR,\n"
    "--data.batch_size N or --trainer.accelerator cpu; -c RECIPE lays a file over what the checkpoint says.\n\n"
    "--tta mirror sees each image and its mirror; --tta shift sees both as they are and shifted by a pixel for each 32 of a side, up and to the\n"
    "left, down and to the right. The mean of the probabilities counts; they take 2 and 6 forward passes an image.\n\n"
    "--calibrate also fits one temperature to the validation images, so that of what is predicted to 80 %, about 80 % are right (arXiv 1706.04599).\n"
    "It is kept beside the checkpoint, in best.calibration.json; predict, export and cct_lightning.load use it, and no predicted class changes.\n"
    "With --tta it is fitted to what that sees: give the one that you will predict with.\n\n"
    "--reject 0.95 chooses a threshold on the validation images that 95 % of the right answers reach; below it predict answers `none`, with the\n"
    "score. It is kept in the same file, and in an export's config.json with its rule. --reject_by energy (the default) takes the logarithm of the\n"
    "sum of the logits' exponentials, before any temperature (arXiv 2010.03759); --reject_by probability the largest probability, after it: with\n"
    "--calibrate in one command the temperature comes first, and a later --calibrate drops a threshold of probabilities.\n"
    "--outliers DIR measures on images of none of the classes, at any depth: AUROC, and how many pass where 95 % of the test images do.",
)
ALLOW = """  --allow-import PACKAGE   recipes, checkpoints and keys may name classes of this package besides those of cct-lightning and Lightning
                           (trainer.callbacks: mycode.Note); it runs with all your rights, so no file can allow it, and each `cct resume`
                           of the run needs it again. PYTHONPATH=. finds modules that lie in the folder you stand in.
  --allow-path DIR         callbacks and loggers of a recipe may write to this folder, too; else to the run's alone, in a recipe {run}/NAME."""
# Of the commands but fit: what follows the command, and what is worth knowing.
HELP = {
    "finetune": (
        "DIR [--model.pretrained SOURCE] [-c RECIPE] [--key value] ...",
        """DIR holds a folder of images for each class, or train and val (and test) with such folders; or it is a CSV with the columns path and label,
and split (train, val or test) where you split. One heap gets both set aside; beside a val of yours, test is what you give.
A CSV may have labels in the place of label, several names with ; between them or none, or a column of 0 and 1 for each: that is task multilabel.
Columns of other numbers are task regression, which learns all of them or those of --data.targets [A,B].

SOURCE is one of
  runs/.../best.ckpt, a run's folder or an exported one       network, image size, channels and normalisation are taken over
  FILE.pth, FILE.safetensors                                  weights of SHI-Labs/Compact-Transformers or vit-pytorch, the network read off them;
                                                              of timm with --model.arch timm/NAME
  timm/NAME                                                   timm's, where there is a network
  hf:OWNER/NAME, hf:OWNER/NAME@REVISION                       what `cct push` put on the Hugging Face Hub, where there is a network
  cct_2_3x2_32_cifar10                                        inside the package, a CCT-2/3x2 (0.28 M parameters) of CIFAR-10
  cct_7_3x1_32_cifar10_300epochs, ...                         SHI-Labs' ten published files, where there is a network; `cct models` lists all
Left out it is cct_2_3x2_32_cifar10 where --data.image_size is up to 64, or is left out, too, and there are up to 5,000 training images, which then
are seen at 64 pixels; not where another network or a teacher is asked for. Else, and with --model.pretrained null, the network is trained from
scratch, CCT-7/7x2 at 128 pixels unless keys say otherwise.
The head is made anew, positions are resized; what became of each tensor is printed.

Everything may be changed, as in `cct fit --help`:
  --data.image_size 64                       larger images, and so more tokens
  --model.pooling map                        another pooling
  -c linear_probe                            train pooling and head alone, on features that are computed once
  --model.optim.layer_decay 0.6              lower rates for the lower layers
  --model.loss.class_weights balanced        classes of uneven size count the same; or --data.sampler balanced, not both

--folds 5 trains five runs, each tested on a fifth of the images that it has not seen, so that all are tested once: a val folder's, too, a test
folder's are in none. Classes are spread evenly; of a CSV with a column group, no group is in two folds. One report tells of all images together,
with mean and deviation over the folds, and the networks are one ensemble for `cct predict` and `cct export`. It goes on by `cct resume FOLDER`.
--jobs N trains N folds side by side.""",
    ),
    "pretrain": (
        "DIR|DATASET [-c RECIPE] [--key value] ...",
        """DIR holds images, at any depth. Folders for each class, or train and val (and test) with such folders, or a CSV with the columns path and
label, are taken as `cct finetune` takes them: no test image is trained on, and the validation images are the same. A folder where images lie
beside the class folders, too, is one heap, of which all are trained on but a share for validation. DATASET is one by name, such as cifar10.
What follows begins with its weights, and takes network, image size, channels and normalisation over:
  cct finetune DIR --model.pretrained RUN

Labels teach nothing here. Where there are any, they tell how far it is: the callback KNNAccuracy logs val/knn every few epochs.

  --data.unlabelled MORE                     a folder of further images, beside labelled ones
  --data.per_class 50 --data.unlabelled rest fifty labels a class for val/knn, all other images without theirs
  --data.image_size 96                       larger images; of a folder the side is 64 where it is not given
  -c pretrain_mpp                            another recipe, laid over the default one
  --model.arch cct_7_3x1_32                  another network
  --model.target mae|simmim|mpp              what is filled in of the masked patches; --model.mask_ratio, --model.decoder_depth, ...

Every key: `cct fit --help`.""",
    ),
    "resume": (
        "RUN [--extend-to EPOCHS] [--accept-changed-data] [--key value]",
        """RUN is the folder of a run, runs/<recipe>/<time>, or its checkpoints/last.ckpt. The run goes on in this folder from where last.ckpt was
written, as the same run of W&B, and ends with the same weights and measures as if it had never stopped. Ctrl-C and SIGTERM write last.ckpt
before they end a run; after a kill it is that of the last epoch that ended.

--extend-to EPOCHS trains a run of whole epochs on to so many in all, with the learning rates of a run of that length from there on.

The images must be those that it was trained on: names, labels and sizes of all; contents, too, of up to 20,000 files and 256 MiB, and of 1,000
files of larger sets. Where they lie may change (--data.root). --accept-changed-data goes on with others; summary and config.yaml then say so.

What the run is stays as in its config.yaml; where it is computed may change:""",
    ),
    "test": EVALUATION,
    "validate": EVALUATION,
}


def print_help() -> None:
    print(f"cct-lightning {cct_lightning.__version__}: small vision transformers on your own data\n")
    for command, text in COMMANDS.items():
        print(f"  cct {command:10}{text}")
    print(f"\nrecipes: {', '.join(recipe_paths())}")
    print("`cct fit --help` lists every key; --debug shows where an error came from.")


def print_keys(command: str) -> None:
    from cct_lightning.commands.keys import known_keys
    from cct_lightning.runs.options import WHERE
    from cct_lightning.tasks.options import FROM_DATA

    usage, text = HELP.get(command, ("-c RECIPE [--key value] ...", ""))
    print(f"cct {command} {usage}\n\n{COMMANDS[command]}\n")
    if text:
        print(text)
        if command == "resume":
            print("\n".join(f"  --{key} {known_keys()[key].type}".replace(" | None", "") for key in WHERE))
            print(f"\n{ALLOW}")
        return
    for key in known_keys().values():
        group, _, name = key.name.partition(".")
        if group == "trainer":
            continue
        if group == "model" and name in FROM_DATA:
            continue  # flows from the data
        kind = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", "|"), key.type)
        print(f"  --{key.name} {kind.replace(' | None', '')}  (default: {key.default.strip(chr(39)).replace('None', 'null')})")
        if key.help:
            print(textwrap.fill(key.help, 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
    trainer = ", ".join(name.removeprefix("trainer.") for name in known_keys() if name.startswith("trainer."))
    print("\n  --trainer.KEY  Lightning's Trainer:")
    print(textwrap.fill(trainer, 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
    print(
        "        trainer.precision left out: bf16-mixed where the hardware computes it (GPUs since 2020, CPUs with avx512_bf16 or AMX), else 32-true."
    )
    print("\n  --find-lr, --find-batch-size  look for the rate where the loss falls fastest, the largest batch that fits; nothing is trained then.")
    print(f"\n{ALLOW}")
    print("\n  --print_config prints the whole configuration as a recipe.")
