"""What all trainers of TRL share here: settings, batches from the streaming reader, progress, checkpoints, saving.

TRL 1.13 makes its own data set, collator and loader out of text. Here batches come ready from token columns, so `Streamed`, mixed into a
trainer, replaces two private steps of it: `_prepare_dataset` and `get_train_dataloader`. That is why trl is pinned to one version.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from treadle_trainer.data.mixture import MixedColumns
from treadle_trainer.data.stream import Batch, TokenStream
from treadle_trainer.errors import JobStopped
from treadle_trainer.jobs._ending import asked_to_end
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.launch import Launch
from treadle_trainer.launch._ranks import any_of_them, first_says, is_first, place, wait_for_all
from treadle_trainer.methods._checkpoints import last_valid, seal
from treadle_trainer.methods._columns import counts_of
from treadle_trainer.methods._mixture import all_columns, source_counts

__all__ = [
    "Data",
    "Feed",
    "Streamed",
    "data_of",
    "fit",
    "load_model",
    "lora_of",
    "placeholder",
    "reference_of",
    "training_settings",
]

WARMUP_STEPS: Final = 5
SMALL_PARAMETERS: Final = 3_000_000
"""Below this, a second thread costs more than it brings."""
LARGE_PARAMETERS: Final = 100_000_000
"""From here on a GPU trains in bf16; below, rounding costs more than it saves."""
KEPT_CHECKPOINTS: Final = 2
NEVER: Final = 1 << 30

Form = Callable[[Batch], dict[str, Any]]


def load_model(folder: str, kind: Any = AutoModelForCausalLM, **given: Any) -> Any:
    """A model in float32 with the threads that suit its size. Never asks the network, never runs code of the folder."""
    model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, **given)
    # on two cores a step of 0.95M parameters takes 114 ms with one thread and 134 ms with two; at 5.3M it is even
    threads = 1 if model.num_parameters() < SMALL_PARAMETERS else os.cpu_count() or 1
    torch.set_num_threads(min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads)))
    return model


class Data(NamedTuple):
    """What a job trains on. `tokenizer` is saved with the model. Without a stream the trainer reads its data set."""

    tokenizer: Any
    columns: Any
    stream: TokenStream | None
    counts: dict[str, int]
    read_s: float = 0.0
    """What making or opening the columns took, in seconds."""


def data_of(spec: TrainSpec, progress: Callable[..., None]) -> Data:
    """The tokenizer of the base, the columns of the version or its mixture, and their reader, whose batches are on the device that trains.

    Sets the seed of torch. Raises DataRefused, TemplateRefused.
    """
    torch.manual_seed(spec.seed)
    began = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(spec.base, local_files_only=True)
    columns = all_columns(spec, tokenizer, progress)
    read_s = round(time.monotonic() - began, 3)
    counts = counts_of(columns)
    progress(stage="tokenised", reused=columns.meta.reused, **counts)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rank, ranks = place()
    stream = TokenStream(
        columns,
        columns.meta.identity,
        batch=spec.batch,
        seed=spec.seed,
        rank=rank,
        ranks=ranks,
        together=True,
        packed=spec.max_length if spec.packed else None,
        pad_id=int(tokenizer.pad_token_id or 0),
        device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None,
    )
    return Data(tokenizer, columns, stream, counts, read_s)


def training_settings(kind: Any, spec: TrainSpec, parameters: int, **more: Any) -> Any:
    """The settings of a TRL trainer."""
    cuda = torch.cuda.is_available()
    bf16 = cuda and parameters >= LARGE_PARAMETERS
    return kind(
        output_dir=str(_checkpoints(spec)),
        max_steps=spec.steps,
        learning_rate=spec.lr,
        lr_scheduler_type="linear",
        warmup_steps=min(WARMUP_STEPS, spec.steps - 1),
        weight_decay=0.0,
        per_device_train_batch_size=spec.batch,
        gradient_accumulation_steps=spec.accumulate,
        use_cpu=not cuda,
        bf16=bf16,
        **(spec.launch or Launch()).arguments(cuda=cuda, checkpointing=bf16),
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # batches come from the reader, pinned where that helps
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=spec.save_steps or NEVER,
        save_total_limit=KEPT_CHECKPOINTS,
        report_to=[],
        logging_steps=max(1, spec.steps // 20),
        disable_tqdm=True,
        seed=spec.seed,
        **{"ignore_data_skip": True, **more},  # the reader goes on where it was
    )


def placeholder(**columns: Any) -> Any:
    """A data set of one row for the checks of a trainer's constructor, which wants one. What is trained on comes from the reader."""
    return Dataset.from_dict({name: [value] for name, value in columns.items()})


def lora_of(spec: TrainSpec, task: str = "CAUSAL_LM") -> Any:
    """The adapter to train in place of all weights, or None. Low-rank updates of every linear layer but the head (Hu et al. 2021)."""
    if spec.lora_rank is None:
        return None
    return LoraConfig(r=spec.lora_rank, lora_alpha=2 * spec.lora_rank, target_modules="all-linear", task_type=task)


