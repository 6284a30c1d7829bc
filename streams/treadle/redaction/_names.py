"""Names of people, through the optional extra `names`: presidio with the spaCy model that the policy names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from treadle.errors import MissingExtra
from treadle.redaction._finding import Finding

_LONGEST: Final = 100_000
"""Characters given to the model at once: spaCy needs about 1 MB for each 1,000."""


def finder(model: str) -> Callable[[str], Iterator[Finding]]:
    """What finds names in a text. The model is loaded at the first text. Then raises MissingExtra or OSError where it is not installed."""
    engine: Any = None

    def find(text: str) -> Iterator[Finding]:
        nonlocal engine
        if engine is None:
            engine = _load(model)
        for begin in range(0, len(text), _LONGEST):
            piece = text[begin : begin + _LONGEST]
            for result in engine.analyze(text=piece, language="en", entities=["PERSON"]):
                yield Finding(begin + result.start, begin + result.end, "name")

    return find


def _load(model: str) -> Any:
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ModuleNotFoundError as err:
        raise MissingExtra("names", err.name or "presidio-analyzer", "names") from err

    class Loaded(SpacyNlpEngine):
        def __init__(self, language: Any) -> None:
            # presidio would try to download a model that it does not find
            super().__init__(
                models=[{"lang_code": "en", "model_name": model}], ner_model_configuration=NerModelConfiguration()
            )
            self.nlp: Any = {"en": language}

    nlp = Loaded(spacy.load(model))
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.add_recognizer(SpacyRecognizer(supported_entities=["PERSON"], supported_language="en"))
    return AnalyzerEngine(nlp_engine=nlp, registry=registry, supported_languages=["en"])
