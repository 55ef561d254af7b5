"""The model card of an exported run: its scores, how it was made, the proof of training."""

from encoder_bench.base.errors import EncoderBenchError
from encoder_bench.base.record import RunRecord
from encoder_bench.encoders.registry import find_spec
from encoder_bench.results.columns import score_sources
from encoder_bench.results.formats import FORMATS, templates
from encoder_bench.results.table import build_tables

_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-NC-4.0": "cc-by-nc-4.0"}
_PERMISSIVE = ("bundled:", "hub:HuggingFaceTB/SmolLM2")
"""Sources of LLMs under Apache-2.0, which leave the encoder's licence as it is."""


def model_card(record: RunRecord) -> str:
    """Return the card in Markdown: scores, encoder and LLM, recipe, data, proof, hardware."""
    scores = FORMATS["md"](build_tables([record])).strip()
    text = templates().get_template("record.md.j2").render(record=record, scores=scores)
    return f"---\n{_metadata(record)}\n---\n{text}"


def record_sheet(record: RunRecord) -> str:
    """Return what a record holds beside its scores, in Markdown."""
    return templates().get_template("record.md.j2").render(record=record, scores="")


def _metadata(record: RunRecord) -> str:
    """Return the Hub's YAML: licence, models and data it was made from, its scores."""
    from huggingface_hub import EvalResult, ModelCardData

    mode = "jointly tuned" if record.joint else "frozen"
    data, training = (
        str(description.get("name", "unknown")).partition(":")[0]
        for description in (record.data, record.training_data)
    )
    scores = [
        EvalResult(
            task_type="image-text-to-text",
            task_name=source.task,
            dataset_type=data,
            dataset_name=data,
            metric_type=source.metric,
            metric_name=column,
            metric_value=round(value, 2),
        )
        for column, source in score_sources(record).items()
        if (value := source.scores.metrics[source.metric].value) is not None
    ]
    licence = _licence(record)
    hub = _HUB_LICENCES.get(licence)
    card = ModelCardData(
        model_name=f"{record.encoder.display_name}, {mode}, {record.language_model.name}",
        license=hub or "other",
        license_name=None if hub else licence,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["encoder-bench", "llava"],
        base_model=_hub_models(record) or None,
        datasets=[training],
        eval_results=scores,
    )
    return str(card.to_yaml())


def _licence(record: RunRecord) -> str:
    """Return the encoder's licence, and that the LLM has its own where it may be another."""
    try:
        own = find_spec(record.encoder.name).licence
    except EncoderBenchError:
        own = "unknown"
    llm = record.language_model
    return own if llm.source.startswith(_PERMISSIVE) else f"encoder {own}; LLM as {llm.name}"


def _hub_models(record: RunRecord) -> list[str]:
    """Return the Hub repositories of encoder and LLM, as far as they come from there."""
    sources = (record.encoder.source, record.language_model.source)
    found = (source.partition(":") for source in sources)
    return [name.partition("@")[0] for form, _, name in found if form in ("hf", "hub")]
