"""What the trainer keeps on disk: nothing that is needed goes, and a job that does not fit is refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle.settings import Settings
from treadle_schemas import SettingError
from treadle_schemas.erasing import ErasureRequest
from treadle_trainer._files import locked
from treadle_trainer.erasers import erase_job_rows
from treadle_trainer.errors import DiskFull
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.queue import JobQueue
from treadle_trainer.registry import Registry
from treadle_trainer.storage import Storage, wanted_by


class Home:
    def __init__(self, path: Path) -> None:
        self.path, self.jobs, self.corpus = path, path / "jobs", path / "corpora" / "shop"
        self.registry = Registry(path / "registry", "shop")
        self.queue = JobQueue(self.registry.path)
        TrainingPolicy().save(path / "registry", "shop", "main")

    def file(self, path: Path, size: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        return path

    def job(self, version: int, state: str) -> Path:
        """A job on that version, with 1,000 bytes of checkpoints and 10 of rows."""
        number = self.queue.submit(str(self.corpus), version, fingerprint="f")[0].number
        self.queue.start(number, f"key{number}")
        if state != "running":
            self.queue.end(number, state, reason="so it was")  # type: ignore[arg-type]
        folder = self.jobs / f"key{number}-train"
        self.file(folder / "checkpoints" / "checkpoint-5" / "weights", 1000)
        self.file(self.jobs / f"key{number}-evaluate" / "heldout.jsonl", 10)
        self.file(folder / "log.txt", 1)
        return folder

    def columns(self, version: int, view: str = "sft") -> Path:
        return self.file(self.corpus / "tokens" / "tok-tem" / f"v{version}-{view}-abc" / "ids", 100).parent

    def release(self, size: int, *, decided: str | None = "rejected") -> Path:
        folder = self.file(self.path / "made" / "weights.safetensors", size).parent
        release = self.registry.register(folder, method="sft")
        if decided is not None:
            self.registry.note(decided, release, actor="trainer", reason="so it was")  # type: ignore[arg-type]
        return self.registry.folder(release)

    def storage(self, budget: int | None = None) -> Storage:
        return Storage(self.path / "registry", self.jobs, self.path / "corpora", budget)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_what_is_over_goes_before_what_may_be_resumed_and_what_is_needed_stays(home: Home) -> None:
    done, failed, waiting, running = (home.job(n, s) for n, s in enumerate(("done", "failed", "queued", "running"), 1))
    by_hand = home.file(home.jobs / "train-1" / "checkpoints" / "checkpoint-1" / "w", 50)
    model = home.file(home.jobs / "train-1" / "model" / "w", 50)
    old, wanted, newest, alone = home.columns(1), home.columns(3), home.columns(5), home.columns(2, "dpo")
    found = list(home.storage().leftovers())
    assert [(one.kind, one.bytes, one.of) for one in found] == [
        ("rows", 10, "job 1, done"),
        ("checkpoints", 1000, "job 1, done"),
        ("columns", 100, "sft of v1"),
        ("rows", 10, "job 2, failed"),
        ("checkpoints", 1000, "job 2, failed"),
    ]
    assert {one.place for one in home.storage().leftovers(by_hand=True)} - {one.place for one in found} == {
        str(by_hand.parents[1])
    }
    with locked(home.jobs / "device.lock"):  # as while a training by hand runs
        held = [one for one in home.storage().leftovers(by_hand=True) if one.quiet]
        assert [home.storage().free(one) for one in held] == [False, False]
    for one in found:
        assert home.storage().free(one)
    assert not any((folder / "checkpoints").exists() for folder in (done, failed))
    assert all((folder / "checkpoints").exists() for folder in (waiting, running))
    assert (done / "log.txt").exists()
    assert [path.exists() for path in (old, wanted, newest, alone, by_hand, model)] == [False, *[True] * 5]
    assert list(home.storage().leftovers()) == []


def test_room_is_made_only_as_far_as_it_is_wanted(home: Home) -> None:
    first, second = home.job(1, "done"), home.job(2, "failed")
    total = home.storage().use().total
    assert home.storage(budget=total + 500).make_room(500, "job 9")[0] == []
    freed, use = home.storage(budget=total + 500).make_room(1200, "job 9")
    assert use.total == total - 1010
    assert {one.of for one in freed} == {"job 1, done"}
    assert not (first / "checkpoints").exists()
    assert (second / "checkpoints").exists()


def test_with_a_budget_releases_that_nothing_needs_go_last_and_the_champion_never(home: Home) -> None:
    champion = home.release(70_000, decided=None)
    home.registry.promote(home.registry.id(0), expect=None, reason="today")
    rejected = [home.release(70_000) for _ in range(5)]
    use = home.storage().use()
    assert use.releases > 6 * 70_000
    home.storage(budget=use.total).make_room(60_000, "job 9")
    assert [(folder / "weights.safetensors").exists() for folder in rejected] == [False, True, True, True, True]
    assert home.registry.events()[-1].reason == "the trainer's disk budget"
    with pytest.raises(DiskFull, match=r"job 9 wants 0\.1 MB .*\(TREADLE_TRAINER_BYTES\).*`treadle job prune`"):
        home.storage(budget=100).make_room(60_000, "job 9")
    # the newest three stay as with `release gc`, and who serves
    assert [(folder / "weights.safetensors").exists() for folder in rejected] == [False, False, True, True, True]
    assert (champion / "weights.safetensors").exists()
    home.registry.verify(home.registry.id(0))


def test_without_a_budget_the_disk_is_the_limit_and_no_release_goes(home: Home) -> None:
    rejected = [home.release(700) for _ in range(5)]
    with pytest.raises(DiskFull, match=r"and .* has .* GB free"):
        home.storage().make_room(1 << 62, "job 9")
    assert all((folder / "weights.safetensors").exists() for folder in rejected)


def test_what_a_job_wants_follows_from_its_model_and_what_it_has_already(home: Home) -> None:
    policy = TrainingPolicy()
    assert wanted_by(policy, home.registry, home.jobs / "none") == 0
    home.release(1_000_000, decided=None)
    home.registry.promote(home.registry.id(0), expect=None, reason="today")
    every, lora = policy.changed({"save_steps": 5}), policy.changed({"lora_rank": 4})
    sizes = [wanted_by(one, home.registry, home.jobs / "none") / 1e6 for one in (policy, every, lora)]
    assert sizes == pytest.approx([5, 11, 2], abs=0.1)
    home.file(home.jobs / "key-train" / "checkpoints" / "w", 400_000)
    assert wanted_by(policy, home.registry, home.jobs / "key-train") / 1e6 == pytest.approx(4.6, abs=0.1)


def test_pruning_by_hand_shows_and_asks(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(home.path))
    done = home.job(1, "done")

    def treadle(*args: str, answer: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["job", "prune", *args], input=answer)
        return result.exit_code, result.stdout

    code, said = treadle("--dry-run", "--json")
    plan = json.loads(said)
    assert (code, plan["bytes"], plan["deleted"], plan["use"]["jobs"]) == (0, 1010, [], 1011)
    assert treadle(answer="n\n")[0] == 1
    assert (done / "checkpoints").exists()
    code, said = treadle("--yes")
    assert (code, "deleted 1,010 bytes" in said) == (0, True), said
    assert not (done / "checkpoints").exists()


def test_the_budget_is_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_TRAINER_BYTES", "20000000000")
    assert Settings.load().trainer_bytes == 20_000_000_000
    monkeypatch.setenv("TREADLE_TRAINER_BYTES", "20GB")
    with pytest.raises(SettingError, match="TREADLE_TRAINER_BYTES='20GB': expected a number of bytes"):
        Settings.load()


def test_an_erasure_finds_the_rows_of_a_job_that_was_cut_short(home: Home) -> None:
    folder = home.job(1, "failed").with_name("key1-evaluate")
    tokens = home.file(home.jobs / "key1-train" / "tokens" / "t" / "v1-sft-a" / "ids", 30)
    theirs = home.file(home.jobs / "key1-train" / "prepared" / "data.arrow", 30)
    request = ErasureRequest(
        home=home.path,
        corpus_root=None,
        workspace="shop",
        subjects=frozenset({"ann"}),
        episodes=frozenset({"e"}),
        rows=frozenset(),
        reason="asked",
        erased_at="2026-01-01T00:00:00Z",
        dry_run=True,
    )
    would = list(erase_job_rows(request))
    assert [(Path(one.place).name, one.bytes) for one in would] == [("key1-evaluate", 10), ("key1-train", 60)]
    assert tokens.exists()
    now = ErasureRequest(**{**request.__dict__, "dry_run": False})
    with locked(home.jobs / "device.lock"):
        assert all("a job runs" in one.remains[0] for one in erase_job_rows(now))
    assert tokens.exists()
    assert [one.remains for one in erase_job_rows(now)] == [(), ()]
    assert not any(path.exists() for path in (tokens, theirs, folder / "heldout.jsonl"))
    assert (home.jobs / "key1-train" / "checkpoints").exists()
    assert list(erase_job_rows(now)) == []
