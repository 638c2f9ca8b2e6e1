"""Every command of this project: `nox -l` lists them, `nox -s NAME` runs one in an environment of its own.

`uv` builds the environments (a second one is hard-linked, so torch is stored once); without it virtualenv serves.
"""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]

# The repository's root holds a folder `datasets`, the name of a library: keep the root off sys.path.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
EXPERIMENTS = Path("bench/ablation/experiments")
SHORT_SWEEPS = ["mixture-table4", "mixture-table4-epsilon", "mixture-table6", "text-short"]
"""Within 15 minutes on two cores together."""

# glibc gives every freed large tensor back to the system and asks for it again; kept, training is three times as fast.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def install(session: nox.Session, extra: str) -> None:
    """This package with one extra, at the locked versions."""
    session.install("-c", "constraints.txt", "-e", f".[{extra}]")


def locked_without(session: nox.Session, *free: str) -> str:
    """A file of the locked versions without the lines that begin so."""
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if not line.startswith(free)), encoding="utf-8")
    return str(constraints)


def reproduce(session: nox.Session, table: str, extra: str = "bench") -> None:
    """Measures a table of the paper, at mini scale unless the arguments say otherwise."""
    install(session, extra)
    arguments = session.posargs if "--profile" in session.posargs else ["--profile", "mini", *session.posargs]
    session.run("bench", "run", "--table", table, *arguments, env=ENVIRONMENT)


@nox.session
def reproduce_table1(session: nox.Session) -> None:
    """Table 1. Default: mini scale, offline, CPU. `-- --profile paper` for the real test sets and models."""
    reproduce(session, "table1")


@nox.session
def reproduce_table2(session: nox.Session) -> None:
    """Table 2, multi-step methods: as reproduce_table1, with the mini teacher in 20, 5 and 1 steps."""
    reproduce(session, "table2")


@nox.session
def reproduce_table3(session: nox.Session) -> None:
    """Table 3, seconds by stage: the mini models here, or `-- --profile paper --random-weights` on a GPU."""
    install(session, "bench")
    session.run("bench", "latency", *session.posargs, env=ENVIRONMENT)


@nox.session
def reproduce_table5(session: nox.Session) -> None:
    """Table 5, the same base model: as reproduce_table1, with two recipes on each of the two mini bases."""
    reproduce(session, "table5")


@nox.session
def reproduce_table7(session: nox.Session) -> None:
    """Table 7, GAN-based methods: as reproduce_table1; a network whose weights are not here is a dash."""
    paper = "paper" in session.posargs  # FeMaSR's architecture, whose licence is noncommercial
    reproduce(session, "table7", "bench,noncommercial" if paper else "bench")


