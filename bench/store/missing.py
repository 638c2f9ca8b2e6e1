"""What is not on this machine: each absent file, where it goes and how to get it; and other obstacles."""

from collections.abc import Iterable
from dataclasses import dataclass

from tsd.files import human_size


@dataclass(frozen=True)
class Missing:
    """One absent file or folder.

    Attributes:
        name: file or folder name ("alexnet-owt-7be5be79.pth").
        where: where it goes, written with the variable that moves it ("$TORCH_HOME/hub/checkpoints/…").
        source: where it comes from: a URL, "hf:<repository>/<file>" or a description of a manual download.
        size_bytes: size of the download where it is known.
        licence: licence of the file where it is known.
        needed_by: what cannot run without it ("LPIPS").
        fetch: argument of `bench fetch` that gets it; None when it has to be fetched by hand.
    """

    name: str
    where: str
    source: str
    size_bytes: int | None
    licence: str | None
    needed_by: str
    fetch: str | None = None

    def line(self) -> str:
        """One line for a footnote: the file, where it goes, how to get it."""
        facts = [fact for fact in (human_size(self.size_bytes), self.licence) if fact]
        about = f" ({', '.join(facts)})" if facts else ""
        how = f"`bench fetch {self.fetch}`, or by hand from {self.source}" if self.fetch else f"from {self.source}"
        return f"{self.needed_by} needs {self.name}{about} at {self.where}: {how}"


@dataclass(frozen=True)
class Obstacle:
    """What keeps a method from running here, other than a file: a GPU, a tool, an image of another size.

    Attributes:
        needed_by: what cannot run ("SinSR").
        reason: what is in the way, and what to do about it, in words that follow "SinSR ".
    """

    needed_by: str
    reason: str

    def line(self) -> str:
        """One line for a footnote."""
        return f"{self.needed_by} {self.reason}"


def describe(missing: "Iterable[Missing | Obstacle]") -> str:
    """Describes every missing file on its own line, in the given order, without duplicates."""
    return "\n".join(dict.fromkeys(item.line() for item in missing))


def brief(missing: "Iterable[Missing | Obstacle]") -> list[str]:
    """Describes what is missing in short lines for a terminal. All files of one `bench fetch` share a line.

    The place and licence of each file are in `Missing.line`, which `bench list METHOD` prints.
    """
    groups: dict[tuple[str, str | None], list[str]] = {}
    for item in missing:
        if isinstance(item, Obstacle) or item.fetch is None:
            groups.setdefault((item.line(), None), [])
            continue
        size = human_size(item.size_bytes)
        names = groups.setdefault((item.needed_by, item.fetch), [])
        names.append(f"{item.name} ({size})" if size else item.name)
    return [
        line if fetch is None else f"{line} needs {', '.join(dict.fromkeys(names))}: `bench fetch {fetch}`"
        for (line, fetch), names in groups.items()
    ]
