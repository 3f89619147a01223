"""Train with PyTorch Lightning on several ranks, and go on after the time limit or a preemption.

Requires slurmlaunch, PyTorch and Lightning: in a clone of slurmlaunch, pip install . lightning

By hand::

    #!/bin/bash
    #SBATCH --time=01:00:00
    #SBATCH --ntasks-per-node=2
    #SBATCH --signal=SIGUSR1@90
    srun python train.py  # Lightning saves a checkpoint at SIGUSR1, and requeues the job

With slurmlaunch the function object has a method ``checkpoint()``: near the time limit it is called on
rank 0, the task is requeued, and Lightning continues from the last checkpoint that it wrote.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

try:
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. Requires slurmlaunch, PyTorch and Lightning: in a clone of slurmlaunch, pip install . lightning"
    )

RANKS = 2


class Line(lightning.LightningModule):  # type: ignore[misc]  # no types where it is not installed
    """A line through the origin; each step takes some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.slope = torch.nn.Linear(1, 1, bias=False)
        self.seconds = seconds

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss of a batch; a real one takes its time."""
        time.sleep(self.seconds)
        x, y = batch
        return torch.nn.functional.mse_loss(self.slope(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Training:
    """Trains for some epochs; started again, it continues from the last epoch that was saved."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, epochs: int) -> tuple[int, float]:
        """Return the epoch in which this attempt began, and the slope."""
        x = torch.linspace(-1, 1, 64).reshape(-1, 1)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 3 * x), batch_size=8)
        trainer = lightning.Trainer(
            accelerator="cpu", devices=RANKS, strategy="ddp", max_epochs=epochs, logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=self.folder,
            callbacks=[ModelCheckpoint(self.folder, save_last=True)],
        )  # fmt: skip
        first = {"epoch": -1}
        module = Line(self.seconds)
        module.on_train_start = lambda: first.update(epoch=trainer.current_epoch)
        last = self.folder / "last.ckpt"
        trainer.fit(module, data, ckpt_path="last" if last.exists() else None)
        return first["epoch"], float(module.slope.weight.detach())

    def checkpoint(self, *_: int) -> Training:
        """Return the object that the next attempt calls with the same arguments: Lightning has saved the rest."""
        return self


def main() -> None:
    """Train on two ranks."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        executor = Executor(time="00:10:00", ntasks=RANKS, nodes=1)

        slopes = executor.submit(Training(Path(folder).absolute()), 30).ranks()

    print(f"{len(slopes)} ranks found the slope {slopes[0][1]:.2f}")


if __name__ == "__main__":
    main()
