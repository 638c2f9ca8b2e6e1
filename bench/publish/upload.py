"""Sends the records of a run to a data set on the hub, and its images only if asked to and allowed to.

The data set becomes what the run is: what an earlier run of it left there is deleted in the same commit, which the hub
keeps. What was sent is noted in the records, there and here.
"""

import datetime
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bench
from bench.methods import METHODS
from bench.provenance import machine_name
from bench.publish.places import check_repo_id
from bench.records.records import Records
from bench.records.schema import Plan, Publication
from bench.report.render import ENDINGS
from bench.store.download import HUB, mirrored
from bench.store.hub import check_online
from bench.testsets.manifest import is_shipped, read_manifest
from tsd.errors import UserError, some
from tsd.files import human_size

OURS = ("records/*", "images/*", *(f"*.{ending}" for ending in (*ENDINGS, "png")))
"""What of an earlier run is deleted where the new one does not have it."""
SENT = ("*.json", "*.jsonl")


@dataclass(frozen=True)
class PublishRequest:
    """What is sent, and where to.

    Attributes:
        run: the --out folder of a `bench run`.
        to: the data set, OWNER/NAME.
        by: who measured, as the data set and the pages made of it state it.
        images: whether the restored images go too.
        licence: of the records, as the hub names it ("cc-by-4.0"); empty for none stated.
        private: whether a data set that is made is private.
        dry_run: nothing is sent.
    """

    run: Path
    to: str
    by: str
    images: bool = False
    licence: str = ""
    private: bool = False
    dry_run: bool = False


def publish(request: PublishRequest) -> str:
    """Sends the run, and returns the address of the data set; of a dry run the address that it would have.

    Raises:
        UserError: no records, no name, images that may not be sent or are not the recorded ones, no network, no token,
            a data set of something else, or the hub refuses. The run stays as it is.
    """
    check_repo_id(request.to, "--to")
    by = " ".join(request.by.split())
    if not by or not by.isprintable():
        raise UserError("--by says who measured: a name of printable characters, as the data set will state it")
    records = Records(request.run)
    plans = records.plans()
    if not plans:
        raise UserError(f"no records in {request.run}; expected the --out folder of a `bench run`")
    pictures = _pictures(records) if request.images else []
    if not request.dry_run:
        _check_hub()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    note = Publication(today, by, request.to, bench.__version__, request.images)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        _stage(records, plans, pictures, staged, note, request.licence)
        files = [path for path in staged.rglob("*") if path.is_file()]
        size = human_size(sum(path.stat().st_size for path in files))
        _log(f"{len(files)} files, {size}, {len(pictures)} of them restored images, as measured by {by}")
        for path in _with_home(files):
            _log(f"mind: {path.relative_to(staged)} names your home folder, {Path.home()}")
        if request.dry_run:
            for path in sorted(files):
                _log(f"  {path.relative_to(staged)}")
            _log("nothing was sent")
            return f"{HUB}/datasets/{request.to}"
        address = _upload(request, staged, by)
    records.add_publication(note)
    return address


def _pictures(records: Records) -> list[Path]:
    """The images of all methods on test sets that may be handed on.

    Raises:
        UserError: there are none, or some are not the recorded ones.
    """
    found: list[Path] = []
    kept: dict[str, str] = {}
    wrong: list[Path] = []
    for testset, method in records.measured():
        if testset not in kept:
            kept[testset] = _reason_kept(testset)
        if kept[testset]:
            continue
        handle = records.of(testset, method)
        rows = [row for row in handle.images().values() if row.error is None]
        wrong += [handle.image_path(row.name) for row in rows if not handle.has(row)]
        found += [handle.image_path(row.name) for row in rows]
    for testset, reason in kept.items():
        if reason:
            _log(f"images of {testset} are not sent: {reason}")
    if wrong:
        raise UserError(
            f"--images: {len(wrong)} images are absent or not the recorded ones ({some(wrong)}); `bench run` makes "
            "them again, or leave out --images"
        )
    if not found:
        raise UserError("--images: none of these images may be sent on; without --images the records alone go")
    return found


def _reason_kept(testset: str) -> str:
    """Why the images of a test set may not be sent on; empty if they may."""
    try:
        return "" if is_shipped(testset) else f"licence: {read_manifest(testset)[0]['licence']}"
    except UserError:
        return "nobody stated a licence of this test set"


