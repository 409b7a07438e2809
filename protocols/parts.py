"""Each party's own part of a model, on disk: `<store>/<run id>/part.json` and `weights.safetensors`.

Takes part: one party, alone; nothing here leaves it but `digest(part)`, a SHA-256 that the parties of a run
tell each other so that parts of different runs are not mixed when predicting. A digest is not keyed: it
catches damage and mix-ups, not an owner who rewrites a part together with its hashes. It covers the
weights, so a curious peer can test a guess of the whole part against it and learns no more.

A part is a folder that `protocols.files` writes, so a run directory is whole or absent; a crash can leave a
hidden one, which nothing here reads and anyone may delete. Directories are readable by their owner only.
Formats: JSON (pydantic, no unknown fields) and safetensors.
What a method keeps is one dataclass, written as `protocols.packing` says: so all methods have one format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, StringConstraints, ValidationError

from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.files import remove_folder, write_folder
from protocols.packing import pack, unpack

SCHEMA = 2
WEIGHTS = "weights.safetensors"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = frozenset(["bool", "float16", "float32", "float64", *INTEGERS])
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One party's part of a model.

    method: the method's name. party: whose part. settings: JSON values, how the method was set, as far as
    this party knows it. kept: JSON values, what it keeps around its arrays. weights: named arrays, bool,
    integer or float. others: {party: digest of its part}. created: aware time; now if not given.
    """

    method: str
    party: str
    settings: Mapping[str, JsonValue]
    weights: Arrays = field(repr=False)
    kept: Mapping[str, JsonValue] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, method: str, party: str, kept: object, settings: Mapping[str, Any]) -> Self:
        """Make a part that holds the dataclass `kept`. Raises DataError for settings that are arrays."""
        tree, arrays = pack(kept)
        told, more = pack(settings)
        if more:
            raise DataError(f"{party}: settings should be JSON values, got an array: {', '.join(more)}")
        return cls(method, party, told, Arrays(arrays), tree)

    def read(self, kind: type[T]) -> T:
        """Read back what `of` was given, with networks as `packing.Stored`. DataError for anything else."""
        try:
            return unpack(kind, self.kept, self.weights)
        except DataError as error:
            raise DataError(
                f"{self.party}: this part of {self.method} is none that this release writes: {error}; "
                "train again"
            ) from None


class _Manifest(BaseModel):
    """part.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    method: str
    party: str
    created: AwareDatetime
    settings: dict[str, JsonValue]
    kept: dict[str, JsonValue]
    files: dict[str, Sha256]
    others: dict[str, Sha256]
    digest: Sha256


def digest(part: Part) -> str:
    """Return the part's SHA-256 (hex), without `created` and `others`. The other parties keep this digest."""
    return _manifest(part, _weights(part)).digest


def save_part(store: Path, run: str, part: Part) -> Path:
    """Write `part` as `<store>/<run>`, whole or not at all, and return that directory.

    Saving an identical part again changes nothing. Raises ConfigError for a run id that is no plain name,
    DataError for values that JSON or safetensors cannot hold, for a different part already there, and for
    what the disk refuses.
    """
    place = _place(store, run)
    weights = _weights(part)
    manifest = _manifest(part, weights)
    if place.exists():
        return _same(place, run, manifest)
    with _disk(f"{part.party}: run {run!r} was not saved"):
        write_folder(place, {WEIGHTS: weights, "part.json": _text(manifest)})
    return place


def load_part(store: Path, run: str) -> Part:
    """Read `<store>/<run>`; the arrays are read-only.

    Raises ConfigError for a run id that is no plain name or is not there, DataError for a part that is
    damaged, was changed after it was written, or has a schema version that this release does not read.
    """
    place = _place(store, run)
    manifest = _read(place, run)
    with _disk(f"{manifest.party}: run {run!r} cannot be read"):
        weights = (place / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != manifest.files[WEIGHTS]:
        raise DataError(
            f"{manifest.party}: {WEIGHTS} of run {run!r} is not what was saved ({len(weights)} bytes, "
            "SHA-256 differs from part.json); restore it from a backup or train again"
        )
    try:
        arrays = safetensors.numpy.load(weights)
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{manifest.party}: {WEIGHTS} of run {run!r} is no safetensors file: {error}"
        ) from None
    return Part(
        manifest.method,
        manifest.party,
        manifest.settings,
        Arrays(arrays),
        kept=manifest.kept,
        others=manifest.others,
        created=manifest.created,
    )


