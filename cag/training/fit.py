"""A training as a stage makes it: devices, seed, samples, resume state, progress, curve."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from cag.config.networks import Network
from cag.config.training import Run, Training
from cag.datasets.labels import LabelSpace
from cag.datasets.prepared import MANIFEST, common_size, read_manifest
from cag.datasets.prepared import fingerprint as data_fingerprint
from cag.networks import SegmentationNetwork, save_model
from cag.runtime.devices import best_precision, make_fabric
from cag.runtime.files import atomic_file, existing, fingerprint, sha256, write_csv
from cag.runtime.progress import is_main_process, progress
from cag.runtime.seeds import mix
from cag.training.loop import Checkpoint, shared_batches, train
from cag.training.objectives import Objective, source_class_weights
from cag.training.samples import Sample, TrainingSamples


class Fit:
    """One training of a stage. Making it starts the devices and sets all random states.

    Attributes:
        fabric: Device, precision, processes.
    """

    def __init__(
        self, name: str, params: Run, config: Training, draws: Iterable[int], checkpoint: Path
    ):
        """Start the devices.

        Args:
            name: Of the progress bar, e.g. "adapt round1".
            params: All parameters that the stage declares: another value starts the training anew.
            config: The section of this training.
            draws: Integers that, with the seed, give this training its own random draws.
            checkpoint: The file to resume from, which `finish` removes.
        """
        self.name, self.params, self.config = name, params, config
        self.seed = mix(params.seed, *draws)
        self.fabric = make_fabric(params.precision)
        self.fabric.seed_everything(self.seed % 2**32, verbose=False)
        self._checkpoint = checkpoint

    def samples(self, samples: Sequence[Sample], draw: int) -> TrainingSamples:
        """A domain's augmented samples; `draw` is the number of its sequence of random draws."""
        return TrainingSamples(samples, self.config.augmentation, mix(self.seed, draw))

    def class_weights(self, source: TrainingSamples, num_classes: int) -> Tensor | None:
        """Weights float32 [K] of the source's cross-entropy; None: plain."""
        return source_class_weights(source.samples, num_classes, self.config)

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
                Checkpoint(self._checkpoint, fingerprint(**identity)),
                advance,
            )

    def save(
        self,
        path: Path,
        network: SegmentationNetwork,
        config: Network,
        classes: LabelSpace,
        images: Path,
    ) -> None:
        """Write the trained model, which says the size of its training images if they have one.

        Args:
            path: The model's file.
            network: As trained.
            config: Its description.
            classes: Its classes.
            images: The prepared data set that it is for.
        """
        if self.fabric.is_global_zero:
            rows = read_manifest(images).query("split == 'train'")
            save_model(path, network, config, classes, common_size(rows))

    def finish(self, path: Path, curve: pd.DataFrame) -> None:
        """Write the learning curve; the training is complete, so its resume state goes."""
        if self.fabric.is_global_zero:
            write_csv(path, curve)
            self._checkpoint.unlink(missing_ok=True)


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
