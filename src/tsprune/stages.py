"""A run directory: one folder per finished stage, keyed by a hash of its inputs. Starting again resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError

DONE, LOCK, RESULTS = "done.json", ".lock", "results.json"


def unwritable(path: Path, error: Exception) -> TspruneError:
    """The one line for a file that could not be written, such as on a full disk; the file is named, not its part."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    # The library for tensors wraps the system's words in its own.
    reason = re.sub(r"^.*I/O error: | \(os error.*$", "", reason)
    return TspruneError(
        f"{path}: cannot be written ({reason}); make room there or choose another place, then run the same command "
        "again, it continues where it was"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; a link is followed, and a device or pipe is written to as it stands.

    Raises:
        TspruneError: the file cannot be written, such as on a full disk; what was there before is unchanged.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except BrokenPipeError:
        # Not a fault: whoever read the pipe has seen enough.
        raise
    except OSError as error:
        raise unwritable(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; values that JSON cannot hold (NaN, infinity) are an error of ours."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is missing or damaged is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TspruneError(f"{path}: no such file") from None
    except OSError as error:
        raise TspruneError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TspruneError(
            f"{path}: not valid JSON ({error}); restore the file or run the stage that writes it"
        ) from None


def digest(inputs: Any) -> str:
    """Hash of JSON-able inputs."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def writable(path: Path, flag: str = "--out") -> Path:
    """The directory, checked before any work is done, whether it exists or not; nothing is left behind.

    Raises:
        TspruneError: nothing can be written there; names the flag.
    """
    made: list[Path] = []
    try:
        made = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TspruneError(f"{flag} {path}: cannot write there ({error.strerror}); choose another directory") from None
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
    return path


def writable_file(path: Path, flag: str = "--out") -> Path:
    """The same for a file, which may exist and is then replaced."""
    if os.path.isdir(path):
        raise TspruneError(f"{flag} {path} is a directory, expected the name of a file")
    writable(path.absolute().parent, flag)
    return path


@dataclass
class _Held:
    """A run directory that this process works in: its locked file, and how many `Run` objects share it."""

    directory: Path
    file: int
    users: int
    owner: int

    def is_there(self) -> bool:
        """Whether the file on disk is still the one that is locked."""
        try:
            return os.path.samestat(os.fstat(self.file), os.stat(self.directory / LOCK))
        except OSError:
            return False

    def let_go(self) -> None:
        """One user less; after the last one the file goes. The kernel does the same for a process that dies."""
        with _GUARD:
            self.users -= 1
            # What a forked child inherits is its parent's to give back.
            if self.users > 0 or _HELD.get(self.directory) is not self or self.owner != os.getpid():
                return
            del _HELD[self.directory]
            ours = self.is_there()
            if sys.platform == "win32":
                os.close(self.file)
            if ours:
                with contextlib.suppress(OSError):
                    (self.directory / LOCK).unlink()
            if sys.platform != "win32":
                os.close(self.file)


_HELD: dict[Path, _Held] = {}
# A lock may be given back by the garbage collector while another one is being taken.
_GUARD = threading.RLock()


def _hold(directory: Path) -> _Held:
    """Lock a run directory against other processes; this one may hold it several times.

    Raises:
        TspruneError: another process works there, or the directory cannot be written.
    """
    key = Path(os.path.realpath(directory))
    with _GUARD:
        held = _HELD.get(key)
        if held is not None and held.owner == os.getpid() and not held.is_there():
            # Someone has removed the directory; what is there now, if anything, is another one.
            os.close(held.file)
            held = None
        if held is None or held.owner != os.getpid():
            held = _HELD[key] = _Held(key, _locked_file(key, directory), 0, os.getpid())
        held.users += 1
        return held


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes while something works in it.

    Raises:
        TspruneError: another process works there, or the directory cannot be written.
    """
    mine = _hold(writable(directory))
    try:
        yield
    finally:
        mine.let_go()


def _locked_file(key: Path, shown: Path) -> int:
    """The descriptor of the directory's lock file, locked; it holds the process id, for the others' message."""
    path = key / LOCK
    for _ in range(100):
        try:
            key.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # Another run's probe of a fresh directory has just been cleared away.
        except OSError as error:
            raise unwritable(path, error) from error
        if not _try_lock(file):
            os.close(file)
            raise _occupied(path, shown)
        try:
            # The run that ended between our opening and locking has taken the file away with it.
            there = os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            there = False
        if there:
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
            return file
        os.close(file)
    raise _occupied(path, shown)


def _try_lock(file: int) -> bool:
    """Lock an open file without waiting; a file system that knows no locks counts as locked."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network drives; runs there go on as they did before there were locks.
        return True
    return True


def _occupied(path: Path, shown: Path) -> TspruneError:
    try:
        number = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        number = 0
    who = f" (pid {number})" if number else ""
    return TspruneError(f"another tsprune run{who} is working in {shown}; wait for it or choose another --out")


def release() -> None:
    """Give back every run directory of this process, as the command line does when a command has ended."""
    with _GUARD:
        for held in list(_HELD.values()):
            held.users = 0
            held.let_go()


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Run:
    """A run directory, from the first stage on closed to other processes; within one process it may be opened twice.

    Args:
        directory: made when the first stage starts.
        note: told, in one line, when the results of an earlier run with other inputs are about to be replaced.
        warn: told when a damaged stage is made again; None writes to the error stream.
    """

    def __init__(
        self, directory: Path, note: Callable[[str], None] | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self.directory = writable(directory)
        self.seconds: dict[str, float] = {}
        self._note, self._warn = note, warn or _warn
        self._lock: weakref.finalize[Any, Any] | None = None

    def close(self) -> None:
        """Let other processes work in the directory; the end of the object or of the process does the same."""
        if self._lock is not None:
            self._lock()
            self._lock = None

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a finished stage; it is made unless these very inputs were finished before.

        `make` fills a folder that becomes the stage's once it is done, and stays for the next try if the run is
        killed, so that what `make` itself checkpoints there is continued. A finished folder whose files were lost
        or changed is made again, aloud.

        Raises:
            TspruneError: another process works in the run directory.
        """
        if self._lock is None:
            self._lock = weakref.finalize(self, _hold(self.directory).let_go)
        folder = self.directory / "stages" / f"{name}-{digest(inputs)}"
        finished = folder.exists()
        if finished and (damage := _damage(folder)):
            self._warn(f"stage {name} is made again: {folder} is damaged, {damage}")
            finished = False
        if not finished:
            self._say_what_is_replaced(name, folder)
            work = folder.with_name(folder.name + ".partial")
            work.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            make(work)
            _clear(work)
            seconds = round(time.monotonic() - started, 3)
            write_json(work / DONE, {"inputs": dict(inputs), "seconds": seconds, "files": _contents(work)})
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(work, folder)
        self.seconds[name] = float(read_json(folder / DONE)["seconds"])
        return folder

    def _say_what_is_replaced(self, name: str, folder: Path) -> None:
        """Once per run, where the directory holds results and this stage of a run with other inputs."""
        if self._note is None or not (self.directory / RESULTS).exists():
            return
        if any(mark.parent != folder for mark in folder.parent.glob(f"{name}-????????????/{DONE}")):
            self._note(f"note: {self.directory} holds the results of an earlier run with other inputs; replacing them")
            self._note = None


def _clear(work: Path) -> None:
    """Take away what a kill in the middle of writing a file left behind, here or in the library for tensors."""
    for pattern in (".*.part", ".tmp??????"):
        for leftover in list(work.rglob(pattern)):
            if leftover.is_file():
                leftover.unlink()


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below a folder, so that damage is noticed later: its size, and for JSON its sha256."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DONE)
    return {path.relative_to(folder).as_posix(): _facts(path) for path in files}


def _facts(path: Path) -> dict[str, Any]:
    # Weights are large, and their reader checks them; a hash of all of them would cost every resumed run seconds.
    if path.suffix == ".json":
        content = path.read_bytes()
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": path.stat().st_size}


def _damage(folder: Path) -> str:
    """What is wrong with the folder of a finished stage, or nothing. Stages of older versions list no files."""
    try:
        mark = read_json(folder / DONE)
        float(mark["seconds"])
        listed = dict(mark.get("files", {}))
    except (TspruneError, TypeError, ValueError, KeyError, AttributeError):
        return f"{DONE} is missing or cannot be read"
    for name, facts in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if _facts(path) != facts:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""
