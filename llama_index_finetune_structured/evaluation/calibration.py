"""``calibrate``: rows with known answers -> probabilities that say how often an answer is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from ..background import blocking
from ..errors import ConfigurationError
from ..example import Example
from ..llms.lora import LoraLLM
from ..local.model.adapter import read_card, write_card
from ..local.schema.bounds import schema_key
from ..printable import package_logger
from ..trust.calibration import Calibration
from ..trust.cross_fitting import FEWEST_ANSWERS
from .comparison import acompare
from .results import ScoredRow
from .run.answer_classes import with_classes
from .run.usable_rows import usable_targets
from .score.rules import Rules
from .score.trust_probabilities import calibration_of

__all__ = ["acalibrate", "calibrate", "with_calibrations"]

_log = package_logger(__name__)
_NAME = "calibrated"


async def acalibrate(
    llm: LoraLLM,
    dataset: Iterable[Example],
    *,
    output_cls: type[BaseModel] | None = None,
    fields: Rules | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> LoraLLM:
    """Fit the probabilities of a model's answers to rows that it was not trained on, and keep the fit in its adapter.

    The rows are asked as ``compare`` asks them and judged by their own answers: each whole answer, each value (whether
    it ought to be there, and whether it is right), and each list and object (whether something is missing). The fit
    belongs to the schema of the rows and to the LLM's settings; with fewer than 20 valid answers to a schema there is
    none, which is logged. 100 rows and more are better.

    Args:
        llm: The LLM. Where it has an adapter, the fit is written into the adapter's card, which
            ``LoraLLM.from_adapter`` reads; weights and their hashes stay as they are.
        dataset: The rows. ``tune()`` uses its held-out rows, and needs no further call.
        output_cls: Class of a valid answer, as for ``compare``. The fit is that of its schema.
        fields: Rules of comparison, as for ``compare``. By default the schema's types decide what is right.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        cache_dir: Folder where answers are stored as they arrive; a later run asks only for the missing ones.
        show_progress: Whether to show a progress bar.

    Returns:
        A copy of ``llm`` with the fit, which shares its weights.

    Raises:
        ConfigurationError: As ``compare``; or ``llm`` is no ``LoraLLM``.
        DatasetError: There are no rows, or none has a valid answer of its own.
        MissingDependencyError: The extra ``local`` is not installed.
    """
    if not isinstance(llm, LoraLLM):
        raise ConfigurationError(
            f"cannot calibrate a {type(llm).__name__}: pass a LoraLLM, whose answers come with token probabilities"
        )
    examples = list(dataset)
    files = None if llm.adapter is None else read_card(llm.adapter).files
    card = await acompare(
        {_NAME: llm.model_copy(update={"confidence": True})},
        examples,
        output_cls=output_cls,
        fields=fields,
        concurrency=concurrency,
        timeout_s=timeout_s,
        cache_dir=cache_dir,
        show_progress=show_progress,
    )
    return with_calibrations(llm, card.rows, _NAME, examples, output_cls, files)


calibrate = blocking(acalibrate)


def with_calibrations(
    llm: LoraLLM,
    rows: Iterable[ScoredRow],
    system: str,
    examples: Iterable[Example],
    output_cls: type[BaseModel] | None,
    files: Mapping[str, str] | None,
) -> LoraLLM:
    """A copy of the LLM with the calibrations of a system's scored answers, also written into its adapter's card.

    ``examples`` and ``output_cls``: as the rows were compared. ``files``: hashes of the adapter that answered; the
    card of another adapter is left as it is. Raises MissingDependencyError without scikit-learn.
    """
    targets, _ = usable_targets(examples if output_cls else with_classes(examples, [llm]), output_cls)
    by_schema = dict[str, list[ScoredRow]]()
    for row, target in zip(rows, targets, strict=True):
        if target.schema is not None:
            by_schema.setdefault(schema_key(target.schema), []).append(row)
    found = dict[str, Calibration]()
    for key, scored in by_schema.items():
        answers = [row.answers[system] for row in scored]
        calibration = calibration_of(answers, [row.document_id for row in scored])
        if calibration is None:
            _log.warning(
                "not calibrated: fewer than %d of the %d answers to a schema are valid and have token "
                "probabilities. Probabilities stay products of the tokens'; pass more held-out rows",
                FEWEST_ANSWERS,
                len(answers),
            )
        else:
            found[key] = calibration
    if found and llm.adapter is not None and files is not None:
        _write(llm.adapter, found, files)
    return llm.model_copy(update={"calibrations": {**llm.calibrations, **found}})


def _write(adapter: Path, calibrations: Mapping[str, Calibration], files: Mapping[str, str]) -> None:
    card = read_card(adapter)
    if card.files != files:
        _log.warning("%s: is another adapter than the one that answered; its card is left as it is", adapter)
        return
    both = {**card.calibrations, **calibrations}
    try:
        write_card(adapter, card.model_copy(update={"calibrations": both}), files)
    except OSError as error:
        _log.warning(
            "%s: its card cannot be written (%s): only the returned LLM is calibrated",
            adapter,
            error.strerror,
        )
