"""A base on two fake GPUs by ``device="auto"``, beside the CPU: ``python -m tests.local.divided_runs`` prints both."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import accelerate.utils
import torch

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM, LoraSettings, export_adapter
from llama_index_finetune_structured.engines.lora_steps import TrainingStep
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.adapter_weights import read_adapter_weights
from llama_index_finetune_structured.local.model.base_models import load_model, resolve
from llama_index_finetune_structured.local.model.devices import devices_of
from llama_index_finetune_structured.local.model.reading import structure
from tests import exporting, random_adapters, tiny
from tests.local.fake_gpu import fake_gpu

_PROMPT = (*range(20, 50),)


def _stop(_: TrainingStep) -> None:
    raise KeyboardInterrupt


def _trained(base: Path, folder: Path, device: str) -> dict[str, Any]:
    """A run that is stopped after its first step and resumed, and answers of its adapter, also exported."""
    settings = LoraSettings(
        device=device, checkpoint_layers=True, epochs=1, batch_size=2, learning_rate=1e-2, rank=4,
        schema_prompt="none", windows=False,
    )  # fmt: skip

    def engine() -> LoraFinetuneEngine:
        return LoraFinetuneEngine(
            exporting.colours(4), base_model=base, output_dir=folder, config=settings,
            validation=exporting.colours(1),
        )  # fmt: skip

    try:
        engine().finetune(_stop)
    except KeyboardInterrupt:
        engine().finetune()
    log = json.loads((folder / "training_log.json").read_text())
    merged = export_adapter(folder / "adapter", folder.with_suffix(".merged"))
    asked = [
        LoraLLM.from_adapter(folder, device=device, max_new_tokens=4),
        LoraLLM(base_model=str(merged), device="cpu", max_new_tokens=4),
    ]
    return {
        "losses": [entry["loss"] for entry in (*log["steps"], *log["validation"])],
        "answers": [llm.complete("Describe colour 9.").text for llm in asked],
    }


def _beside(base: Path, folders: list[Path], device: str) -> dict[str, Any]:
    """Answers of several adapters in one batch, twice: the second time prompts are cached."""
    files = resolve(base)
    model = load_model(files, dtype=torch.float32, device=device)
    engine = GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=4)
    adapters = [read_adapter_weights(folder, model, structure(files.path)) for folder in folders]

    def answers() -> list[tuple[int, ...]]:
        asked = [GenerationRequest(_PROMPT, 6, adapter=adapter) for adapter in (None, *adapters)]
        futures = [engine.submit(request) for request in asked]
        return [future.result().tokens for future in futures]

    return {"answers": [answers(), answers()], "devices": [str(device) for device in devices_of(model)]}


def _refusal(base: Path) -> str:
    """The error where the GPUs together have no room for the weights."""
    accelerate.utils.get_max_memory = lambda *_: {0: 2**16, 1: 2**16}
    try:
        load_model(resolve(base), dtype=torch.float32, device="auto")
    except ConfigurationError as error:
        return str(error)
    return ""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny.save("llama", folder / "base")
        adapters = [random_adapters.save(base, folder / f"adapter-{n}", seed=n) for n in range(2)]
        seen: dict[str, Any] = {}
        for device in ("cpu", "auto"):  # the CPU first, without the fake GPUs' modes
            if device == "auto":
                fake_gpu()
            seen[device] = {
                "training": _trained(base, folder / device, device),
                "beside": _beside(base, adapters, device),
            }
        seen["refusal"] = _refusal(base)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