def reference_of(spec: TrainSpec, device: Any = None) -> Any:
    """The model that training begins with, to stay near to. None with an adapter: without it the model is its own reference."""
    if spec.lora_rank is not None:
        return None
    model = load_model(spec.base).eval().requires_grad_(False)
    return model if device is None else model.to(device)


class Feed:
    """The batches of a reader in the form that a trainer's loss takes, epoch after epoch. It has no length: steps are counted instead."""

    def __init__(self, stream: TokenStream, form: Form) -> None:
        self.stream = stream
        self._form = form

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for batch in self.stream:
                yield self._form(batch)


class Streamed:
    """Mixed into a trainer of TRL: it reads `feed`."""

    feed: Feed

    def get_train_dataloader(self) -> Any:
        """The reader, in place of a loader over the data set."""
        return self.feed

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def fit(trainer: Any, data: Data, form: Form | None, spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train, from the last valid checkpoint if there is one, and save the model to `spec.out`. Returns what a result says of it.

    Raises JobStopped after SIGTERM, once a checkpoint is written.
    """
    if data.stream is not None and form is not None:
        trainer.feed = Feed(data.stream, form)
    if trainer.args.device.type == "cpu":
        # accelerate numbers the CPUs of ranks, and torch loads no optimiser to a "cpu:0"
        vars(trainer.args)["_setup_devices"] = torch.device("cpu")
    trainer.add_callback(_Report(progress))
    found = first_says(
        lambda: last_valid(
            _checkpoints(spec),
            spec.fingerprint,
            lambda name, why: progress(stage="skipped", checkpoint=name, reason=why),
        )
    )
    if found is not None:
        if data.stream is not None:
            data.stream.load_state_dict(found.reader)
        progress(stage="resumed", checkpoint=found.folder.name)
    with asked_to_end() as asked:
        trainer.add_callback(_Keeper(spec, data.stream, asked))
        trainer.asked = asked
        trainer.train(resume_from_checkpoint=str(found.folder) if found is not None else None)
        if any_of_them(asked(), trainer.args.device) and trainer.state.global_step < spec.steps:
            raise JobStopped(f"stopped after step {trainer.state.global_step} of {spec.steps}; its checkpoint is kept")
    save(trainer, data.tokenizer, Path(spec.out))
    wait_for_all()
    if is_first():
        shutil.rmtree(_checkpoints(spec), ignore_errors=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        **data.counts,
        "read_s": data.read_s,
        "columns_bytes": 0 if data.columns is None else data.columns.meta.size,
        **_sources(spec, data, trainer.state.global_step),
        "steps": trainer.state.global_step,
        "resumed_at": None if found is None else int(found.folder.name.rpartition("-")[2]),
        "parameters": trainer.model.num_parameters(),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": place()[1] if torch.cuda.is_available() else 0,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
    }


def _sources(spec: TrainSpec, data: Data, steps: int) -> dict[str, Any]:
    """What a training with a mixture read of each source."""
    if spec.mixture is None or data.stream is None or not isinstance(data.columns, MixedColumns):
        return {}
    read = data.stream.taken(steps * spec.accumulate)
    return {"sources": source_counts(spec, spec.mixture, data.columns, read)}


def save(trainer: Any, tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer as a folder that loads like any other. An adapter is merged into the weights.

    Every rank takes part, and the first one writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        trainer.save_model(str(out))
    elif is_first():
        model.merge_and_unload().save_pretrained(out)
    if not is_first():
        return
    tokenizer.save_pretrained(out)
    (out / "training_args.bin").unlink(missing_ok=True)  # a pickle, which no release should carry


class _Report(TrainerCallback):  # type: ignore[misc,unused-ignore]  # transformers is not typed here
    def __init__(self, progress: Callable[..., None]) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            more = {name: logs[name] for name in ("reward", "kl") if logs.get(name) is not None}
            self._progress(stage="train", step=state.global_step, steps=state.max_steps, loss=logs["loss"], **more)


class _Keeper(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Seals each checkpoint with the reader's position; asks for a last one when the process is to end."""

    def __init__(self, spec: TrainSpec, stream: TokenStream | None, asked: Callable[[], bool]) -> None:
        self._spec, self._stream, self._asked = spec, stream, asked

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if any_of_them(self._asked(), args.device):
            control.should_save = control.should_training_stop = True
        elif state.global_step >= self._spec.steps:
            control.should_save = False  # the end is saved as a model
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()  # each rank writes its random state
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if is_first():
            seal(folder, self._spec.fingerprint, {} if self._stream is None else self._stream.state_dict())


def _checkpoints(spec: TrainSpec) -> Path:
    return Path(spec.work) / "checkpoints"