def list_parts(store: Path) -> list[str]:
    """The run ids in `store`, sorted; none if there is no such directory."""
    return sorted(file.parent.name for file in store.glob("*/part.json") if _is_run(file.parent.name))


def delete_part(store: Path, run: str) -> None:
    """Remove `<store>/<run>`; a crash half-way leaves nothing that looks whole.

    ConfigError for a run that is not there, DataError for what the disk refuses.
    """
    place = _place(store, run)
    if not (place / "part.json").exists():
        raise _missing(store, run)
    with _disk(f"run {run!r} was not deleted"):
        remove_folder(place)


def _is_run(run: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run) is not None


def _place(store: Path, run: str) -> Path:
    if not _is_run(run):
        raise ConfigError(
            f"run id {run!r} is no plain name; use up to 128 letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    return store / run


def _missing(store: Path, run: str) -> ConfigError:
    return ConfigError(
        f"run {run!r} is not in the store; there are: {', '.join(list_parts(store)) or 'none'}"
    )


def _weights(part: Part) -> bytes:
    arrays = {}
    for name, array in part.weights.items():
        # The file is C-ordered. (ascontiguousarray would give a scalar a dimension.)
        array = np.asarray(array, order="C")
        if array.dtype.name not in DTYPES:
            raise DataError(
                f"{part.party}: weights[{name!r}] should be bool, integer or float, got dtype {array.dtype}"
            )
        arrays[name] = array
    return safetensors.numpy.save(arrays)


def _manifest(part: Part, weights: bytes) -> _Manifest:
    settings, kept = (_as_json(part, name) for name in ("settings", "kept"))
    files = {WEIGHTS: hashlib.sha256(weights).hexdigest()}
    try:
        return _Manifest(
            schema_version=SCHEMA,
            method=part.method,
            party=part.party,
            created=part.created.astimezone(UTC),
            settings=settings,
            kept=kept,
            files=files,
            others=dict(part.others),
            digest=_digest(part.method, part.party, settings, kept, files),
        )
    except ValidationError as error:
        raise DataError(f"{part.party}: the part cannot be written: {_fields(error)}") from None


def _as_json(part: Part, name: str) -> dict[str, JsonValue]:
    try:
        found: dict[str, JsonValue] = json.loads(json.dumps(dict(getattr(part, name)), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"{part.party}: {name} should be JSON values: {error}") from None
    return found


def _text(manifest: _Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode()


def _digest(method: str, party: str, *content: Mapping[str, Any]) -> str:
    told = [SCHEMA, method, party, *content]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _same(place: Path, run: str, manifest: _Manifest) -> Path:
    there = _read(place, run)
    if (there.digest, there.others) != (manifest.digest, manifest.others):
        when = f"{there.created:%Y-%m-%d %H:%M} UTC"
        raise DataError(
            f"{manifest.party}: run {run!r} already holds another part ({there.method}, {when}); "
            "choose another run id or delete it first"
        )
    return place


def _read(place: Path, run: str) -> _Manifest:
    """Read part.json and check it against itself, but not yet against the weights."""
    if not place.exists():
        raise _missing(place.parent, run)
    with _disk(f"run {run!r} cannot be read"):
        text = (place / "part.json").read_bytes()
    try:
        found = json.loads(text)
    except ValueError:
        raise DataError(
            f"part.json of run {run!r} is damaged: it is no JSON; restore it or train again"
        ) from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA:
        raise DataError(
            f"part.json of run {run!r} has schema version {version!r}, this release reads {SCHEMA}; "
            "train again, or use the release that wrote it"
        )
    try:
        manifest = _Manifest.model_validate(found)
    except ValidationError as error:
        raise DataError(
            f"part.json of run {run!r} is damaged: {_fields(error)}; restore it or train again"
        ) from None
    expected = _digest(manifest.method, manifest.party, manifest.settings, manifest.kept, manifest.files)
    if manifest.digest != expected or list(manifest.files) != [WEIGHTS]:
        raise DataError(
            f"{manifest.party}: part.json of run {run!r} was changed after it was saved: it says digest "
            f"{manifest.digest[:12]}..., its content has {expected[:12]}...; restore it or train again"
        )
    return manifest


def _fields(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])


@contextlib.contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what}: {error.strerror or error}; is the store writable and is there space?"
        ) from error