def _check_hub() -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("nothing was sent, since HF_HUB_OFFLINE is set")
    if get_token() is None:
        raise UserError("nothing was sent: no hub token on this machine, run `hf auth login` first")
    check_online()


def _stage(
    records: Records, plans: list[Plan], pictures: list[Path], staged: Path, note: Publication, licence: str
) -> None:
    """Puts together the files of the data set, in the layout of a run."""
    for pattern in SENT:
        for path in records.root.rglob(pattern):
            _copy(path, staged / path.relative_to(records.out))
    for plan in plans:
        for name in (*(f"{plan.table}.{ending}" for ending in ENDINGS), f"{plan.table}.png"):
            if (records.out / name).is_file():
                _copy(records.out / name, staged / name)
    for path in pictures:
        _copy(path, staged / path.relative_to(records.out))
    Records(staged).add_publication(note)
    (staged / "README.md").write_text(_card(records, plans, note, licence), encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _card(records: Records, plans: list[Plan], note: Publication, licence: str) -> str:
    """The data set's card: who measured what, on what, and under which licences."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(license=licence or None, tags=["super-resolution", "tsd-sr-bench"], pretty_name=note.to)
    restorations = [run for pair in records.measured() if (run := records.of(*pair).run()) is not None]
    contents = [content for run in restorations for content in run.environments.values()]
    machines = dict.fromkeys(str(machine_name(content)) for content in contents)
    names = dict.fromkeys(run.testset for run in restorations)
    methods = {method.name: method.display for plan in plans for method in plan.methods}
    licences = [f"- Test set {name}: {_licence_of(name)}" for name in names]
    licences += [
        f"- {display}: {METHODS[name].licence}"
        + (f"; it forbids: {METHODS[name].restriction}" if METHODS[name].restriction else "")
        for name, display in methods.items()
        if name in METHODS and any(run.method == name for run in restorations)
    ]
    shown = [f"- {plan.title} ({plan.table}), profile {plan.profile}" for plan in plans]
    lines = [
        "---", data.to_yaml(), "---", "",
        f"# Super-resolution measured by {note.by}",
        "",
        f"Per-image records of [tsd-sr-bench](https://arxiv.org/abs/2411.18263) {note.bench}, sent on {note.date}.",
        f"Measured on {'; '.join(machines) or 'machines that are not recorded'}.",
        "",
        *shown,
        "",
        f"`bench site hub:{note.to} --out site` makes a page of it, beside other runs if they are named too.",
        "",
        "## Licences",
        "",
        *licences,
        "",
        "Restored images are included." if note.images else "No images are included.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _licence_of(testset: str) -> str:
    try:
        return read_manifest(testset)[0]["licence"]
    except UserError:
        return "not stated"


def _with_home(files: list[Path]) -> list[Path]:
    """The files of records that hold the path of the user's home folder."""
    home = str(Path.home()).encode()
    return [
        path for path in files if path.suffix in (".json", ".jsonl") and len(home) > 1 and home in path.read_bytes()
    ]


def _upload(request: PublishRequest, staged: Path, by: str) -> str:
    """Makes the data set where there is none, and uploads in one commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi(endpoint=mirrored(HUB))
    try:
        there = {file for file in api.list_repo_files(request.to, repo_type="dataset") if file != ".gitattributes"}
    except RepositoryNotFoundError:
        there = set()
    except Exception as error:
        raise UserError(f"nothing was sent: {error}") from error
    if there - {"README.md"} and not any(file.startswith("records/") for file in there):
        raise UserError(f"--to {request.to} holds something else ({some(sorted(there))}); nothing was sent")
    try:
        url = api.create_repo(request.to, repo_type="dataset", private=request.private or None, exist_ok=True)
        api.upload_folder(
            repo_id=request.to,
            repo_type="dataset",
            folder_path=staged,
            delete_patterns=list(OURS),
            commit_message=f"Records of a run, measured by {by}",
        )
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused: {error}; the run is as it was") from error
    except Exception as error:  # the client's own network errors differ from version to version
        raise UserError(f"sending to {mirrored(HUB)} failed ({error!r}); the same command tries again") from error
    return str(url)


def _log(line: str) -> None:
    print(line, file=sys.stderr)
