"""Sealed values and the keys of subjects: what opens what, and what is left when a key is destroyed."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import treadle
from treadle.errors import EncryptionMissing
from treadle.keys import CHECK_S, FolderKeys, KeyRing, _folder, _ring
from treadle.log import Record, open_record
from treadle.policies import remember
from treadle.settings import Settings
from treadle_schemas import WorkspaceSettings, codec
from treadle_schemas.errors import FieldError, KeyErased, KeyUnavailable, SettingError
from treadle_schemas.sealing import Cipher, about, is_sealed, key_id_of, opened


@pytest.fixture
def store(tmp_path: Path) -> FolderKeys:
    return FolderKeys(tmp_path / "keys")


def cipher(store: FolderKeys, subject: str = "ann") -> Cipher:
    key_id = store.current(subject)
    return Cipher(key_id, store.load(key_id))


def test_what_is_sealed_opens_with_its_key_and_says_nothing_without(store: FolderKeys) -> None:
    text, where = b'{"interaction_id":"i"}' * 9, about("shop", codec.INTERACTION, b"e")
    sealed = cipher(store).seal(text, where)
    assert is_sealed(sealed)
    assert not is_sealed(text)
    assert text[:8] not in sealed
    assert opened(sealed, KeyRing(store), where) == text
    assert opened(text, KeyRing(store), where) == text
    assert len(sealed) == len(text) + 4 + 16 + 12 + 16


def test_sealing_twice_gives_the_same_bytes_and_another_text_another_nonce(store: FolderKeys) -> None:
    one = cipher(store)
    assert one.seal(b"a", b"x") == one.seal(b"a", b"x")
    nonces = {one.seal(text, where)[20:32] for text in (b"a", b"b", b"") for where in (b"x", b"xa")}
    assert len(nonces) == 6


@pytest.mark.parametrize(
    ("workspace", "kind", "key"),
    [("shop2", codec.INTERACTION, b"e"), ("shop", codec.INTERACTION, b"f"), ("shop", codec.OUTCOME, b"e")],
)
def test_a_value_moved_elsewhere_does_not_open(store: FolderKeys, workspace: str, kind: str, key: bytes) -> None:
    sealed = cipher(store).seal(b"{}", about("shop", codec.INTERACTION, b"e"))
    with pytest.raises(FieldError, match="moved from another workspace or episode"):
        opened(sealed, KeyRing(store), about(workspace, kind, key))


def test_changed_or_cut_bytes_do_not_open(store: FolderKeys) -> None:
    sealed = cipher(store).seal(b"{}", b"x")
    with pytest.raises(FieldError, match="it was changed"):
        opened(sealed[:-1] + bytes([sealed[-1] ^ 1]), KeyRing(store), b"x")
    with pytest.raises(FieldError, match="cut off"):
        opened(sealed[:20], KeyRing(store), b"x")


def test_keys_are_files_of_the_owner_alone_and_no_name_says_whose(store: FolderKeys) -> None:
    key_id = store.current("ann@example.org")
    assert store.current("ann@example.org") == key_id
    assert store.of("ann@example.org") == [key_id]
    assert store.of("bob") == []
    for path in store.folder.rglob("*"):
        assert "ann" not in path.name
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert b"ann" not in path.read_bytes()
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_a_store_that_is_not_mounted_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="TREADLE_KEYS"):
        FolderKeys(tmp_path / "nowhere").of("ann")


def test_many_at_once_make_one_key_of_a_subject(store: FolderKeys) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        made.append(FolderKeys(store.folder).current("ann"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(list(store.folder.glob("*.key"))) == 2  # and names.key


def test_a_destroyed_key_is_erased_and_a_missing_one_is_not(store: FolderKeys) -> None:
    sealed = cipher(store).seal(b"{}", b"x")
    key_id = key_id_of(sealed)
    key = store.load(key_id)
    assert store.destroy(key_id)
    assert not store.destroy(key_id)
    with pytest.raises(KeyErased):
        opened(sealed, KeyRing(store), b"x")
    assert not any(key in path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    # who comes back has another key, and the old one is still known as hers
    assert store.current("ann") != key_id
    assert store.of("ann")[0] == key_id
    with pytest.raises(KeyUnavailable, match="mount the store"):
        KeyRing(FolderKeys(store.folder / "elsewhere")).cipher(key_id)
    with pytest.raises(KeyUnavailable):
        store.destroy("0" * 32)


def test_a_destruction_cut_off_after_its_first_step_counts(store: FolderKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = store.current("ann")

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        _folder.os,
        "open",
        lambda path, flags, mode=0o777: died() if str(path).endswith(".key") else os_open(path, flags, mode),
    )
    with pytest.raises(KeyboardInterrupt):
        store.destroy(key_id)
    monkeypatch.undo()
    with pytest.raises(KeyErased):
        store.load(key_id)
    assert store.current("ann") != key_id
    assert store.destroy(key_id)
    assert not (store.folder / f"{key_id}.key").exists()


os_open = os.open


def test_a_process_forgets_a_destroyed_key_within_seconds(store: FolderKeys) -> None:
    now = [0.0]
    ring = KeyRing(store, clock=lambda: now[0])
    first = ring.of_subject("ann")
    store.destroy(first.key_id)
    assert ring.cipher(first.key_id) is first
    now[0] = CHECK_S
    with pytest.raises(KeyErased):
        ring.cipher(first.key_id)
    assert ring.of_subject("ann").key_id != first.key_id


def test_a_damaged_key_is_named(store: FolderKeys) -> None:
    key_id = store.current("ann")
    (store.folder / f"{key_id}.key").write_bytes(b"short")
    with pytest.raises(SettingError, match=f"{key_id}.key has 5 bytes"):
        store.load(key_id)


def settings_of(tmp_path: Path, encrypt: bool) -> Settings:
    settings = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": "127.0.0.1:9"})
    remember(tmp_path, WorkspaceSettings(workspace="shop", encrypt="subjects" if encrypt else "nothing"))
    return settings


def spooled(settings: Settings) -> bytes:
    return b"".join(path.read_bytes() for path in settings.spool_folder.rglob("*.seg"))


def test_what_is_of_a_subject_is_sealed_before_it_is_in_a_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encrypt=True)
    with treadle.Recorder("shop", settings=settings, raise_errors=True) as recorder:
        long = [{"role": "user", "content": "hushlong" * 300}]
        handle = recorder.record(messages=long, episode_id="e", subject="ann")
        recorder.record(messages=[{"role": "user", "content": "hushstep"}], episode_id="e", step=1)
        recorder.comment(handle, "hushcomment")
        recorder.comment("shop/x/y", "hushother", subject="ann")
        recorder.comment("shop/x/y", "clearcomment")
        recorder.record(messages=[{"role": "user", "content": "clearprompt"}])
        recorder.close(0.0)
    kept = spooled(settings)
    assert b"hush" not in kept
    assert b"clearcomment" in kept
    assert b"clearprompt" in kept
    assert kept.count(b"\xf6tk1") == 5  # a part, two steps, two comments


def test_a_machine_with_keys_seals_before_it_has_seen_the_settings(tmp_path: Path) -> None:
    settings = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": "127.0.0.1:9"})
    FolderKeys(settings.keys_folder / "shop").prepare()
    with treadle.Recorder("shop", settings=settings, raise_errors=True) as recorder:
        recorder.record(messages=[{"role": "user", "content": "secretprompt"}], subject="ann")
        recorder.close(0.0)
    assert b"secretprompt" not in spooled(settings)


def test_without_the_package_such_a_workspace_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with treadle.Recorder("shop", settings=settings_of(tmp_path, encrypt=True), raise_errors=True) as recorder:
        with pytest.raises(EncryptionMissing, match=r"treadle\[encryption\]"):
            recorder.record(messages=[{"role": "user", "content": "secretprompt"}], subject="ann")
        recorder.record(messages=[{"role": "user", "content": "nobody's"}])
        recorder.close(0.0)


def test_readers_get_the_text_and_of_the_erased_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ring, "_folder", tmp_path)
    store = FolderKeys(tmp_path / "shop")
    value = cipher(store).seal(b"{}", about("shop", codec.INTERACTION, b"e"))
    record = Record("treadle.shop.interactions", 0, 0, 0, b"e", value, [("ce_type", codec.INTERACTION.encode())])
    assert open_record(record) == record._replace(value=b"{}")
    letter = record._replace(
        topic="treadle.shop.dead-letter",
        headers=[("ce_type", codec.DEAD_LETTER.encode()), ("original.ce_type", codec.INTERACTION.encode())],
    )
    assert open_record(letter) == letter._replace(value=b"{}")
    moved = record._replace(key=b"f")
    assert open_record(moved) == moved
    store.destroy(key_id_of(value))
    monkeypatch.setattr(_ring, "_rings", {})
    assert open_record(record) is None
    assert open_record(letter) is None
