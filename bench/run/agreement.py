"""The processes of a shared run agree before they begin: on what is missing, and on the test sets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from bench.provenance import sha256_json
from bench.ranks import Rank, all_gather
from bench.run.plan import Choice
from tsd.errors import UserError

if TYPE_CHECKING:
    from bench.testsets.manifest import TestSet

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


def agreed(choice: Choice, rank: Rank) -> Choice:
    """`choice` with everything that is missing for any process: all of them have to walk through the same jobs."""
    missing = all_gather(rank, (choice.missing_sets, choice.missing_methods, choice.missing_metrics))
    sets, methods, metrics = zip(*missing, strict=True)
    return replace(
        choice, missing_sets=_united(sets), missing_methods=_united(methods), missing_metrics=_united(metrics)
    )


def _united(groups: Sequence[dict[KeyT, list[ItemT]]]) -> dict[KeyT, list[ItemT]]:
    keys = dict.fromkeys(key for group in groups for key in group)
    return {key: list(dict.fromkeys(item for group in groups for item in group.get(key, ()))) for key in keys}


def same_everywhere(testsets: list["TestSet"], rank: Rank) -> None:
    """The processes divide the images among them by number, so their test sets must be one.

    Raises:
        UserError: names the test set that differs.
    """
    hashes = all_gather(rank, [_images_sha256(testset) for testset in testsets])
    for number, testset in enumerate(testsets):
        for index, found in enumerate(hashes):
            if found[number] != hashes[0][number]:
                raise UserError(f"the images of {testset.name} are not the same in process {index} as in process 0")


def _images_sha256(testset: "TestSet") -> str:
    return sha256_json([[image.name, image.lr_sha256, image.hr_sha256] for image in testset.images])
