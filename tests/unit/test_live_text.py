"""What of an interaction can be searched, and the parts of a search that need no index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from treadle_streams.filter import FilterSyntaxError
from treadle_streams.live import EmbedderError, load_embedder
from treadle_streams.live.extract import SIDE_CHARS, Spoken, captured, spoken, text_of, with_claims
from treadle_streams.live.pushdown import equalities, facets_of
from treadle_streams.live.search import fused
from treadle_streams.live.snippets import SNIPPET_CHARS, snippet
from treadle_streams.live.text import words

CALL = {"id": "c", "type": "function", "function": {"name": "refund", "arguments": '{"order": 7}'}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": "hello"}, "hello"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]}, "a\nb"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, 'refund {"order": 7}'),
        ({"role": "assistant", "content": "yes", "tool_calls": "odd"}, "yes"),
        ({"role": "user", "content": "lone \ud800"}, "lone ?"),
        ({"role": "tool"}, ""),
    ],
)
def test_the_text_of_a_message_is_what_it_says_and_calls(message: dict[str, object], text: str) -> None:
    assert spoken(message).text == text


def said(*messages: tuple[str, str], response: list[int] | None = None) -> tuple[str, str]:
    spoke = [Spoken(role, text) for role, text in messages]
    found = text_of(reversed(spoke), len(spoke), response, None)
    return found.request, found.response


def test_a_row_says_what_was_asked_and_what_was_answered_without_the_system_prompt() -> None:
    messages = [("system", "be kind"), ("user", "u1"), ("assistant", "a1"), ("tool", "t1"), ("assistant", "a2")]
    assert said(*messages) == ("u1\nt1", "a1\na2")
    assert said(*messages, response=[4]) == ("u1\na1\nt1", "a2")
    assert said(("assistant", "only")) == ("", "only")


def test_of_a_long_conversation_the_first_question_and_the_newest_messages_stay() -> None:
    long = [("user", "the first question")] + [("tool", f"step {n} " + "x" * 1000) for n in range(40)]
    request, response = said(*long, ("assistant", "done"), response=[41])
    assert request.startswith("the first question\n")
    assert "step 39" in request
    assert "step 20" not in request
    assert len(request) <= SIDE_CHARS
    assert response == "done"


def test_only_as_many_messages_are_read_as_are_needed_when_the_first_one_is_known() -> None:
    read = []

    def newest():  # type: ignore[no-untyped-def]
        for n in range(999, -1, -1):
            read.append(n)
            yield Spoken("assistant" if n == 999 else "tool", f"{n} " + "x" * 500)

    asked, request, response = text_of(newest(), 1000, [999], Spoken("user", "why?"))
    assert asked == "why?"
    assert request.startswith("why?\n")
    assert response.startswith("999 ")
    assert len(read) < 20


def test_what_is_kept_beside_the_text_has_no_messages() -> None:
    value = {"interaction_id": "i", "messages": [], "tools": [], "tags": {"a": 1}, "claims": {}, "agent": "desk"}
    assert captured(value) == {"interaction_id": "i", "tags": {"a": 1}, "agent": "desk"}


def test_claims_are_put_back_where_they_are_known() -> None:
    message = {"role": "tool", "content": None, "more": [None]}
    claims = {"/content": "a", "/more/0": "b"}
    found = with_claims(message, claims, {"a": "long"}.get)
    assert found == {"role": "tool", "content": "long", "more": [""]}
    assert with_claims(message, {"/nowhere": "a"}, {"a": "x"}.get) == message


def test_words_are_folded_and_stemmed() -> None:
    assert words("Refunded THE Crème-brûlée, order_42!") == ["refund", "the", "creme", "brule", "order", "42"]


def test_a_snippet_is_the_place_with_most_words_of_the_query() -> None:
    text = "nothing here. " * 50 + "The refund of the broken lamp was sent twice. " + "nothing here. " * 50
    found = snippet(text, "lamps refunds")
    assert "refund of the broken lamp" in found
    assert len(found) < SNIPPET_CHARS + 10
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert snippet("short\n text", "absent") == "short text"
    assert snippet("", "absent") == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("agent = 'desk'", {"agent": "desk"}),
        ("agent = 'desk' AND (reward > 0 AND 'm' = model)", {"agent": "desk", "model": "m"}),
        ("agent = 'desk' OR reward > 0", {}),
        ("NOT agent = 'desk'", {}),
        ("agent = 'it''s' AND task_id <> 't' AND reward = 1 AND agent = model", {"agent": "it's"}),
        ("tags.agent = 'x' AND metrics.agent = 'y'", {}),
    ],
)
def test_equalities_that_must_hold_are_found_and_no_others(text: str, found: dict[str, str]) -> None:
    assert equalities(text) == found


def test_equalities_refuse_what_filters_refuse() -> None:
    with pytest.raises(FilterSyntaxError):
        equalities("(SELECT 1)")


def test_facets_stand_in_for_what_an_interaction_does_not_say() -> None:
    assert set(facets_of({"agent": "a", "model": None, "subject": "x" * 2000})) == {"agent=a", "slot=main", "status=ok"}
    assert "agent=\ud800" not in set(facets_of({"agent": "\ud800"}))


def test_fusion_prefers_what_both_rankings_find() -> None:
    order = [number for number, _ in fused([(1.0, [1, 2, 3]), (1.0, [4, 2, 5])])]
    assert order == [2, 1, 4, 3, 5]
    assert [number for number, _ in fused([(1.0, [1, 2]), (0.1, [2])])] == [2, 1]
    assert fused([]) == []


def ragged(texts: list[str]) -> list[list[float]]:
    return [[1.0]] * (len(texts) + 1)


def counting(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), 0.0] for text in texts]


class Made:
    def __call__(self, texts: list[str]) -> list[list[float]]:
        return [[0.0, 2.0] for _ in texts]


def test_an_embedder_is_a_function_or_a_class_and_its_vectors_have_length_one() -> None:
    found = load_embedder(f"{__name__}:counting")(["abc", ""])
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert load_embedder(f"{__name__}:Made")(["x"]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("name", ["nothing", "no.such.module:f", f"{__name__}:absent", f"{__name__}:SIDE_CHARS", ":f"])
def test_an_embedder_that_is_none_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(EmbedderError, match=name.rpartition(":")[2] or "form"):
        load_embedder(name)


def test_an_embedder_that_gives_too_many_vectors_is_refused() -> None:
    with pytest.raises(EmbedderError, match="shape"):
        load_embedder(f"{__name__}:ragged")(["x"])


def test_wordllama_is_the_mean_of_its_token_vectors_read_from_the_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    package = tmp_path / "wordllama"
    for folder in ("weights", "tokenizers"):
        (package / folder).mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('its code is not needed')")
    tokenizer = Tokenizer(WordLevel({"lamp": 0, "broken": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    vectors = np.array([[3, 0], [0, 4], [0, 0]], dtype=np.float16)
    save_file({"embedding.weight": vectors}, package / "weights" / "l2_supercat_256.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    embedder = load_embedder("treadle_streams.live.wordllama:WordLlama")
    assert embedder(["lamp", "lamp broken", "unknown", ""]).tolist() == [
        [1.0, 0.0],
        pytest.approx([0.6, 0.8]),
        [0.0, 0.0],
        [0.0, 0.0],
    ]


def test_an_embedder_whose_package_is_not_installed_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle_streams.live.wordllama.find_spec", lambda name: None)
    with pytest.raises(EmbedderError, match="pip install wordllama"):
        load_embedder("treadle_streams.live.wordllama:WordLlama")
