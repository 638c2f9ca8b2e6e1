"""Before a shared run begins, its processes agree on what is missing and check that they have the same images."""

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


def merge_missing(choice: Choice, rank: Rank) -> Choice:
    """`choice` with everything that is missing in any process, so that all go through the same jobs."""
    missing = all_gather(rank, (choice.missing_sets, choice.missing_methods, choice.missing_metrics))
    sets, methods, metrics = zip(*missing, strict=True)
    return replace(choice, missing_sets=_union(sets), missing_methods=_union(methods), missing_metrics=_union(metrics))


def _union(groups: Sequence[dict[KeyT, list[ItemT]]]) -> dict[KeyT, list[ItemT]]:
    keys = dict.fromkeys(key for group in groups for key in group)
    return {key: list(dict.fromkeys(item for group in groups for item in group.get(key, ()))) for key in keys}


def check_same_images(testsets: list["TestSet"], rank: Rank) -> None:
    """Checks that every process has the same images, since each takes its share of them by position.

    Raises:
        UserError: a test set differs; the message names it.
    """
    hashes = all_gather(rank, [_images_sha256(testset) for testset in testsets])
    for number, testset in enumerate(testsets):
        for index, found in enumerate(hashes):
            if found[number] != hashes[0][number]:
                raise UserError(f"the images of {testset.name} are not the same in process {index} as in process 0")


def _images_sha256(testset: "TestSet") -> str:
    return sha256_json([[image.name, image.lr_sha256, image.hr_sha256] for image in testset.images])
