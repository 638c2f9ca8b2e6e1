"""Runs training in one and in several CPU processes, for test_parallel.py: `… MODEL OUTPUT SCENARIO…`.

Every process of every scenario is forked from here, before torch has computed anything.
The results are run folders in OUTPUT, named after the scenarios.
"""

import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from tsd.config import Phase, TrainConfig
from tsd.presets import MINI
from tsd.train.settings import RunSettings
from tsd.train.student import train

CONFIG = dataclasses.replace(
    MINI,
    phases=(
        Phase(steps=2, latent_mse=1.0, gamma2=0.0, point_weights=(1.0,)),
        Phase(steps=2, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3)),
    ),
    batch_size=4,
    crop=32,
    rank=4,
    vae_rank=4,
    critic_rank=4,
    lr=1e-3,
    critic_lr=1e-3,
    critic_warmup_steps=1,
    critic_steps=2,
    critic_ema_decay=0.5,
    gain_every=1,
    warmup_steps=1,
    mixed_precision="no",
    checkpoint_every=1,
    random_bias=True,
    posterior="sample",
    t_range=(20.0, 120.0),  # half of the samples leave the trajectory before its second point, in one process or both
)
SHARED = dataclasses.replace(CONFIG, batch_size=1, gradient_accumulation=2)  # by two processes: also 4 in all
SHORT = dataclasses.replace(CONFIG, phases=CONFIG.phases[1:2], checkpoint_every=3)


def worker(
    rank: int, processes: int, port: int, kind: str, model: str, output: str, config: TrainConfig, options: dict
) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {
        "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        "zero": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    }.get(kind, {})
    kill_at = options.pop("kill_at", None)
    if rank == 1 and kill_at is not None:
        threading.Thread(target=kill_self_at, args=(Path(output) / "log.jsonl", kill_at), daemon=True).start()
    rng = np.random.default_rng(3)
    photos = [rng.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(3)]
    train(RunSettings(model=model, data=photos, output=output, tracker="none", cpu=True, **options), config)


def kill_self_at(log: Path, rows: int) -> None:
    while not log.exists() or log.read_text().count("\n") < rows:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def launch(model: str, output: Path, config: TrainConfig, processes: int, *, kind: str = "", **options) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (processes, port, kind, model, str(output), config, options)
    start_processes(worker, arguments, nprocs=processes, start_method="fork")


def main(model: str, output: Path, scenarios: list[str]) -> None:
    def one() -> None:
        launch(model, output / "one", CONFIG, 1)

    def ddp() -> None:
        launch(model, output / "ddp", SHARED, 2)

    def killed() -> None:
        try:
            launch(model, output / "killed", SHARED, 2, kill_at=3)
        except (ProcessExitedException, ProcessRaisedException) as error:
            print("killed:", error.exit_code if isinstance(error, ProcessExitedException) else "the other first")
        launch(model, output / "killed", SHARED, 2, resume=True)

    def fsdp() -> None:  # resumed by one process without FSDP, with checkpointing on and off
        recomputing = dataclasses.replace(SHARED, gradient_checkpointing=True)
        launch(model, output / "fsdp", recomputing, 2, kind="fsdp")
        launch(model, output / "fsdp-then-one", SHARED, 2, kind="fsdp", stop_after=3)
        launch(model, output / "fsdp-then-one", CONFIG, 1, resume=True)

    def one_then_fsdp() -> None:
        launch(model, output / "one-then-fsdp", CONFIG, 1, stop_after=3)
        launch(model, output / "one-then-fsdp", SHARED, 2, kind="fsdp", resume=True)

    def zero() -> None:
        launch(model, output / "zero", SHARED, 2, kind="zero")
        launch(model, output / "zero-then-one", SHARED, 2, kind="zero", stop_after=3)
        launch(model, output / "zero-then-one", CONFIG, 1, resume=True)
        launch(model, output / "one-then-zero", CONFIG, 1, stop_after=3)
        launch(model, output / "one-then-zero", SHARED, 2, kind="zero", resume=True)

    def sharded() -> None:
        launch(model, output / "one", SHORT, 1)
        split = dataclasses.replace(SHORT, batch_size=1, gradient_accumulation=2)
        launch(model, output / "sharded", split, 2, kind="fsdp")

    known = {"zero": zero, "one": one, "ddp": ddp, "killed": killed, "fsdp": fsdp, "one-then-fsdp": one_then_fsdp}
    known["sharded"] = sharded
    for scenario in scenarios:
        began = time.monotonic()
        known[scenario]()
        print(scenario, f"{time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
