"""Fetch an official archive, verified, so that no half or foreign file is left under its name."""

from dataclasses import dataclass
from pathlib import Path

import pooch

from tsflora.errors import DataError, StorageError


@dataclass(frozen=True)
class Archive:
    """An official archive: its file name, where it is published, and its MD5 digest as published."""

    file_name: str
    url: str
    md5: str


def fetch(archive: Archive, folder: Path) -> Path:
    """Download `archive` into `folder` (created if need be) and return its path.

    The bytes go to a temporary file that is renamed only when its digest is right.

    Raises:
        DataError: no connection, or what arrived is not the published file.
        StorageError: the folder cannot be written, or the disk is full.
    """
    from requests.exceptions import RequestException  # pooch imports it late too, as it takes a while

    advice = f"put {archive.file_name} into {folder} yourself, or set data_dir (or TSFLORA_DATA_DIR) to its folder"
    try:
        fetched = pooch.retrieve(
            archive.url,
            known_hash=f"md5:{archive.md5}",
            fname=archive.file_name,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=30),
        )
    except RequestException as error:
        raise DataError(f"cannot download {archive.url} ({type(error).__name__}); {advice}") from None
    except ValueError:  # pooch's report of a wrong digest
        raise DataError(f"{archive.url} did not give the published file (MD5 {archive.md5}); {advice}") from None
    except OSError as error:
        raise StorageError(f"cannot write {archive.file_name} to {folder}: {error.strerror or error}") from error
    return Path(fetched)
