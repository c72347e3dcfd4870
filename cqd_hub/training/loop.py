"""The training loop: transformers' Trainer, fed in our order, stopped at the first bad loss."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cqd_hub.errors import RunError
from cqd_hub.training.data import Tokens, collate
from cqd_hub.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: Called with the step, the steps in all, and the mean loss since the last call.
Progress = Callable[[int, int, float], None]


class Fitted(NamedTuple):
    """How it went: (step, mean loss since the point before), about forty; and where."""

    curve: list[tuple[int, float]]
    device: str


def fit(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    recipe: TrainingRecipe,
    *,
    padding: int,
    progress: Progress | None = None,
) -> Fitted:
    """Train *model* in place, on one device, on ``steps * batch_size`` rows in order (AdamW).

    Raises:
        RunError: The loss is not finite.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    curve: list[tuple[int, float]] = []

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **options)
            if not torch.isfinite(loss):
                raise RunError(
                    f"the loss is {loss.item()} at step {self.state.global_step + 1}",
                    remedy="lower learning_rate, or raise warm_up",
                )
            return loss

    class OnOneDevice(TrainingArguments):
        @property
        def n_gpu(self) -> int:  # of several, Trainer would feed each a batch of its own
            return min(1, super().n_gpu)

    class Curve(TrainerCallback):
        def on_log(self, *arguments: Any, **options: Any) -> None:
            state, logs = arguments[1], options.get("logs") or {}
            if "loss" in logs:
                curve.append((state.global_step, round(float(logs["loss"]), 4)))
                if progress:
                    progress(state.global_step, recipe.steps, curve[-1][1])

    every = max(1, recipe.steps // 40)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            trainer = InOrder(
                model=model,
                args=OnOneDevice(
                    output_dir=scratch,
                    max_steps=recipe.steps,
                    per_device_train_batch_size=recipe.batch_size,
                    learning_rate=recipe.learning_rate,
                    lr_scheduler_type=recipe.schedule
                    if not (recipe.schedule == "constant" and recipe.warm_up)
                    else "constant_with_warmup",
                    warmup_steps=recipe.warm_up,
                    weight_decay=recipe.weight_decay,
                    seed=recipe.seed,
                    use_cpu=recipe.device == "cpu",
                    bf16=False,
                    fp16=False,
                    save_strategy="no",
                    logging_strategy="steps",
                    logging_steps=every,
                    logging_nan_inf_filter=False,
                    report_to="none",
                    disable_tqdm=True,
                    remove_unused_columns=False,
                    dataloader_pin_memory=False,
                ),
                train_dataset=rows,
                data_collator=partial(collate, padding=padding),
                callbacks=[Curve()],
            )
            for callback in list(trainer.callback_handler.callbacks):
                if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
                    trainer.remove_callback(callback)
            trainer.train()
    finally:
        logging.set_verbosity(level)
    return Fitted(curve, _named(trainer.args.device))


def _named(device: torch.device) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{device} {name}".strip()
