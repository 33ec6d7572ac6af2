"""``cct check``: what is typed, checked without torch, and what is said of a data set once all of it has been read."""

import csv
import io
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from cct_lightning.commands.keys import allowed, check_keys, check_value, read_names
from cct_lightning.commands.permissions import IMPORT, Permissions
from cct_lightning.commands.recipes import find_recipe, read_recipe
from cct_lightning.commands.words import CONFIG, read_words
from cct_lightning.data.options import DataOptions
from cct_lightning.data.places import OWN, dataset_of
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.plain_yaml import read_yaml
from cct_lightning.run_folder import replacing
from cct_lightning.wording import as_cells, percent, some, table

if TYPE_CHECKING:
    from cct_lightning.data.check import Seen
    from cct_lightning.data.findings import Finding, Listing

KEYS = (
    "data.dataset", "data.root", "data.unlabelled", "data.num_workers", "data.on_bad_image", "data.max_megapixels", "data.in_chans",
    "data.value_range", "data.targets",
)  # fmt: skip
# Has glibc keep freed memory in the processes that read: Pillow's would go back to the system and come as 500 new pages with each photograph,
# which takes longer than to decode it (benchmarks/README.md).
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
HELP = """cct check DIR [-c RECIPE] [--key value] ...

Reads every image before a training would, on all cores, and says what it found. DIR is what `cct finetune` takes: class folders, or train and val
(and test) with such folders, a CSV, Parquet, .tar shards or what `datasets` saved to disk. It may be the name of a data set, too, or be left out
behind -c RECIPE. For `cct pretrain`, DIR with
--data.dataset images is all images below it, and --data.unlabelled MORE adds a folder of images without labels.

What blocks a training (exit code 1)
  unreadable images            all of them, read as a training reads them; up to 1 % don't block with --data.on_bad_image skip
  empty class, other classes   a class folder without an image; a class that one split has and train has not, or the other way round
  no data set                  fewer than two classes, splits without train, a CSV that can't be used
What is worth a look (exit code 0)
  duplicate                    the same bytes of a file, or pixels of an array, within a split, across splits or in two classes; says where it is
                               one file by a link, or one name but for case or unicode form
  near duplicate               of images that are no duplicates: 9 x 9 thumbnails in grey are brighter to the right and below in the same cells, but
                               for 6 of 128. Finds copies that were saved anew, scaled or brightened; no crops, no mirrored or turned ones. Images
                               with a side under 32 pixels and those without contrast are left out; drawings and series look alike more easily.
  tiny class, classes alike    fewer than 10 training images; two classes whose names differ in case or unicode form alone
  odd mode, odd size           neither L nor RGB; sides of 1 to more than 5, or the shorter one under an eighth of the median
  passed over                  files that are no images by their names, folders that are no split

  --out DIR                    where problems.csv, a row for each, and report.json are written (default: runs/check/NAME)
  --statistics                 measures mean and std of each channel of the training images, those that are set aside for validation among them, and
                               of more than 8 bits the range of their values, and prints them as a recipe takes them; each image counts alike
  --data.dataset NAME          image_folder, csv, images, parquet, huggingface, webdataset or a named set
  --data.root PATH             where it lies
  --allow-import PACKAGE       reads by a class of this package, which --data.dataset mycode.Scans names
  --data.unlabelled DIR        images without labels beside it
  --data.targets [A,B]         columns of a CSV with numbers that are learned
  --data.num_workers N         processes that read (default: one for each core)
  --data.on_bad_image stop|skip, --data.max_megapixels X, --data.in_chans N, --data.value_range [LOW,HIGH]
                               as the training will have them

Exit code: 0 where nothing blocks a training; 1 where something does; 2 where the command is wrong."""


