"""The result of a memory plan: bytes held, bytes of an iteration, and whether they fit a GPU; see `tsd.memory.plan`."""

from dataclasses import dataclass

GIB = 2**30
GPU_GIB = (24, 80)
"""The sizes of GPU memory, in GiB, for which a plan gives its verdict."""

RESERVE = int(1.5 * GIB)
"""Bytes that stand for what is not counted: kernels' workspaces, the CUDA context, fragmentation."""


@dataclass(frozen=True)
class Iteration:
    """One iteration's activations and gradients, in bytes beyond weights and optimiser state.

    Attributes:
        batch: samples per process and micro-batch.
        checkpointing: whether activations are dropped and computed again.
        encoder_graph, student_graph, decoder_graph: bytes that the VAE's encoder, the denoiser's step, and decoder and
            pixel loss keep for the backward pass, measured before it.
        teacher: peak of a guided forward pass of the teacher on ẑ_t and z_t (4B), without a graph; the critic's (2B)
            is smaller.
        student_turn, critic_turn: peak of live bytes in either turn, gradients included.
    """

    batch: int
    checkpointing: bool
    encoder_graph: int
    student_graph: int
    decoder_graph: int
    teacher: int
    student_turn: int
    critic_turn: int

    @property
    def peak(self) -> int:
        return max(self.student_turn, self.critic_turn)


@dataclass(frozen=True)
class MemoryPlan:
    """The numbers of one process; see `to_text`.

    Attributes:
        model: the folder or hub id that was given.
        base_dtype: precision of the frozen weights.
        optimizer: `adamw` or `adamw8bit`.
        processes: how many processes share the work.
        parameters: parameter counts of denoiser, VAE and adapters, by name.
        fixed: bytes held for the whole run, by name: base weights, adapters, optimiser state, EMA.
        iterations: one for each batch size and checkpointing.
        notes: remarks on what the numbers leave out.
    """

    model: str
    base_dtype: str
    optimizer: str
    processes: int
    parameters: dict[str, int]
    fixed: dict[str, int]
    iterations: tuple[Iteration, ...]
    notes: tuple[str, ...]

    def total(self, iteration: Iteration, *, sharded: bool = False) -> int:
        """Bytes of one process at the iteration's worst moment, `RESERVE` included.

        Args:
            sharded: whether FSDP shards weights, adapters and optimiser state. The block that is being computed is
                gathered completely, which is not counted.
        """
        fixed = sum(self.fixed.values())
        return (-(-fixed // self.processes) if sharded else fixed) + iteration.peak + RESERVE

    def fits(self, iteration: Iteration, gpu_gib: int, *, sharded: bool = False) -> bool:
        """Whether the iteration's worst moment fits into a GPU with `gpu_gib` GiB."""
        return self.total(iteration, sharded=sharded) <= gpu_gib * GIB

    @property
    def checkpoint_bytes(self) -> int:
        """About the bytes of a checkpoint: adapters, optimiser state and averages, not the frozen base."""
        return sum(size for name, size in self.fixed.items() if not name.startswith(("denoiser,", "VAE,")))

    def verdict(self, batch: int, checkpointing: bool) -> str:
        """One of the planned iterations in a few words: `batch 8, …: 3.20 GiB, fits GPUs of 24 GiB and 80 GiB`."""
        found = next(it for it in self.iterations if (it.batch, it.checkpointing) == (batch, checkpointing))
        fitting = [f"{gpu} GiB" for gpu in GPU_GIB if self.fits(found, gpu)]
        how = "with" if checkpointing else "without"
        return (
            f"batch {batch}, {how} gradient checkpointing: {gib(self.total(found))}, "
            f"fits {'GPUs of ' + ' and '.join(fitting) if fitting else f'no GPU of {max(GPU_GIB)} GiB'}"
        )

    def to_text(self) -> str:
        """Two tables and the verdicts, as `tsd train --dry-run` prints them."""
        lines = [f"Memory plan for {self.model}, {self.processes} process{'es' if self.processes > 1 else ''}", ""]
        lines += [f"  {name:<38}{count:>16,} parameters" for name, count in self.parameters.items()]
        lines += ["", "Held all the time (each process; FSDP divides it by the processes)"]
        lines += [f"  {name:<38}{gib(size):>10}" for name, size in self.fixed.items()]
        lines += [f"  {'together':<38}{gib(sum(self.fixed.values())):>10}", ""]
        gpus = [f"{gpu} GiB" for gpu in GPU_GIB]
        sharding = (False, True) if self.processes > 1 else (False,)
        names = ["batch", "checkpt.", "encoder", "student", "decoder", "teacher", "student's", "critic's"]
        names += [name for shard in sharding for name in ("FSDP total" if shard else "total", *gpus)]
        rows = [names]
        for it in self.iterations:
            parts = (it.encoder_graph, it.student_graph, it.decoder_graph, it.teacher, it.student_turn, it.critic_turn)
            row = [str(it.batch), "yes" if it.checkpointing else "no", *(gib(size) for size in parts)]
            for shard in sharding:
                row.append(gib(self.total(it, sharded=shard)))
                row += ["fits" if self.fits(it, gpu, sharded=shard) else "no" for gpu in GPU_GIB]
            rows.append(row)
        lines.append("An iteration: graphs of encoder, denoiser and decoder; the teacher's pass; the turns' peaks")
        widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(names))]
        lines += ["".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines += ["", *(f"Note: {note}" for note in self.notes)]
        return "\n".join(lines)


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
