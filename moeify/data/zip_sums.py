"""The checksums of a zip archive: torch.load does not look at them, and a flipped bit in a weight would pass."""

from __future__ import annotations

import zipfile
from pathlib import Path

from moeify.errors import InputError


def check_sums(path: Path) -> None:
    """Raises InputError where the archive that torch.save wrote is damaged. Parts are stored as they are: none unfolds."""
    try:
        with zipfile.ZipFile(path) as archive:
            folded = next((e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None)
            damaged = None if folded else archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: is a damaged zip archive ({error}); copy or download it again") from error
    if folded is not None:
        raise InputError(f"{path}: is damaged: its part {folded} is compressed, which torch.save never does; write it again")
    if damaged is not None:
        raise InputError(f"{path}: is damaged: the checksum of its part {damaged} is wrong; copy or download it again")
