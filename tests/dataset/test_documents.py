"""``read_nodes``: the same chunks in every run, and no document left out silently."""

from __future__ import annotations

from pathlib import Path

import pymupdf
import pytest
from llama_index.core.schema import MetadataMode

from llama_index_finetune_structured import read_nodes
from llama_index_finetune_structured.dataset import document_hashes
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError


def _pdf(path: Path, *pages: str, **options: object) -> None:
    document = pymupdf.open()
    for page in pages:
        document.new_page().insert_text((72, 72), page)
    document.save(path, **options)
    document.close()


def test_pdfs_texts_and_markdown_become_chunks_of_their_documents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    _pdf(tmp_path / "deep" / "a.pdf", "First page.", "Second page.")
    (tmp_path / "b.MD").write_text("# Heading\n\nA [link](x).")
    (tmp_path / "c.txt").write_text(" ".join(f"Sentence number {n} stands here." for n in range(200)))
    (tmp_path / ".hidden.txt").write_text("not this")
    (tmp_path / "d.bin").write_bytes(b"\x00")
    nodes = read_nodes(tmp_path, chunk_size=128)
    assert list(dict.fromkeys(node.ref_doc_id for node in nodes)) == ["b.MD", "c.txt", "deep/a.pdf"]
    by_id = {node.node_id: node.get_content(MetadataMode.LLM) for node in nodes}
    assert by_id["b.MD#0"] == "file_name: b.MD\n\n# Heading\n\nA [link](x)."
    assert "First page." in by_id["deep/a.pdf#0"]
    assert "Second page." in by_id["deep/a.pdf#0"]
    assert "c.txt#5" in by_id


def test_a_second_reading_gives_the_same_ids_and_texts(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("One. " * 900)
    first, second = ([(n.node_id, n.text) for n in read_nodes(tmp_path, chunk_size=128)] for _ in range(2))  # type: ignore[attr-defined]
    assert first == second
    assert len(first) > 3


def test_every_unreadable_document_is_named_with_a_fix(tmp_path: Path) -> None:
    _pdf(tmp_path / "scan.pdf", "")
    aes_256 = pymupdf.PDF_ENCRYPT_AES_256  # type: ignore[attr-defined]
    _pdf(tmp_path / "locked.pdf", "x", encryption=aes_256, user_pw="secret")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "good.txt").write_text("Good.")
    with pytest.raises(DatasetError, match="4 of 5 documents cannot be read") as caught:
        read_nodes(tmp_path)
    message = str(caught.value)
    assert "scan.pdf: no text in it; if it is a scan, run OCR" in message
    assert "locked.pdf: needs a password" in message
    assert "broken.pdf: " in message
    assert "latin.txt: not UTF-8 text (byte 1); save it as UTF-8" in message


def test_a_folder_that_is_not_there_or_holds_nothing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        read_nodes(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no documents in it; expected \.pdf, \.txt"):
        read_nodes(tmp_path)
    with pytest.raises(ConfigurationError, match="chunk_size 10"):
        read_nodes(tmp_path, chunk_size=10)


def test_a_documents_hash_and_chunks_depend_on_its_text_and_not_on_its_name(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {n} stands here." for n in range(300))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / f"{'a long name ' * 9}.txt").write_text(text)
    (tmp_path / "b.txt").write_text(f"{text} One more.")
    nodes = read_nodes(tmp_path, chunk_size=128)
    short, long, other = document_hashes(nodes).values()
    assert short == long != other
    texts = {
        name: [n.get_content() for n in nodes if n.ref_doc_id == name] for name in document_hashes(nodes)
    }
    first, second, _ = texts.values()
    assert first == second
