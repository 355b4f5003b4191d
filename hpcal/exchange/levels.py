"""Levels of theory as texts: what files state and what users give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import LevelOfTheory
from hpcal.core.settings import read_yaml
from hpcal.exchange.found import is_unknown, level_of_text

_FIELDS = ("code", "version", "method")


def level_stated(text: str, given: LevelOfTheory | None) -> LevelOfTheory:
    """The level that a file states, as a record in JSON or in words.

    Args:
        given: what the user says; goes before words, and must agree with a record.

    Raises:
        FormatError: a record without its fields, or one that the user contradicts.
    """
    try:
        record = json.loads(text.removeprefix("_JSON "))
    except ValueError:
        return given or level_of_text(text)
    if not isinstance(record, dict) or not record.keys() >= set(_FIELDS):
        raise FormatError(f"`level` must be a record with code, version and method, not {text[:80]!r}")
    stated = _of_record(record)
    if is_unknown(stated):
        # What stood for a level that a file did not state says nothing of another file either.
        return given or stated
    if given is not None and given != stated:
        one, other = told_apart((stated, given))
        raise FormatError(f"the file says its level of theory is {one}, not {other}")
    return stated


def told_apart(levels: Sequence[LevelOfTheory]) -> list[str]:
    """Texts of different levels, with the version and the settings by which those of equal text differ."""
    texts = []
    for level in levels:
        alike = [other for other in levels if str(other) == str(level) and other != level]
        parts = [str(level)]
        if any(other.version != level.version for other in alike):
            parts.append(f"version {level.version}")
        for key in sorted({key for other in (level, *alike) for key in other.settings}):
            if any(_setting(other, key) != _setting(level, key) for other in alike):
                parts.append(_setting(level, key))
        texts.append(", ".join(parts))
    return texts


def _setting(level: LevelOfTheory, key: str) -> str:
    if key not in level.settings:
        return f"no {key}"
    return f"{key}={json.dumps(level.settings[key], sort_keys=True, default=str)}"


def level_given(text: str) -> LevelOfTheory:
    """The level of theory that a user gives.

    Either ``CODE VERSION METHOD[/BASIS] [KEY=VALUE ...]``, such as ``orca 4.2 PBE/def2-SVP grid=7``,
    or the path of a YAML file with ``code``, ``version``, ``method`` and ``settings``.

    Raises:
        InputError: fewer than three words, or a file without these keys.
    """
    if text.endswith((".yaml", ".yml")):
        record = read_yaml(Path(text)).data
        known = {*_FIELDS, "settings"}
        if not isinstance(record, dict) or not set(_FIELDS) <= record.keys() <= known:
            raise InputError(
                f"{text}: a level of theory has the keys code, version, method and, if needed, settings"
            )
        return _of_record(record)
    words = text.split()
    settings = [word.partition("=") for word in words[3:]]
    if len(words) < 3 or any(not key or not equals for key, equals, _ in settings):
        raise InputError(
            f"--level {text!r} must be CODE VERSION METHOD[/BASIS] [KEY=VALUE ...], such as 'orca 4.2 "
            "PBE/def2-SVP', or a YAML file with code, version, method and settings"
        )
    method, slash, basis = words[2].partition("/")
    return LevelOfTheory(
        code=words[0],
        version=words[1],
        method=method,
        settings={**({"basis": basis} if slash else {}), **{key: _value(v) for key, _, v in settings}},
    )


def _of_record(record: dict[str, object]) -> LevelOfTheory:
    settings = record.get("settings") or {}
    if not isinstance(settings, dict):
        raise FormatError(f"the settings of a level of theory must be a mapping, not {settings!r}")
    return LevelOfTheory(
        code=str(record["code"]),
        version=str(record["version"]),
        method=str(record["method"]),
        settings={str(key): value for key, value in settings.items()},
    )


def _value(text: str) -> object:
    """A number or truth value where the text is one, so that equal levels have equal hashes."""
    try:
        return json.loads(text)
    except ValueError:
        return text
