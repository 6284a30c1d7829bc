"""TRL's forms, through `datasets` and TRL's own preprocessing and trainers, with a random model: a step each of SFT, DPO and KTO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus.testing import graded
from treadle_trainer.data.rendering import encode

from .model_world import write_corpus
from .token_world import make_tokenizer

ASK = {"role": "user", "content": "where is my order"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}},
    }
]
OTHER_TOOLS = [{"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"id": "7"}'}}],
}
TOOL = {"role": "tool", "tool_call_id": "c", "content": "it is lost"}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def records() -> list[Any]:
    out = []
    for n in range(6):
        won = float(n % 2)
        out.append(graded(f"plain{n}", task_id="p", reward=won, messages=[ASK, say(f"answer {n}")]))
        agent = [ASK, CALL, TOOL, say(f"lost, sorry {n}"), ASK, say(f"again {n}")]
        out.append(graded(f"agent{n}", task_id="a", reward=won, messages=agent, tools=TOOLS, response=[1, 3, 5]))
        few = [ASK, say("a shown answer"), ASK, say(f"mine {n}")]
        out.append(graded(f"few{n}", task_id="f", reward=won, messages=few, tools=OTHER_TOOLS, response=[3]))
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trl") / "corpus"
    rows = records()
    return write_corpus(path, rows)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(["where is my order answer lost, sorry again it is lost a shown answer mine 0 1 2 3 4 5"] * 3)


@pytest.fixture
def model(tokenizer: Any, tmp_path: Path) -> str:
    """The folder of a random model: TRL wants one on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def loaded(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A view in TRL's form, exported to a file and loaded by `datasets`."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def load(view: str, suffix: str = "jsonl", *options: str) -> Any:
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        out = tmp_path / f"{view}.{suffix}"
        args = ["corpus", "export", str(corpus), "--view", view, "--form", "trl", "--out", str(out), *options]
        done = CliRunner().invoke(main, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        kind = {"jsonl": "json", "parquet": "parquet"}[suffix]
        return load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))

    return load


def common(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 1,
        "dataloader_pin_memory": False,
    }


@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sft_trains_on_the_marked_turns_and_on_no_other(
    loaded: Any, model: str, tokenizer: Any, tmp_path: Path, suffix: str
) -> None:
    from trl import SFTConfig, SFTTrainer

    dataset = loaded("sft", suffix)
    assert len(dataset) == 9
    args = SFTConfig(**common(tmp_path), assistant_only_loss=True, max_length=None)
    trainer = SFTTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=dataset)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(9)])
    rewarded = [record.row.interaction for record in records() if record.row.grade.reward]
    wanted = set()
    for row in rewarded:
        marks = row.get("response", [1])
        encoded = encode(tokenizer, row["messages"], marks, row.get("tools"))
        end = encoded.turns[-1].stop
        wanted.add((tuple(encoded.input_ids[:end]), tuple(encoded.trained[:end])))
    found = set()
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        end = max(i for i, label in enumerate(labels) if label != -100) + 1
        found.add((tuple(ids[:end]), tuple(label != -100 for label in labels[:end])))
    assert found == wanted
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


@pytest.mark.filterwarnings("ignore")
def test_dpo_and_kto_take_a_step(loaded: Any, model: str, tokenizer: Any, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    pairs = loaded("dpo", "jsonl", "--cap", "4")
    assert {len(row["chosen"]) for row in pairs} == {1}
    assert len(pairs) == 8  # the agent's are left out: their tool answers would be trained on
    args = DPOConfig(**common(tmp_path), max_length=None, precompute_ref_log_probs=False)
    trainer = DPOTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=pairs)
    first = trainer.train_dataset[0]
    assert tokenizer.decode(first["chosen_ids"]).startswith(("answer", "mine"))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693, abs=0.01)
    labels = loaded("kto")
    assert len(labels) == 12
    args = KTOConfig(**common(tmp_path), max_length=None)
    trainer = KTOTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=labels)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