@dataclass(frozen=True)
class Place:
    """What is checked: a data set by name and where it lies, and how."""

    dataset: str
    root: Path
    unlabelled: Path | None
    out: Path
    workers: int | None
    skips: bool
    max_megapixels: float
    typed: str
    targets: list[str] | None = None
    in_chans: int = 3
    value_range: list[float] | None = None
    measures: bool = False
    imports: tuple[str, ...] = ()


def prepare(arguments: list[str]) -> Place:
    """Reads and checks the words behind ``check``; nothing heavy is imported.

    Raises:
        InputError: An unknown key, data set or recipe; nothing to check, or more than one thing.
    """
    typed = read_words(arguments, "check", ("statistics",))
    keys: dict[str, Any] = {}
    for option in typed.options:
        if option.key == CONFIG:
            keys |= {key: value for key, value in read_recipe(find_recipe(option.value or ""), trains=True).items() if key in KEYS}
        elif option.key == IMPORT:
            continue
        elif option.key in ("out", "statistics"):
            keys[option.key] = option.value
        else:
            check_keys({option.key: "command line"})
            if option.key not in KEYS:
                raise InputError(f"--{option.key} means nothing to check, which reads images as they are. It takes --out and {', '.join(KEYS)}.")
            check_value(option.key, option.value, "command line")
            keys[option.key] = option.value
    if len(typed.alone) > 1:
        raise InputError(f"check takes one data set, and {len(typed.alone)} words were given: {' '.join(typed.alone[:5])}")
    if typed.alone:
        chosen = typed.last("data.dataset")
        keys |= _of_word(typed.alone[0], keys.get("data.root"), keys.get("data.dataset") == "images")
        keys |= {"data.dataset": chosen} if chosen else {}
    if "data.dataset" not in keys:
        raise InputError("check needs your images: cct check DIR, a CSV, the name of a data set, or -c RECIPE.")
    root = Path(str(keys.get("data.root", DataOptions.root))).expanduser()
    dataset, workers = str(keys["data.dataset"]), keys.get("data.num_workers")
    own = dataset in OWN
    further = keys.get("data.unlabelled")
    if own and not root.exists():
        raise InputError(f"There is no folder or file {root}.")
    name = root.resolve().name if own else dataset
    out = Path(keys["out"]).expanduser() if "out" in keys else Path("runs", "check", name or "root")
    if workers not in (None, "null") and not str(workers).isdecimal():
        raise InputError(f"data.num_workers={workers}: it takes a whole number, 0 or more.")
    count = None if workers in (None, "null") else int(str(workers))
    try:
        limit = float(keys.get("data.max_megapixels", DataOptions.max_megapixels))
    except ValueError:
        raise InputError(f"data.max_megapixels={keys['data.max_megapixels']}: it takes a number.") from None
    check_range("data.max_megapixels", limit, 0, exclusive="low")
    unlabelled = Path(str(further)).expanduser() if further not in (None, "null", "rest") else None
    word = typed.alone[0] if typed.alone else str(root)
    skips = keys.get("data.on_bad_image") == "skip"
    targets, channels, limits = (read_names("data.targets", keys.get("data.targets")), *_channels(keys))
    return Place(
        dataset, root, unlabelled, out, count, skips, limit, word, targets, channels, limits, "statistics" in keys, Permissions.read(typed).imports
    )


def _channels(keys: dict[str, Any]) -> tuple[int, list[float] | None]:
    """Reads how many channels images have, and their range, as a training would."""
    given = {name: keys.get(f"data.{name}") for name in ("in_chans", "value_range")}
    read = {name: read_yaml(value, f"data.{name}") if isinstance(value, str) else value for name, value in given.items()}
    limits, channels = read["value_range"], read["in_chans"]
    if limits is not None and not (isinstance(limits, list) and len(limits) == 2 and all(type(limit) in (int, float) for limit in limits)):
        raise InputError(f"data.value_range={given['value_range']}: it takes two numbers, such as [0, 4095].")
    if channels is not None and type(channels) is not int:
        raise InputError(f"data.in_chans={given['in_chans']}: it takes a whole number.")
    DataOptions(in_chans=channels, value_range=None if limits is None else (limits[0], limits[1]))
    return channels or 3, limits


