import cct_lightning


def test_who_watches_is_told_each_validation_and_may_end_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    seen = []

    def watch(measures, share):
        seen.append((measures["val/accuracy"], share))
        return len(seen) == 2

    keys = {"data.per_class": 12, "trainer.max_epochs": 4, "trainer.callbacks": None, "trainer.enable_progress_bar": False}
    run = cct_lightning.fit("digits", keys, watch=watch)
    assert [share for _, share in seen] == [0.25, 0.5]
    assert run.summary.epochs == 2
    assert run.summary.finished
    assert run.summary.val_accuracy == max(accuracy for accuracy, _ in seen)
    assert run.best.is_file()
    assert run.last.is_file()


def test_who_watches_is_not_told_the_weights_without_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shares = []

    def watch(measures, share):
        shares.append(share)
        return False

    ema = {"class_path": "EMA", "init_args": {"decay": 0.5}}
    keys = {"data.per_class": 12, "trainer.max_epochs": 2, "trainer.callbacks": [ema], "trainer.enable_progress_bar": False}
    run = cct_lightning.fit("digits", keys, watch=watch)
    assert run.summary.val_measure_raw is not None
    assert shares == [0.5, 1.0]
