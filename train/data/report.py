"""What a run says of its data: how full the rows are, and which records were skipped."""

from pathlib import Path

from idefics_jax.utils.paths import naming

from ..data.packing import Row

FEW = 100  # records, of which any share may be bad


class PackingReport:
    """Adds up rows, and says in one line how much of them is padding."""

    def __init__(self) -> None:
        self.rows = self.documents = self.read = self.skipped = 0
        self.tokens = self.padding = self.slots = self.images = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.documents += int(row.segment_ids.max())
        self.read += row.read
        self.skipped += len(row.bad)
        self.tokens += row.segment_ids.size
        self.padding += int((row.segment_ids == 0).sum())
        self.slots += row.image_attention_mask.shape[-1]
        self.images += int(row.image_attention_mask.any(axis=0).sum())  # an image is seen by its own token at least

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows of {self.documents / max(self.rows, 1):.1f} documents: "
            f"{self.padding / max(self.tokens, 1):.1%} of the tokens are padding, "
            f"{1 - self.images / max(self.slots, 1):.1%} of the image slots are empty; "
            f"{self.read:,} records read, {self.skipped:,} skipped"
        )


class BadRecords:
    """Counts the records that were skipped and appends a line for each to `skipped.log` in `folder`.

    The other processes append to `skipped.1.log` and so on.
    """

    def __init__(self, folder: Path, max_bad: float, process: int = 0):
        self.path = folder / (f"skipped.{process}.log" if process else "skipped.log")
        self.max_bad = max_bad
        self.read = self.bad = 0
        self._different: set[str] = set()  # bad records, until there are two: each epoch reads the same ones

    def add(self, row: Row) -> None:
        """Take note of a row.

        Raises:
            RuntimeError: more than the share `max_bad` of all records so far, more than `FEW`, were bad, and not
                always the same one.
        """
        self.read += row.read
        self.bad += len(row.bad)
        if not row.bad:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(line.replace("\n", " ") + "\n" for line in row.bad)
        if len(self._different) < 2:
            self._different.update(row.bad)
        several = len(self._different) > 1 or self.max_bad == 0
        if several and self.read > FEW and self.bad > self.max_bad * self.read:
            raise RuntimeError(
                f"{self.bad:,} of {self.read:,} records could not be used, more than --data.max-bad {self.max_bad:g} "
                f"allows; the last: {row.bad[-1]} (all of them: {self.path})."
            )
