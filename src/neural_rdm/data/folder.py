"""The base of data modules whose samples are files in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from neural_rdm.config.stated import call
from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.data.base import DataModule
from neural_rdm.data.layouts import check_folder, drawn


@checked()
class FolderModule(DataModule):
    """A data module of a folder whose layout is drawn in the docstring of its class. It is looked at when it is set up:
    sampling needs no data.

    Args:
        root: the folder; None until somebody asks for the samples.

    The other arguments: see `DataModule`.
    """

    crop = "as its class does it"

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        batch_size: Count,
        num_workers: Natural = 0,
        limit: Count | None = None,
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(batch_size, num_workers, limit, max_bad_fraction)
        self.root = Path(os.path.expanduser(root or ""))

    @property
    def layout(self) -> str:
        """What the folder should hold, for messages."""
        return drawn(type(self).__doc__)

    def setup(self, stage: str | None = None) -> None:
        """Check the folder, then load the data sets unless they are loaded; may be called without a Trainer.

        Raises:
            DataError: there is no such folder, or its data sets cannot be loaded.
        """
        self.root = check_folder(self.root, self.layout)
        if (check := type(self).check) is not None:
            call(check, vars(self))
        super().setup(stage)