def _of_word(word: str, root: object, is_heap: bool) -> dict[str, Any]:
    place = Path(word).expanduser()
    if place.exists():
        return {"data.dataset": "images" if is_heap else dataset_of(place), "data.root": word}
    names = allowed("data.dataset") or ()
    if word not in names:
        raise InputError(f"There is no folder, file or data set {word}.{did_you_mean(word, names)}")
    return {"data.dataset": word, **({} if root is None else {"data.root": root})}


def main(arguments: list[str]) -> None:
    """Runs ``cct check`` with the words behind it."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    place = prepare(arguments)
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)
    from cct_lightning.data.check import Look, cores, counted, examine_all
    from cct_lightning.data.findings import find, list_images
    from cct_lightning.data.imports import allowing
    from cct_lightning.data.places import is_reader

    began = time.perf_counter()
    with allowing(place.imports) if is_reader(place.dataset) else nullcontext():
        listing = list_images(place.dataset, place.root, place.unlabelled, place.targets)
    _make(place.out)
    workers = cores() if place.workers is None else place.workers
    found = examine_all(listing.images, workers, Look(place.max_megapixels, place.in_chans, place.value_range, place.measures))
    try:
        seen = list(counted(found, len(listing.images), lambda about: about.error is not None))
    except KeyboardInterrupt:
        print("interrupted: no report was written", file=sys.stderr)
        sys.exit(130)
    seconds = time.perf_counter() - began
    findings = find(listing, seen)
    blocks = _blocking(findings, len(seen), place.skips)
    try:
        _write(place.out, listing, seen, findings, blocks, seconds)
    except OSError as error:
        raise InputError(f"{place.out} can't be written ({error.strerror or error}): name another folder with --out DIR.") from error
    print("\n".join(_told(place, listing, seen, findings, blocks, seconds)))
    if place.measures:
        from cct_lightning.data.moments import as_yaml

        print(as_yaml([about.moments for about, split in zip(seen, listing.splits, strict=True) if split == "train" and about.moments is not None]))
    sys.exit(1 if blocks else 0)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} can't be made ({error.strerror}): name another folder with --out DIR.") from None


def _blocking(found: Sequence["Finding"], total: int, skips: bool) -> list["Finding"]:
    """Returns what blocks a training; bad images that it leaves out don't."""
    from cct_lightning.data.check import MOST_BAD

    bad = sum(finding.problem == "unreadable" for finding in found)
    spared = skips and bad <= MOST_BAD * total
    return [finding for finding in found if finding.blocks and not (spared and finding.problem == "unreadable")]


