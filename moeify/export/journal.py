"""What an unfinished conversion has done so far, beside its output: `.NAME.moeify-journal/`, a file a finished layer.

    journal.json                        what is converted, how, on which data (see `Journal.begin`)
    layer-<site>-<sha256>.safetensors   one finished layer: its spec's tensors, the rest as JSON in the header
    aligned.safetensors                 where an alignment stands

While a run works, it holds a lock on the folder, so that two runs never write one output. It is removed when the run ends well,
or when it ends in an error that would come again. Weights of the dense model are not in it: a spec names neurons.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from moeify.errors import MoeifyError, OutputError
from moeify.export.atomic import flush, output_errors
from moeify.ir.feed_forward import FeedForward
from moeify.ir.spec_data import spec_data, spec_of
from moeify.pipeline.finished import FinishedLayer

_KEY = "journal.json"
_LAYER = "layer-"


class Journal:
    """Finished layers in a folder (`moeify.pipeline.finished.FinishedLayers`).

    begun: this run has said what it converts; until then the folder is an earlier run's. resumed: how many layers were taken
    over from that.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self.begun, self.resumed = False, 0

    @property
    def kept(self) -> int:
        """How many layers are finished."""
        return len(list(self.folder.glob(f"{_LAYER}*.safetensors")))

    @property
    def alignment(self) -> Path:
        """The file that an alignment keeps its state in."""
        return self.folder / "aligned.safetensors"

    def begin(self, key: Mapping[str, Any], *, resume: bool) -> None:
        """Says what is converted. key: JSON values, by what they are of; equal keys give equal layers.

        resume: go on with the layers that are there; without, they are forgotten. Raises OutputError where they are of another
        conversion, naming what is different.
        """
        key = json.loads(json.dumps(key))
        before = self._key() if resume else None
        if before is not None and (different := [name for name in key if before.get(name) != key[name]]):
            raise OutputError(
                f"{self.output}: the conversion that was begun there is another one (its {' and '.join(different)} differ); "
                "give the same options again, or leave out --resume to begin anew"
            )
        self.begun = True
        with output_errors(self.output):
            if before is None:
                self._clear()
                self._write(_KEY, json.dumps(key, indent=2).encode())

    def find(self, site: FeedForward) -> FinishedLayer | None:
        """The layer as it was kept; None where it was not, or its file is damaged."""
        for path in self.folder.glob(f"{_stem(site)}-*.safetensors"):
            layer = _read(path)
            if layer is not None:
                self.resumed += 1
                return layer
        return None

    def keep(self, site: FeedForward, layer: FinishedLayer) -> None:
        """Writes the layer. Raises OutputError where the disk takes no more."""
        values, tensors = (None, {}) if layer.spec is None else spec_data(layer.spec)
        about = {"spec": values, "measured": layer.measured, "notes": layer.notes}
        content = save({name: t.contiguous() for name, t in tensors.items()}, {"layer": json.dumps(about)})
        with output_errors(self.output):
            self._write(f"{_stem(site)}-{hashlib.sha256(content).hexdigest()}.safetensors", content)

    def _key(self) -> dict[str, Any] | None:
        """What was begun there; None where there is nothing that can be gone on with."""
        try:
            found = json.loads((self.folder / _KEY).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def _write(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.part"
        part.write_bytes(content)
        flush(part)
        part.rename(self.folder / name)
        flush(self.folder)


@contextmanager
def journal_beside(output: Path) -> Iterator[Journal]:
    """The journal of a conversion to `output`, for as long as it runs.

    Raises OutputError where another run is converting to it. When the block is left by an exception that a second try may not
    meet (an interrupt, a full disk) and layers are finished, the journal stays, and the exception says so in a note.
    """
    real = Path(os.path.realpath(output))
    folder = real.parent / f".{real.name}.moeify-journal"
    with output_errors(output):
        lock = _locked(folder, output)
    journal = Journal(folder, output)
    try:
        yield journal
    except BaseException as error:
        again = isinstance(error, MoeifyError) and not isinstance(error, OutputError)
        if not journal.begun:
            with suppress(OSError):  # an earlier run's layers are not ours to remove
                folder.rmdir()
        elif again or not journal.kept:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            error.add_note(f"{journal.kept} finished layers are kept: the same command with --resume goes on from there")
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(folder: Path, output: Path) -> int:
    """A handle on the folder, made if need be, that holds its lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another run has just ended and removed it
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(folder).st_ino == os.fstat(lock).st_ino:
                    return lock
            except BlockingIOError:
                os.close(lock)
                raise OutputError(f"{output}: another conversion is writing it; wait for it, or choose another name") from None
            except FileNotFoundError:
                pass
            os.close(lock)


def _stem(site: FeedForward) -> str:
    """A file name for the site: its path may be too long, or hold what file names may not."""
    return f"{_LAYER}{hashlib.sha256(site.path.encode()).hexdigest()[:16]}"


def _read(path: Path) -> FinishedLayer | None:
    try:
        content = path.read_bytes()
        if not path.stem.endswith(hashlib.sha256(content).hexdigest()):
            return None
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["layer"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no mapping
        spec = None if about["spec"] is None else spec_of(about["spec"], tensors)
        return FinishedLayer(spec, about["measured"], tuple(about["notes"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
