"""A training as a stage makes it: devices, seed, samples, resume state, progress, curve."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from cag.config.training import Run, Training
from cag.datasets.prepared import MANIFEST, common_size, read_manifest
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.networks import Model, save_model
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.files import atomic_file, existing, fingerprint, sha256, write_csv
from cag.runtime.progress import is_main_process, progress
from cag.runtime.provenance import code_digest, require_unchanged
from cag.runtime.seeds import mix
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import Objective, source_class_weights
from cag.training.samples import Sample, TrainingSamples, labelled_samples

SCRATCH = Path(".scratch")


class Fit:
    """One training of a stage. Making it starts the devices and sets all random states.

    Attributes:
        fabric: Device, precision, processes.
        checkpoint: The file that an interrupted training resumes from.
    """

    def __init__(self, name: str, params: Run, config: Training, draws: Iterable[int]):
        """Start the devices.

        Args:
            name: Of the progress bar and of the resume state, e.g. "adapt round1".
            params: All parameters that the training depends on: another value starts it anew.
            config: The section of this training.
            draws: Integers that, with the seed, give this training its own random draws.
        """
        self.name, self.params, self.config = name, params, config
        self.seed = mix(params.seed, *draws)
        self.checkpoint = SCRATCH / name.replace(" ", "-") / "checkpoint.pt"
        self.fabric = make_fabric(params.precision)
        self.fabric.seed_everything(self.seed % 2**32, verbose=False)

    def source(
        self, folder: Path, num_classes: int, draw: int = 0
    ) -> tuple[TrainingSamples, Tensor | None]:
        """The labelled source, and the class weights float32 [K] of its cross-entropy or None."""
        samples = self.samples(labelled_samples(folder), draw)
        return samples, source_class_weights(samples.samples, num_classes, self.config)

    def samples(self, samples: Sequence[Sample], draw: int = 1) -> TrainingSamples:
        """A domain's augmented samples; `draw` is the number of its sequence of random draws."""
        return TrainingSamples(samples, self.config.augmentation, mix(self.seed, draw))

    @property
    def batch_size(self) -> int:
        """The images of a domain that the devices hold at a time, all together."""
        most = self.params.max_batch_per_device or self.config.batch_size
        return min(self.config.batch_size, most * self.fabric.world_size)

    def train(
        self,
        objective: Objective,
        domains: Sequence[TrainingSamples],
        reads: Sequence[Path],
        **identity: Any,
    ) -> pd.DataFrame:
        """Train the objective's network in place, from where an interrupted run stopped.

        Args:
            objective: Gives a batch's losses.
            domains: The samples of the source and, where it is trained on, of the target.
            reads: The files and folders that the result depends on.
            **identity: What else it depends on, in values that JSON has.

        Returns:
            The learning curve, as `loop.train` gives it.

        Raises:
            UserError: A file of `reads` is missing, or as `loop.train`.
        """
        identity = {
            **identity,
            "params": self.params.model_dump(),
            "config": self.config.model_dump(),
            "precision": best_precision(self.params.precision),
            "reads": [_digest(path) for path in reads],
            "processes": self.fabric.world_size,
            "code": code_digest(),
        }
        images = len(domains) * self.config.batch_size
        with progress(self.name, self.config.iterations, "iterations", images) as advance:
            return train(
                objective,
                shared_batches(domains, self.config.batch_size, self.fabric),
                self.params,
                self.config,
                self.seed,
                self.fabric,
                Checkpoint(self.checkpoint, fingerprint(**identity)),
                advance,
            )

    def save(
        self, path: Path, model: Model, images: Path, curve_path: Path, curve: pd.DataFrame
    ) -> None:
        """Write the model and its learning curve; the training is over, so its resume state goes.

        The state stays if code or parameters were changed in the meantime, which is a UserError: it
        is still of use when they are as they were.

        Args:
            path: The model's file.
            model: The network that is kept, and what describes it.
            images: The prepared data set that the model is for, whose size it will name.
            curve_path: The learning curve's file.
            curve: The learning curve.
        """
        if self.fabric.is_global_zero:
            write_csv(curve_path, curve)
            size = common_size(read_manifest(images).query("split == 'train'"))
            save_model(path, *model._replace(size=size))
            require_unchanged()
            self.checkpoint.unlink(missing_ok=True)


def pass_on(model: Path, path: Path, curve: Path) -> None:
    """Copy a model that needs no training; its learning curve has no rows."""
    if is_main_process():
        write_csv(curve, pd.DataFrame(columns=["iteration", "loss"]))
        with atomic_file(path) as partial:
            shutil.copyfile(model, partial)


def _digest(path: Path) -> str | list[str]:
    """Digests of a prepared data set, of a folder of PNGs, or of a file."""
    if (path / MANIFEST).is_file():
        return data_fingerprint(path)
    if path.is_dir():
        return [f"{png.relative_to(path)} {sha256(png)}" for png in sorted(path.rglob("*.png"))]
    return sha256(existing(path))
