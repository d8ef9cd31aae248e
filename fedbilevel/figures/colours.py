"""One colour and one dash for each algorithm, by its name: the same in every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Dash = str | tuple[float, tuple[float, ...]]

# Okabe and Ito's colours that hold on white (without the yellow): they differ also to eyes that see few colours.
_BLUE, _VERMILION, _GREEN, _PURPLE, _BLACK, _ORANGE, _SKY = COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"),
)
_SOLID, _DASHED, _DOTTED, _DASHDOT, _LONG, _TWODOT = DASHES = (
    "solid",
    (0.0, (5.0, 2.0)),
    (0.0, (1.6, 1.4)),
    (0.0, (6.0, 1.8, 1.4, 1.8)),
    (0.0, (10.0, 2.2)),
    (0.0, (6.0, 1.6, 1.4, 1.6, 1.4, 1.6)),
)


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    colour: str
    dash: Dash


# No two are alike, and those that are often compared differ in their colours.
KNOWN: dict[str, Style] = {
    "aggitd": Style(_BLUE, _SOLID),
    "fednest": Style(_VERMILION, _DASHED),
    "fednest-sgd": Style(_VERMILION, _DOTTED),
    "lfednest": Style(_ORANGE, _DASHDOT),
    "lfednest-svrg": Style(_ORANGE, _DOTTED),
    "fedmbo": Style(_VERMILION, _LONG),
    "memfbo": Style(_GREEN, _SOLID),
    "f2sa": Style(_PURPLE, _DASHED),
    "bome": Style(_PURPLE, _DASHDOT),
    "fedavg-alternating": Style(_BLACK, _DOTTED),
    "joint": Style(_SKY, _DASHDOT),
    "simfbo": Style(_SKY, _DASHED),
    "shrofbo": Style(_SKY, _LONG),
    "fedbio": Style(_GREEN, _DASHDOT),
    "fedbioacc": Style(_GREEN, _LONG),
    "br-fedbi": Style(_BLACK, _DASHED),
    "fedgda": Style(_BLUE, _DOTTED),
    "fedgda-gt": Style(_BLUE, _LONG),
    "fednest-minimax": Style(_VERMILION, _DASHDOT),
    "fed-extragradient": Style(_GREEN, _DOTTED),
    "fed-optimistic": Style(_PURPLE, _DOTTED),
    "oadagrad": Style(_ORANGE, _DASHED),
    "maml": Style(_BLUE, _DASHED),
    "fomaml": Style(_SKY, _SOLID),
    "reptile": Style(_ORANGE, _SOLID),
    "imaml": Style(_VERMILION, _SOLID),
    "ibaml": Style(_PURPLE, _SOLID),
    "a-maml": Style(_GREEN, _DASHED),
    "comln": Style(_BLACK, _SOLID),
}


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label of one figure, no two alike.

    A known algorithm has its own. A label that begins with one (`aggitd (demo)`, `fednest-slow`) has its colour and
    another dash. Any other label takes the style that a digest of it picks, or the next that is free in this figure.
    Where algorithms run under conditions (`aggitd, median`), colours tell these apart and dashes the algorithms.

    >>> styles(["aggitd", "aggitd (demo)"])["aggitd (demo)"].colour == KNOWN["aggitd"].colour
    True
    """
    names = list(dict.fromkeys(labels))
    if crossed := _crossed(names):
        return crossed
    chosen = {name: KNOWN[name] for name in names if name in KNOWN}
    others = sorted((name for name in names if name not in KNOWN), key=lambda name: (family(name) is None, name))
    for name in others:
        chosen[name] = _free(name, set(chosen.values()))
    return {name: chosen[name] for name in names}


def _crossed(names: list[str]) -> dict[str, Style]:
    """The styles of algorithms under conditions; none for other labels, or for more conditions than colours."""
    parts = [name.partition(", ") for name in names]
    algorithms, conditions = (list(dict.fromkeys(part[place] for part in parts)) for place in (0, 2))
    if "" in conditions or not 1 < len(conditions) <= len(COLOURS) or len(algorithms) > len(DASHES):
        return {}
    return {
        name: Style(COLOURS[conditions.index(condition)], DASHES[algorithms.index(algorithm)])
        for name, (algorithm, _, condition) in zip(names, parts, strict=True)
    }


def family(label: str) -> str | None:
    """The known algorithm that a label begins with, if any.

    >>> family("fednest-sgd (a)"), family("lower"), family("jointly")
    ('fednest-sgd', None, None)
    """
    found = [name for name in KNOWN if label.startswith(name) and not label[len(name) :][:1].isalnum()]
    return max(found, key=len, default=None)


def _free(label: str, taken: set[Style]) -> Style:
    """The first style that is not taken, from where the label points to."""
    digest = int.from_bytes(hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=8).digest())
    known = family(label)
    colours, dashes = list(COLOURS), [*DASHES, *map(_dotted, range(3, 3 + len(taken) // len(COLOURS)))]
    if known is None:
        _turn(colours, digest % len(COLOURS))
        _turn(dashes, digest // len(COLOURS) % len(DASHES))
        ways = [Style(colour, dash) for dash in dashes for colour in colours]
    else:
        _turn(colours, colours.index(KNOWN[known].colour))
        _turn(dashes, dashes.index(KNOWN[known].dash))
        ways = [Style(colour, dash) for colour in colours for dash in dashes]
    return next(way for way in ways if way not in taken)


def _turn(ways: list[Any], first: int) -> None:
    ways[:] = ways[first:] + ways[:first]


def _dotted(dots: int) -> Dash:
    """One more dash, for figures of more lines than there are styles."""
    return (0.0, (6.0, *(1.6, 1.4) * dots, 1.6))
