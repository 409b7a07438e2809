"""What a loss of power can leave of what a program wrote, as far as POSIX lets it: tried out, all of it.

`Disk` watches a folder while a program writes there. At any moment the disk holds for certain what was
flushed: of a file its content at its last `fsync`, of a folder its names at its last `fsync`. Each change
since may or may not have come there, whatever came of the others: each name that was made, taken away or
renamed, and of each file's content nothing, a part, zeros or all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

Node = int  # a file or a folder, under whichever name; never used twice
Names = dict[str, Node]
Leaf = bytes | None  # a file's content; None for a folder


@dataclass(frozen=True)
class Change:
    """What happened to the names of one folder at once: those that went, and those that came."""

    gone: tuple[str, ...]
    came: tuple[tuple[str, Node], ...]

    def apply(self, names: Names) -> None:
        for name in self.gone:
            names.pop(name, None)
        names.update(self.came)


@dataclass
class Folder:
    """The names that are flushed, and what changed since."""

    flushed: Names = field(default_factory=dict)
    changes: tuple[Change, ...] = ()

    def possible(self) -> Iterator[Names]:
        for count in range(len(self.changes) + 1):
            for kept in combinations(self.changes, count):
                names = dict(self.flushed)
                for change in kept:
                    change.apply(names)
                yield names


@dataclass
class File:
    """The content that is flushed, and what was there since."""

    flushed: bytes = b""
    since: tuple[bytes, ...] = ()

    def possible(self) -> set[bytes]:
        torn = [each for new in self.since for each in (new, new[: len(new) // 2], bytes(len(new)))]
        return {self.flushed, *torn, *([b""] if self.since else [])}


class Disk:
    """The folder `root`, which is on the disk as it is when this is made, and what happens to it since."""

    def __init__(self, root: Path) -> None:
        self.root, self.collects = root, True
        self._nodes: dict[int, Node] = {}  # by the number that the system gives, which it uses again
        self._folders: dict[Node, Folder] = {}
        self._files: dict[Node, File] = {}
        self._count = 0
        self.moments: list[dict[Path, Leaf]] = []  # what could be left until now, each once, if it `collects`
        self._known: set[tuple[tuple[Path, Leaf], ...]] = set()
        self._top = self._node(root)
        self._look()
        for folder in self._folders.values():
            folder.flushed, folder.changes = self._now(folder), ()
        for file in self._files.values():
            file.flushed, file.since = (file.since or (file.flushed,))[-1], ()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """See all that this process does to its disk from now on. Flushes change this disk too."""
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "open"):
            patch.setattr(os, name, self._seen(getattr(os, name)))
        fsync = os.fsync

        def flushed(handle: int) -> None:
            self._look()
            self._crash()
            fsync(handle)
            self._flush(os.fstat(handle).st_ino)
            self._crash()

        patch.setattr(os, "fsync", flushed)

    def _seen(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def both(*args: Any, **more: Any) -> Any:
            self._look()
            self._crash()
            try:
                return call(*args, **more)
            finally:
                self._look()
                self._crash()

        return both

    def left(self) -> Iterator[dict[Path, Leaf]]:
        """Each content of `root` that a loss of power now could leave."""
        yield from self._trees(self._top, Path())

    def _crash(self) -> None:
        if not self.collects:
            return
        for tree in self.left():
            key = tuple(sorted(tree.items()))
            if key not in self._known:
                self._known.add(key)
                self.moments.append(tree)

    def _trees(self, node: Node, path: Path) -> Iterator[dict[Path, Leaf]]:
        if node in self._files:
            for content in self._files[node].possible():
                yield {path: content}
            return
        for names in self._folders[node].possible():
            below = [list(self._trees(child, path / name)) for name, child in sorted(names.items())]
            for trees in product(*below):
                yield {path: None, **{key: leaf for tree in trees for key, leaf in tree.items()}}

    def _flush(self, number: int) -> None:
        node = self._nodes.get(number)
        if node in self._folders:
            folder = self._folders[node]
            folder.flushed, folder.changes = self._now(folder), ()
        elif node in self._files:
            file = self._files[node]
            file.flushed, file.since = (file.since or (file.flushed,))[-1], ()

    def _look(self) -> None:
        """Take down what is different from the last look."""
        before, self._nodes = self._nodes, {}
        self._nodes[self.root.stat().st_ino] = self._top
        self._compare(self.root, self._top, before)

    def _compare(self, path: Path, node: Node, before: dict[int, Node]) -> None:
        if not path.is_dir():
            file, content = self._files.setdefault(node, File()), path.read_bytes()
            if content != (file.since or (file.flushed,))[-1]:
                file.since = (*file.since, content)
            return
        folder = self._folders.setdefault(node, Folder())
        names: Names = {}
        for entry in sorted(path.iterdir()):
            number = entry.lstat().st_ino
            known = self._nodes.get(number) or before.get(number)
            names[entry.name] = self._nodes[number] = known or self._node(entry)
        was = self._now(folder)
        gone = tuple(name for name in was if name not in names)
        came = tuple((name, child) for name, child in names.items() if was.get(name) != child)
        if gone or came:
            folder.changes = (*folder.changes, Change(gone, came))
        for name, child in names.items():
            self._compare(path / name, child, before)

    def _now(self, folder: Folder) -> Names:
        names = dict(folder.flushed)
        for change in folder.changes:
            change.apply(names)
        return names

    def _node(self, path: Path) -> Node:
        self._count += 1
        if path.is_dir():
            self._folders[self._count] = Folder()
        else:
            self._files[self._count] = File()
        return self._count


def put(tree: dict[Path, Leaf], root: Path) -> None:
    """Make `root`, which is not there, what a loss of power left."""
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir(mode=0o700)
        else:
            (root / path).write_bytes(content)
            (root / path).chmod(0o600)
