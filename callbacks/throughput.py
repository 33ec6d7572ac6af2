"""How fast a run trains, and where its time goes."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

# Dense bfloat16 operations a second by the vendors' data sheets, by a part of the device's name; the first that matches counts. Lightning 2.6
# has a table of its own, which gives the figures with sparsity for H100 and H200, twice as much as a dense network can reach.
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "B200": 2250e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "A6000": 155e12,
}  # fmt: skip


class Throughput(Callback):
    """Measures training images per second over all devices, loading included, validation and the first steps left out.

    Logs every ``trainer.log_every_n_steps`` steps what the steps since then took: perf/images_per_s; perf/step_ms, the step itself; perf/data_ms,
    the wait for its batch; perf/gpu_mem, the most that was allocated, GiB; perf/mfu, the share of the GPU's bfloat16 operations that the
    network's take (three times those of classifying the image). On a GPU the host runs a few steps ahead, which cancels over many of them.

    Args:
        warmup_steps: First steps that don't count, of a run or after its resumption: allocation, autotuning, compilation.

    Attributes:
        flops_per_image: Of the network, forward; None leaves perf/mfu out.
        image_size: (H, W) of the images that these are for, pixels: perf/mfu is left out while a training has smaller ones; None: any.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        self.warmup_steps = warmup_steps
        self.flops_per_image: int | None = None
        self.image_size: tuple[int, int] | None = None
        self.images, self.seconds = 0, 0.0
        self._since: float | None = None
        self._begun = 0.0
        self._begin = 0
        self._forget()

    @property
    def images_per_second(self) -> float | None:
        """Images per second so far; None before a step was measured."""
        return self.images / self.seconds if self.seconds else None

    def _forget(self) -> None:
        """Begins what is logged next."""
        self._steps, self._images, self._waited, self._stepped = 0, 0, 0.0, 0.0
        self._others = False  # whether images had another size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.global_step > self._begin + self.warmup_steps and self._since is not None:
            images = len(batch[1]) * trainer.world_size
            self.images += images
            self.seconds += now - self._since
            self._steps += 1
            self._images += images
            self._others |= self.image_size is not None and tuple(batch[0].shape[2:]) != self.image_size
            self._waited += self._begun - self._since
            self._stepped += now - self._begun
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                pl_module.log_dict(self._measures(pl_module.device, trainer.world_size))
                self._forget()
                now = time.perf_counter()
        self._since = now

    def _measures(self, device: torch.device, world_size: int) -> dict[str, float]:
        rate = self._images / (self._waited + self._stepped)
        found = {
            "perf/images_per_s": rate, "perf/step_ms": 1000 * self._stepped / self._steps, "perf/data_ms": 1000 * self._waited / self._steps,
        }  # fmt: skip
        if device.type == "cuda":
            found["perf/gpu_mem"] = torch.cuda.max_memory_allocated(device) / 2**30
            name = torch.cuda.get_device_name(device)
            peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
            if peak and self.flops_per_image and not self._others:
                found["perf/mfu"] = 3 * self.flops_per_image * rate / (peak * world_size)
        return found

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()  # a validation inside an epoch is no training time