def _write(out: Path, listing: "Listing", seen: Sequence["Seen"], found: Sequence["Finding"], blocks: Sequence["Finding"], seconds: float) -> None:
    from cct_lightning.data.findings import Finding

    with replacing(out / "problems.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(Finding._fields)
        rows.writerows(as_cells(Finding._fields, row) for row in found)
        text.flush()
        text.detach()
    good = [about for about in seen if about.error is None]
    report = {
        "root": str(listing.base),
        "images": len(seen),
        "bytes": sum(about.num_bytes for about in good),
        "blocks_a_training": bool(blocks),
        "problems": Counter(finding.problem for finding in found),
        "splits": {split: listing.counts[split] for split in dict.fromkeys(listing.splits)},
        "formats": Counter(about.format or "array" for about in good),
        "modes": Counter(about.mode for about in good),
        "sizes": Counter(f"{about.size[1]}x{about.size[0]}" for about in good),
        "seconds": round(seconds, 2),
    }
    with replacing(out / "report.json") as file:
        file.write((json.dumps(report, indent=2) + "\n").encode())


def _told(
    place: Place, listing: "Listing", seen: Sequence["Seen"], found: Sequence["Finding"], blocks: Sequence["Finding"], seconds: float
) -> list[str]:
    """Returns the report as it is printed."""
    from cct_lightning.data.proportions import advice, excess

    good = [about for about in seen if about.error is None]
    size = sum(about.num_bytes for about in good)
    lines = [f"{place.typed}: {len(seen):,} images, {size / 1e6:,.1f} MB, read in {seconds:.1f} s ({len(seen) / max(seconds, 1e-9):,.0f} images/s)"]
    rows = []
    for split, number in Counter(listing.splits).items():
        counts = listing.counts[split].most_common()
        ends = [f"{name} {count:,}" for name, count in (counts[0], counts[-1])] if counts else ["-", "-"]  # of numbers none is counted
        rows.append([split, f"{number:,}", f"{len(counts):,}", *ends])
    if rows:
        lines += table(("split", "images", "classes", "most", "fewest"), rows, ("split", "most", "fewest"))
    if good:
        formats, modes = (Counter(values).most_common() for values in ((about.format or "array" for about in good), (about.mode for about in good)))
        smallest, largest = (pick(good, key=lambda about: about.size[0] * about.size[1]).size for pick in (min, max))
        middle = [median(about.size[side] for about in good) for side in (1, 0)]
        lines.append(f"  {', '.join(f'{name} {count:,}' for name, count in [*formats, *modes])}; "
                     f"{smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]} pixels, median {middle[0]:.0f} x {middle[1]:.0f}")  # fmt: skip
        if told := advice(excess(about.size for about in good)):
            lines.append(f"  {told}")
    blocking = {finding.problem for finding in blocks}
    for title, of_kind in (("blocks a training", blocking), ("worth a look", {finding.problem for finding in found} - blocking)):
        if of_kind:
            lines.append(title)
            lines += [line for problem in dict.fromkeys(f.problem for f in found) if problem in of_kind for line in _kind(problem, found)]
    lines.append("" if blocks else "nothing blocks a training")
    lines.append(f"written: {place.out / 'problems.csv'} ({len(found):,} rows), report.json")
    if not blocks and place.dataset in OWN:
        further = ["--data.unlabelled", str(place.unlabelled)] if place.unlabelled else []
        command = "pretrain" if further or place.dataset == "images" else "finetune"
        lines += ["next", f"  {shlex.join(['cct', command, str(place.root), *further])}"]
    return [line for line in lines if line]


def _kind(problem: str, found: Sequence["Finding"]) -> list[str]:
    """Tells one kind of problem: how many, the first of them, and of duplicates where they lie."""
    of_kind = [finding for finding in found if finding.problem == problem]
    lines = [f"  {problem:16}{len(of_kind):>7,}  {some([_short(finding) for finding in of_kind])}"]
    if "duplicate" in problem:
        from cct_lightning.data.findings import NO_LABEL

        across = [found for found in of_kind if found.split != found.other_split and {found.split, found.other_split} != {"train", "unlabelled"}]
        torn = [found for found in of_kind if found.label != found.other_label and NO_LABEL not in (found.label, found.other_label)]
        share = percent(len({finding.path for finding in across}) / max(len(of_kind), 1), 0)
        lines += [f"  {'across splits':>16}{len(across):>7,}  {share} of them: a test measures what was trained on"] if across else []
        lines += [f"  {'in two classes':>16}{len(torn):>7,}  {some([_short(finding) for finding in torn])}"] if torn else []
    return lines


def _short(finding: "Finding") -> str:
    where = finding.path or " ".join(filter(None, (finding.split, finding.label)))
    if finding.other:
        return f"{where} = {finding.other}" if finding.problem == "duplicate" else f"{where} ~ {finding.other}"
    detail = os.linesep.join(finding.detail.splitlines()[:1])
    return f"{where} ({detail})" if where and detail else where or detail
