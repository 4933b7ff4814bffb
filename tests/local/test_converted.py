"""The folder that a GGUF file is de-quantised into is whole, or it is made again."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.export import export_adapter
from llama_index_finetune_structured.local.model import converted
from llama_index_finetune_structured.local.model.base_files import GGUF
from llama_index_finetune_structured.local.model.base_models import (
    gguf_source,
    load_model,
    load_tokenizer,
    resolve,
)
from tests import exporting

pytest.importorskip("gguf", reason="GGUF files are not readable (extra local)")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GGUF file."""
    folder = tmp_path_factory.mktemp("source")
    adapter = exporting.train(exporting.save_base("llama", folder / "base"), folder / "run").adapter
    return export_adapter(adapter, folder / "base.gguf", format="gguf-base", dtype="f32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_converted_file_is_named_by_its_hash_and_loads(source: Path, cache: Path) -> None:
    base = resolve(source)
    assert base.path == cache / base.sha256
    assert base.files == {GGUF: base.sha256}
    load_tokenizer(base)
    load_model(base, dtype=torch.float32)


@pytest.mark.parametrize("how", ["cut", "missing", "no manifest", "damaged manifest"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_converted_folder_with_a_missing_or_cut_file_is_made_again(
    how: str, name: str, source: Path, cache: Path
) -> None:
    folder = resolve(source).path
    file, manifest = folder / name, folder / "conversion.json"
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[:-1])
    elif how == "missing":
        file.unlink()
    else:
        manifest.write_text('{"../x": [1, "a"]}') if how == "damaged manifest" else manifest.unlink()
        file.write_bytes(b"")
    assert resolve(source).path == folder
    assert file.read_bytes() == whole


def test_a_converted_file_of_other_content_is_refused_with_the_folder_to_remove(
    source: Path, cache: Path
) -> None:
    base = resolve(source)
    for name, read in (
        ("model.safetensors", lambda b: load_model(b, dtype=torch.float32)),
        ("tokenizer.json", load_tokenizer),
    ):
        file = base.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(
            ConfigurationError, match=rf"{name}: is not what was written there: remove the folder"
        ):
            read(base)
        file.write_bytes(whole)
        read(base)


def test_a_file_behind_a_link_of_the_hub_s_cache_is_a_gguf_file_by_the_link_s_name(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    blob = shutil.copy(source, tmp_path / "0123abcd")
    (tmp_path / "model.gguf").symlink_to(blob)
    base = resolve(tmp_path / "model.gguf")
    assert gguf_source(base) == tmp_path / "model.gguf"
    assert resolve(base.name) == base, "as an adapter's card names it"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_who_may_read_the_file_may_read_its_conversion(
    mode: int, source: Path, cache: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(source, tmp_path / "x.gguf"))
    file.chmod(mode)
    folder = resolve(file).path
    assert stat.S_IMODE(folder.stat().st_mode) == {0o600: 0o700, 0o640: 0o750, 0o644: 0o755}[mode]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}


def test_a_converted_folder_that_a_user_copied_and_changed_is_the_user_s_own(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    for manifest in (None, '{"note": "of another program"}'):
        own = shutil.copytree(resolve(source).path, tmp_path / str(manifest is None))
        if manifest is not None:
            (own / "conversion.json").write_text(manifest)
        with (own / "tokenizer_config.json").open("a") as file:
            file.write("\n")
        load_tokenizer(resolve(own))
        load_model(resolve(own), dtype=torch.float32)


@pytest.mark.parametrize("how", ["a file", "a pipe for the lock"])
def test_a_cache_that_cannot_be_written_is_an_error_that_names_its_setting(
    how: str, source: Path, cache: Path
) -> None:
    if how == "a file":
        cache.parent.write_text("")
    else:
        cache.mkdir(parents=True)
        os.mkfifo(cache / ".lock")
    with pytest.raises(ConfigurationError, match="set LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE to a folder"):
        resolve(source)


def test_what_killed_conversions_left_is_removed_by_the_next(source: Path, cache: Path) -> None:
    left = cache / ".unfinished-abc"
    (left / "new" / "abc").mkdir(parents=True)
    (left / "new" / "abc" / "model.safetensors").write_bytes(b"half")
    resolve(source)
    assert not left.exists()


def test_the_work_of_a_living_conversion_is_left_alone(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from pathlib import Path; from llama_index_finetune_structured.local.model import converted\n"
        "with converted._alone_in(Path(sys.argv[1])):\n"
        "    Path(sys.argv[1], '.unfinished-other').mkdir(); print('in', flush=True); sys.stdin.readline()"
    )
    arguments = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        found: list[Any] = []
        mine = threading.Thread(target=lambda: found.append(resolve(source)))
        mine.start()
        time.sleep(0.5)
        assert (cache / ".unfinished-other").is_dir()
        assert mine.is_alive(), "it waits for the other process"
        other.stdin.write("\n")
        other.stdin.close()
        mine.join(120)
    assert found[0].path.is_dir()
    assert not (cache / ".unfinished-other").exists(), "the other process has ended"


def test_two_conversions_at_once_make_one_folder(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = converted._write

    def noted(gguf: Path, target: Path, transformers: Any) -> None:
        written.append(target)
        write(gguf, target, transformers)

    monkeypatch.setattr(converted, "_write", noted)
    threads = [threading.Thread(target=resolve, args=(source,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [resolve(source).path]


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_gguf_file_is_converted_or_refused(
    seed: int, source: Path, cache: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    content = bytearray(source.read_bytes())
    header = content.find(b"token_embd.weight")
    at = draw.randrange(min(header + 2000, len(content)))
    if seed % 4 == 0:
        content = content[:at]
    else:
        for n in range(draw.choice([1, 1, 4, 8])):
            content[at + n] = draw.randrange(256)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    started = time.monotonic()
    try:
        base = resolve(damaged)
        load_tokenizer(base)
        load_model(base, dtype=torch.float32)
    except ConfigurationError as error:
        message = str(error)
    else:
        message = str(damaged)
    assert "damaged.gguf" in message
    assert time.monotonic() - started < 60
    assert not list(cache.glob(".unfinished*"))