def figure(session: nox.Session, number: int) -> None:
    """Measures and draws a figure of the paper, of the domain `mixture` unless the arguments say otherwise."""
    install(session, "bench")
    session.run("bench", "figure", str(number), *session.posargs, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"})


@nox.session
def reproduce_figure1(session: nox.Session) -> None:
    """Figure 1, quality against seconds: of the mini tables, or `-- --quality DIR --latency DIR` of your records."""
    install(session, "bench")
    if not session.posargs:
        session.run("bench", "run", "--table", "table1", "--profile", "mini", env=ENVIRONMENT)
        session.run("bench", "latency", env=ENVIRONMENT)
    session.run("bench", "figure", "1", *session.posargs, env=ENVIRONMENT)


@nox.session
def reproduce_figure3(session: nox.Session) -> None:
    """Figure 3: does the teacher point to the data? Default: the mixture. `-- --domain text`, `-- --seeds 0-7`."""
    figure(session, 3)


@nox.session
def reproduce_figure4(session: nox.Session) -> None:
    """Figure 4: outputs of VSD alone, MSE alone and ours. Arguments as of reproduce_figure3."""
    figure(session, 4)


@nox.session
def reproduce_figure5(session: nox.Session) -> None:
    """Figure 5: errors of VSD over t and training, and their places. Arguments as of reproduce_figure3."""
    figure(session, 5)


@nox.session
def reproduce_figure6(session: nox.Session) -> None:
    """Figure 6: points, fields and the path of a trajectory, in the plane."""
    figure(session, 6)


@nox.session
def reproduce_figure8(session: nox.Session) -> None:
    """Figure 8's pipeline on SIMULATED raters of known preference, which it must recover; into runs/figure8."""
    install(session, "bench")
    methods = ["bicubic", "lanczos", "osediff-mini", "tsd-sr-mini"]
    run, study, votes, out = (f"runs/figure8/{name}" for name in ("run", "study", "votes", "result"))
    for folder in (study, votes):
        shutil.rmtree(folder, ignore_errors=True)
    options = ["--table", "table1", "--profile", "mini", "--metrics", "psnr", "ssim", "--no-figure"]
    session.run("bench", "run", *options, "--methods", *methods, "--out", run, env=ENVIRONMENT)
    categories = ["--categories", "datasets/mini/categories.csv"]
    session.run("bench", "study", "make", run, "--methods", *methods, *categories, "--out", study, env=ENVIRONMENT)
    preference = ["--preference", "4", "3", "2", "1", "--careless", "3"]
    session.run("bench", "study", "simulate", study, *preference, "--out", votes, env=ENVIRONMENT)
    session.run("bench", "study", "score", votes, "--study", study, "--out", out, env=ENVIRONMENT)


def sweep(session: nox.Session, names: list[str], others: list[str]) -> None:
    """Trains the arms of experiments and reports on them, into sweeps/NAME; further arguments go to `bench sweep`."""
    install(session, "bench")
    for name in names:
        session.run("bench", "sweep", name, *others, env=ENVIRONMENT)


@nox.session
def ablations(session: nox.Session) -> None:
    """Tables 4 and 6 of the mixture and a short text sweep, or `-- NAME`; `-- --seeds 0-19` and others pass on."""
    known = [path.stem for path in EXPERIMENTS.glob("*.toml")]
    named = [argument for argument in session.posargs if argument in known]
    sweep(session, named or SHORT_SWEEPS, [argument for argument in session.posargs if argument not in known])


def reproduce_sweep(session: nox.Session, table: str) -> None:
    """A table of the ablations on the mixture and on lettering, where one seed is what fits into minutes."""
    if "--profile" in session.posargs:
        sweep(session, [table], session.posargs)
        return
    sweep(session, [f"mixture-{table}"], session.posargs)
    if (EXPERIMENTS / f"text-{table}.toml").exists():
        seeds = [] if "--seeds" in session.posargs else ["--seeds", "0"]
        sweep(session, [f"text-{table}"], [*seeds, *session.posargs])


@nox.session
def reproduce_table4(session: nox.Session) -> None:
    """Table 4, w/o TSM and w/o DASM. `-- --seeds 0-7` for more lettering than one seed, `-- --profile paper …`."""
    reproduce_sweep(session, "table4")


@nox.session
def reproduce_table6(session: nox.Session) -> None:
    """Table 6, N and s of the trajectory: as reproduce_table4."""
    reproduce_sweep(session, "table6")


@nox.session
def train_text(session: nox.Session) -> None:
    """The models of the text domain again from nothing, into runs/text (hours on two cores)."""
    install(session, "bench,train")
    output = [] if "--output" in session.posargs else ["--output", "runs/text"]
    session.run("python", "-m", "bench.ablation.text.recipe", *output, *session.posargs, env=ENVIRONMENT)


@nox.session
def site(session: nox.Session) -> None:
    """The committed mini runs as a page in runs/site, with images where reproduce_table1 made them. `-- RUN …`"""
    install(session, "bench")
    session.run("bench", "site", *(session.posargs or ["reports/mini", "--out", "runs/site"]), env=ENVIRONMENT)


@nox.session
def site_picture(session: nox.Session) -> None:
    """docs/site.webp again: the comparison on the page of reports/mini, whose images reproduce_table1 makes."""
    install(session, "dev")
    session.run("bench", "site", "reports/mini", "--out", "runs/site", env=ENVIRONMENT)
    session.run("python", "tests/bench/site/picture.py", "runs/site", "docs/site.webp", env=ENVIRONMENT)


# Two processes share the machine: more threads each would fight for it.
ONE_THREAD = {"OMP_NUM_THREADS": "1"} | ALLOCATOR
TWO_PROCESSES = ["-n", "2", "--dist", "worksteal"]
APP_TESTS = ["pytest", "playwright", "axe-playwright-python"]


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite with coverage. Arguments choose tests, without it: `-- -k wavelet`. Always two processes."""
    install(session, "dev")
    coverage = ["--cov", "--cov-report=term:skip-covered", "--cov-fail-under=90"]
    session.run("pytest", *TWO_PROCESSES, *(session.posargs or coverage), env=ENVIRONMENT | ONE_THREAD)


@nox.session
def tests_fast(session: nox.Session) -> None:
    """The tests that take less than five seconds each, without coverage; arguments go to pytest."""
    install(session, "dev")
    session.run("pytest", *TWO_PROCESSES, "-m", "not slow", *session.posargs, env=ENVIRONMENT | ONE_THREAD)


@nox.session
def tests_app(session: nox.Session) -> None:
    """The tests of `tsd app`, in an environment of its own: Gradio asks for an older Pillow than the locked one."""
    session.install("-c", locked_without(session, "pillow=="), "-e", ".[app]", *APP_TESTS)
    session.run("pytest", "tests/tsd/app", *session.posargs, env=ENVIRONMENT | ONE_THREAD)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, full disks and broken inputs, 100 of each; writes reports/faults.md. `-- --instants 20 --seed 1`."""
    install(session, "dev")
    report = [] if "--report" in session.posargs else ["--report", "reports/faults.md"]
    session.run("python", "tests/faults/main.py", *report, *session.posargs, env=ENVIRONMENT | ONE_THREAD)


@nox.session
def mutants(session: nox.Session) -> None:
    """100 small changes to the modules that make numbers: 90 % must fail a test. `-- --mutants 20 --seed 1`."""
    install(session, "dev")
    session.install("-c", "constraints.txt", "cosmic-ray==8.7.0")
    report = [] if "--report" in session.posargs else ["--report", "reports/mutants.md"]
    session.run("python", "tests/mutants.py", *report, *session.posargs, env=ENVIRONMENT | ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and formatting."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """pyright over both packages."""
    install(session, "dev")
    session.run("pyright", env=ENVIRONMENT)


@nox.session
def ci_regression(session: nox.Session) -> None:
    """Measures part of the mini tables and a small sweep anew, and fails where a number moved from the records."""
    install(session, "bench")
    out = str(Path(session.create_tmp()) / "run")
    shutil.rmtree(out, ignore_errors=True)  # what is recorded is not measured again
    options = ["--profile", "mini", "--limit", "4", "--no-timing", "--no-figure", "--out", out]
    parts = {
        "table1": ["bicubic", "lanczos", "tsd-sr-mini"],
        "table2": ["teacher-5"],
        "table5": ["tsd-sr-mini-sd2"],
    }
    for table, methods in parts.items():
        session.run("bench", "run", "--table", table, *options, "--methods", *methods, env=ENVIRONMENT)
    session.run("bench", "compare", "reports/mini", out, "--subset", env=ENVIRONMENT)
    trained = str(Path(session.create_tmp()) / "sweep")
    shutil.rmtree(trained, ignore_errors=True)
    session.run("bench", "sweep", "mixture-ci", "--device", "cpu", "--out", trained, env=ENVIRONMENT)
    session.run("bench", "compare", "reports/ablations/mixture-ci", trained, env=ENVIRONMENT)


DRIFT = {"torch": ["2.14.0", "2.15.0"], "pyiqa": ["0.1.15.post2", "0.1.16"]}
"""The versions that `drift` compares: the locked ones and those before them."""


@nox.session
@nox.parametrize("pyiqa", DRIFT["pyiqa"])
@nox.parametrize("torch", DRIFT["torch"])
def drift(session: nox.Session, torch: str, pyiqa: str) -> None:
    """Scores the mini set with two versions of torch and of pyiqa each; reports/drift/drift.md says what moved."""
    free = ("torch==", "torchvision==", "triton==", "pyiqa==", "nvidia-", "cuda-")
    session.install("-c", locked_without(session, *free), "-e", ".[bench]", f"torch=={torch}", f"pyiqa=={pyiqa}")
    session.run("bench", "verify", "--drift", "--device", "cpu", *session.posargs, env=ENVIRONMENT)


@nox.session
def bench_data(session: nox.Session) -> None:
    """Images per second per core: degradation on the fly beside the sequential reference order, prepared data."""
    install(session, "dev")
    threads = {"OMP_NUM_THREADS": "1"}
    session.run("pytest", "tests/benchmarks/bench_degrade.py", "-s", *session.posargs, env=ENVIRONMENT | threads)


@nox.session
def train_mini(session: nox.Session) -> None:
    """The mini model again from nothing (about two hours on two cores). `-- --data-root DIR`, which holds kodak/."""
    install(session, "train")
    output = [] if "--output" in session.posargs else ["--output", "runs/mini"]
    session.run("python", "-m", "tsd.mini.recipe", *output, *session.posargs, env=ENVIRONMENT)


@nox.session
def train_mini_sd2(session: nox.Session) -> None:
    """The second mini model, of SD2's family, on the first one's VAE (about an hour). `-- --data-root DIR`."""
    install(session, "train")
    output = [] if "--output" in session.posargs else ["--output", "runs/mini-sd2"]
    session.run("python", "-m", "tsd.mini.recipe_sd2", *output, *session.posargs, env=ENVIRONMENT)


@nox.session
def bench_train(session: nox.Session) -> None:
    """Time and peak memory of a training iteration against the release's layout; CUDA where there is one."""
    install(session, "dev")
    output = ["--benchmark-json", "runs/bench_train.json", "--benchmark-columns", "median,rounds"]
    Path("runs").mkdir(exist_ok=True)
    session.run("pytest", "tests/benchmarks/bench_train.py", *output, *session.posargs, env=ENVIRONMENT)


@nox.session
def bench_restore(session: nox.Session) -> None:
    """Time of a restoration, released form and ours, each measure alone. `-- --shape sd3-medium` for the real shape."""
    install(session, "dev")
    output = ["--benchmark-json", "runs/bench_restore.json", "--benchmark-columns", "median,rounds"]
    Path("runs").mkdir(exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1"} | ALLOCATOR
    session.run("pytest", "tests/benchmarks/bench_restore.py", *output, *session.posargs, env=ENVIRONMENT | threads)


@nox.session
def mini_testset(session: nox.Session) -> None:
    """The mini test set again from the photographs shipped in scikit-image and scikit-learn; compares the bytes."""
    install(session, "dev")
    session.run("python", "-m", "bench.testsets.mini", *session.posargs, env=ENVIRONMENT)


@nox.session
def lock(session: nox.Session) -> None:
    """Writes constraints.txt anew: the newest versions the requirements allow, without index addresses.

    Gradio's bound on Pillow is left aside, so that it holds nobody else back; `tests_app` keeps to it.
    """
    session.install("uv")
    overrides = Path(session.create_tmp()) / "overrides.txt"
    overrides.write_text("pillow>=10.3\n", encoding="utf-8")
    sources = ["pyproject.toml", "--all-extras", "--universal", "--python-version", "3.11", "--upgrade"]
    sources += ["--overrides", str(overrides)]
    output = ["--no-emit-index-url", "--no-annotate", "--no-header", "--output-file", "constraints.txt"]
    session.run("uv", "pip", "compile", *sources, *output, silent=True)
