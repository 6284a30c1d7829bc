"""Targets, references, pass^k and the public face."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import treadle_corpus
from treadle_corpus import CorpusRef, TargetError, VersionMissing, name_of, parse_ref, pass_hat, resolve_target
from treadle_schemas.errors import NotYetSupported

ROOT = Path("/corpora")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/c", "/data/c"),
        ("deeplake://org/corpus", "/corpora/org/corpus"),
        ("deeplake://org/my.corpus-2/", "/corpora/org/my.corpus-2"),
        ("file:///data/c", "/data/c"),
        ("/data/a@b", "/data/a@b"),
    ],
)
def test_a_target_is_a_folder(text: str, path: str) -> None:
    assert resolve_target(text, ROOT) == Path(path)


def test_a_relative_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_target("c", ROOT) == tmp_path / "c"


def test_an_object_store_has_one_folder_here_however_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    path = resolve_target("s3://bucket/a/b", ROOT)
    assert path.parent == tmp_path / "corpora-objects"
    assert resolve_target("S3://bucket/a/b/", ROOT) == path
    assert resolve_target("s3://bucket/a-b", ROOT) != path
    assert name_of(path) == "s3://bucket/a/b"
    assert str(parse_ref("s3://bucket/a/b@v3", ROOT)) == "s3://bucket/a/b@v3"
    assert parse_ref("s3://bucket/a/b@v3", ROOT) == CorpusRef(path, 3)


def test_activeloop_storage_is_not_yet_supported_and_says_why() -> None:
    with pytest.raises(NotYetSupported, match="deeplake://ORG/NAME"):
        resolve_target("al://org/c", ROOT)


def test_a_store_whose_package_is_missing_names_it() -> None:
    with pytest.raises(TargetError, match="gcsfs"):
        resolve_target("gs://b/c", ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ftp://x/y",
        "s3://",
        "s3:///x",
        "s3://b//x",
        "s3://key:secret@b/x",
        "s3://b/../x",
        "deeplake://org",
        "deeplake://org/a/b",
        "deeplake://../x",
        "deeplake://org/..",
        "a\0b",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        resolve_target(text, ROOT)


def test_deeplake_targets_need_a_corpus_root() -> None:
    with pytest.raises(TargetError, match="corpus root"):
        resolve_target("deeplake://org/name")


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("/c", CorpusRef(Path("/c"), None)),
        ("/c@v12", CorpusRef(Path("/c"), 12)),
        ("deeplake://o/n@v3", CorpusRef(ROOT / "o" / "n", 3)),
        ("/a@v1/c", CorpusRef(Path("/a@v1/c"), None)),
    ],
)
def test_a_reference_names_a_version(text: str, ref: CorpusRef) -> None:
    assert parse_ref(text, ROOT) == ref


@pytest.mark.parametrize("text", ["/c@v", "/c@v0", "/c@vlast", "/c@v1.5", "/c@v-1"])
def test_a_version_is_a_number(text: str) -> None:
    with pytest.raises(TargetError, match="is no version"):
        parse_ref(text, ROOT)


@pytest.mark.parametrize(
    ("there", "words"), [([], "no version yet"), ([1, 2], "there are v1, v2"), (list(range(1, 30)), "v1 to v29")]
)
def test_a_missing_version_names_those_that_are_there(there: list[int], words: str) -> None:
    assert words in str(VersionMissing(Path("/c"), 99, there))


def test_pass_hat_is_the_share_of_k_subsets_that_all_succeed() -> None:
    attempts = [("a", 1.0), ("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", None), ("c", 0.0), ("c", -1.0)]
    found = pass_hat(attempts)
    assert found[1] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found[2] == pytest.approx((1 / 3 + 0) / 2)
    assert found[3] == 0.0
    assert found[4] is None


def test_everything_public_is_exported() -> None:
    assert sorted(treadle_corpus.__all__) == treadle_corpus.__all__
    for name in treadle_corpus.__all__:
        assert getattr(treadle_corpus, name) is not None
    for module in (
        "errors",
        "forms",
        "hashing",
        "manifest",
        "pass_at",
        "policy",
        "reader",
        "target",
        "testing",
        "views",
        "writer",
    ):
        found = importlib.import_module(f"treadle_corpus.{module}")
        assert all(hasattr(found, name) for name in found.__all__)
