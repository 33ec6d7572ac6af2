"""Trials that train nothing: functions of a module, since other processes import them."""

import gzip
import json


def pretend(job, search, content=None, measure="val/accuracy"):
    """Writes what a run leaves behind; its accuracy follows from the rate, the best is at 0.01; a depth of 3 fails. Its one image has a content."""
    if job.trial.get("model.depth") == 3:
        raise ValueError("three is what it can't do")
    run = job.folder / "digits" / "20260101-000000"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    rate = job.trial["model.optim.lr"]
    best = 1 - abs(rate - 0.01) * 10
    watch, values = search.watch(job), []
    for share in (0.2, 0.4, 1.0):
        values.append(best * share)
        if watch({"val/accuracy": best * share, "val/loss": 1.0}, share):
            break
    rows = "\n".join(f"{step},{value}" for step, value in enumerate(values))
    (run / "metrics.csv").write_text(f"step,{measure}\n{rows}\n")
    if content is not None:
        with gzip.open(run / "images.csv.gz", "wt") as file:
            file.write(f"split,name,label,size,content\ntrain,a.png,cat,10,{content}\n")
    (run / "summary.json").write_text(json.dumps({"finished": True, "val_accuracy": best}))
