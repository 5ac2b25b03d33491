"""The command line of every verb: options and names in any order, and one line for what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vdengine import objectives
from vdengine.errors import InputError
from vdengine.outside import printable
from vdengine.recipe import Recipe, load_recipe

_OVERRIDE = re.compile(r"\s*[A-Za-z_][\w-]*(\.[\w-]+)*\s*=")  # a path with = in it can be written with a slash


class Parser(argparse.ArgumentParser):
    """As argparse's, but names and options mix in any order, options are written out, and an error is an `InputError`
    of one line.

    Raises (`parse_args`):
        InputError: an unknown option (the nearest is named), a value of another type, a name too many or too few.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].lower()}{printable(message[1:])} (see {self.prog} --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is not None:  # argparse cannot mix options with verbs of a verb
            return super().parse_args(args, namespace)
        words = list(sys.argv[1:] if args is None else args)
        found, unknown = self.parse_known_intermixed_args(words, namespace)
        if unknown:
            self.error(self._unknown(unknown[0], words))
        return found

    def _unknown(self, first: str, words: Sequence[str]) -> str:
        """The message on the first of all words that no option and no name takes."""
        if not first.startswith("-"):
            return f"one name too many: {first}"
        options = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(first.split("=")[0], options, n=1, cutoff=0.6)
        return f"unknown option {first}" + (f"; did you mean {close[0]}?" if close else "")


class RecipeParser(Parser):
    """The command line of a verb that reads a recipe: its file, and overrides of its keys, before or after it."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("usage", "%(prog)s RECIPE [section.key=value ...] [options]")
        super().__init__(**options)
        self.add_argument("recipe", nargs="?", metavar="RECIPE", help="a TOML file; see recipes/")
        self.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="optional: replace keys of the recipe, each once"
        )

    def read(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Recipe]:
        """The options, and the recipe with its overrides.

        Raises:
            InputError: as `Parser` and `load_recipe`; no recipe or two; an override that is spelled like an option.
        """
        args, paths, overrides = self._words(argv)
        if len(paths) > 1:
            path = next((word for word in paths if word.endswith(".toml")), paths[0])
            other = next(word for word in paths if word is not path)
            self.error(f"{path} is the recipe, and {other} no override: write section.key=value")
        return args, load_recipe(paths[0], overrides)

    def read_all(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Recipe]]:
        """The options, and one recipe or several, each with the overrides.

        Raises:
            InputError: as `read`, but for the number of recipes; of several one that is named twice, or whose run
                folder another has too, or an override that would give all of them one.
        """
        args, paths, overrides = self._words(argv)
        if len(paths) > 1:
            if other := next((word for word in paths if not word.endswith(".toml")), None):
                self.error(f"{other} is no recipe (.toml), and no override: write section.key=value")
            for key in ("run.folder", "run.after"):
                if any(override.partition("=")[0].strip() == key for override in overrides):
                    self.error(
                        f"{key} belongs to one recipe: {len(paths)} are named, and an override is of all of them"
                    )
        recipes = [load_recipe(path, overrides) for path in paths]
        folders: dict[str, str] = {}
        for path, recipe in zip(paths, recipes, strict=True):
            folder = os.path.realpath(os.path.expanduser(recipe.run.folder))
            if folder in folders:
                self.error(f"{folders[folder]} and {path} have one run.folder, {recipe.run.folder}")
            folders[folder] = path
        return args, recipes

    def _words(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str], list[str]]:
        """The options, and the words that are no overrides, one at least, and those that are."""
        args = self.parse_args(argv)
        words = [word for word in (args.recipe, *args.overrides) if word is not None]
        overrides = [word for word in words if _OVERRIDE.match(word)]
        others = [word for word in words if not _OVERRIDE.match(word)]
        if not others:
            self.error("name a recipe, a TOML file")
        if any(word.endswith(".toml") for word in others):
            for word in others:
                if not word.endswith(".toml") and (spelled := _spelled(word)):
                    self.error(f"{word} has no value: write {spelled}")
        keys = [override.partition("=")[0].strip() for override in overrides]
        for override, key in zip(overrides, keys, strict=True):
            if "." not in key and (spelled := _spelled(key, override.partition("=")[2])):
                self.error(f"{override} names no section: write {spelled}")
            if keys.count(key) > 1:
                self.error(f"{key} is given twice")
        return args, others, overrides

    def _unknown(self, first: str, words: Sequence[str]) -> str:
        key, equals, value = first.lstrip("-").partition("=")
        after = words[words.index(first) + 1 :] if first in words else []
        given = value if equals else after[0] if after and not after[0].startswith("-") else None
        if first.startswith("-") and (spelled := _spelled(key, given)):
            return f"keys of the recipe are written without dashes: {spelled}"
        return super()._unknown(first, words)


def _spelled(key: str, value: str | None = None) -> str | None:
    """The override that was meant by a key of the recipe, with or without its section; None if there is no such key."""
    key = key.replace("-", "_")
    sections = {f.name: getattr(Recipe(), f.name) for f in dataclasses.fields(Recipe)}
    known = [f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)]
    known += [f"objective.{f.name}" for o in objectives.BUILT_IN for f in dataclasses.fields(o.keys)]
    meant = [dotted for dotted in dict.fromkeys(known) if key in (dotted, dotted.partition(".")[2])]
    if not meant and "." in key:
        meant = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return " or ".join(f"{dotted}={'VALUE' if value is None else value}" for dotted in meant) or None
