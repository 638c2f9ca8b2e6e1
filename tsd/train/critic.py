"""The critic's part of a step: its updates on the student's latents, its average, and the watch on its gain."""

from torch import Tensor

from tsd.algorithm.turns import Batch, critic_turn
from tsd.config import TrainConfig
from tsd.model.backbone import Backbone
from tsd.model.lora import adapter_parameters
from tsd.train.checkpoint import TrainState
from tsd.train.ema import update_critic_ema
from tsd.train.gain import GainWatch
from tsd.train.optim import backward, check_divergence, update
from tsd.train.run import Run


class CriticTraining:
    """Trains the critic of a run, step by step.

    Args:
        state: holds the critic's adapter, its optimiser and schedule, and its average if there is one.
    """

    def __init__(self, run: Run, backbone: Backbone, config: TrainConfig, state: TrainState) -> None:
        self.run, self.backbone, self.config, self.state = run, backbone, config, state
        self.optimizer = state.stateful["critic_optimizer"].optimizer
        self.parameters = list(adapter_parameters(backbone.denoiser, "critic").values())
        self._watch = GainWatch()
        self._overflows = 0

    def step(self, latents: list[tuple[Tensor, Batch]]) -> dict[str, float]:
        """Updates the critic `critic_steps` times, in its warm-up once; returns the numbers of the first update.

        Args:
            latents: ẑ of each micro-batch, detached, and the micro-batch.

        Raises:
            DivergenceError: see `tsd.train.optim.check_divergence`.
        """
        step, warms_up = self.state.step, self.config.warms_up(self.state.step)
        logs = self._update(latents, 0, measure_gain=step % self.config.gain_every == 0)
        for number in range(1, 1 if warms_up else self.config.critic_steps):
            self._update(latents, number, measure_gain=False)
        self.state.stateful["critic_schedule"].step()
        if "critic_gain" in logs and not warms_up:  # before that there is no VSD that it could spoil
            warning = self._watch.warning(step + 1, logs["critic_gain"])
            if warning is not None:
                self.run.print_on_main(warning)
        return logs

    def _update(self, latents: list[tuple[Tensor, Batch]], number: int, *, measure_gain: bool) -> dict[str, float]:
        run, config, state = self.run, self.config, self.state
        micro_logs = []
        for z_hat, batch in latents:
            with run.accelerator.autocast():
                turn = critic_turn(
                    self.backbone, z_hat, batch.indices, config, batch.prompt, update=number, measure_gain=measure_gain
                )
            backward(run.accelerator, self.optimizer, turn.loss)
            micro_logs.append(turn.logs)
        logs = run.mean(micro_logs)
        updated = update(run.accelerator, self.optimizer, self.parameters, config.max_grad_norm)
        self._overflows = self._overflows + 1 if "overflow" in updated else 0
        logs |= {f"critic_{name}": value for name, value in updated.items()}
        check_divergence(logs, self._overflows, config, state.step, run.last_good(), run.accelerator)
        update_critic_ema(state, 0.0 if config.warms_up(state.step) else config.critic_ema_decay)
        return logs
