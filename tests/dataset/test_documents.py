"""``read_nodes``: the same chunks in every run, and no document left out silently."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

import pymupdf
import pytest
from llama_index.core.schema import MetadataMode

from llama_index_finetune_structured import read_nodes
from llama_index_finetune_structured.dataset import document_hashes
from llama_index_finetune_structured.dataset.generate import documents
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
    assert "latin.txt: not UTF-8 text (line 1, byte 1); save it as UTF-8" in message


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


def _tree(folder: Path) -> Path:
    docs = folder / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "a.txt").write_text("Inside.")
    (docs / "deep" / "b.txt").write_text("Deep inside.")
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.txt").write_text("Outside.")
    return docs


def test_links_out_of_the_folder_are_left_out_with_a_warning_that_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = _tree(tmp_path)
    (docs / "file.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (docs / "deep" / "folder").symlink_to("../../outside")
    (docs / "gone.txt").symlink_to("../nowhere.txt")
    (docs / "broken.txt").symlink_to("nowhere.txt")
    nodes = read_nodes(docs)
    assert [node.ref_doc_id for node in nodes] == ["a.txt", "deep/b.txt"]
    for left_out in (
        f"{docs}/file.txt (a link out of the folder)",
        f"{docs}/deep/folder (a link out of the folder)",
        f"{docs}/gone.txt (a link out of the folder)",
        f"{docs}/broken.txt (no regular file)",
        "copy what belongs to the documents into it",
    ):
        assert left_out in caplog.text


def test_links_inside_the_folder_neither_repeat_a_document_nor_lead_in_circles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = _tree(tmp_path)
    (docs / "0-again.txt").symlink_to("a.txt")
    (docs / "deep" / "up").symlink_to("..")
    (docs / "deep" / "self").symlink_to(".")
    (docs / ".versions").mkdir()
    (docs / ".versions" / "c.txt").write_text("Behind a hidden folder, as Kubernetes mounts files.")
    (docs / "c.txt").symlink_to(".versions/c.txt")
    assert [node.ref_doc_id for node in read_nodes(docs)] == ["a.txt", "c.txt", "deep/b.txt"]
    assert not caplog.records
    (docs / "x.txt").symlink_to("y.txt")
    (docs / "y.txt").symlink_to("x.txt")
    assert len(read_nodes(docs)) == 3
    assert "x.txt (no regular file)" in caplog.text


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    docs = _tree(tmp_path)
    (tmp_path / "link").symlink_to(docs)
    assert [node.ref_doc_id for node in read_nodes(tmp_path / "link")] == ["a.txt", "deep/b.txt"]


def test_pipes_and_devices_do_not_hold_the_reading_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = _tree(tmp_path)
    os.mkfifo(docs / "pipe.txt")
    os.mkfifo(docs / "pipe.pdf")
    (docs / "zero.txt").symlink_to("/dev/zero")
    assert len(read_nodes(docs)) == 2
    assert f"{docs}/pipe.pdf (no regular file), {docs}/pipe.txt (no regular file)" in caplog.text
    assert f"{docs}/zero.txt (a link out of the folder)" in caplog.text


@pytest.mark.parametrize("size", [0, 2_000_000_000])
@pytest.mark.parametrize("suffix", [".txt", ".pdf"])
def test_an_empty_and_a_huge_file_are_named_and_not_read_into_memory(
    suffix: str, size: int, tmp_path: Path
) -> None:
    docs = _tree(tmp_path)
    with (docs / f"file{suffix}").open("wb") as file:
        file.truncate(size)  # sparse: it takes no space on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match=f"1 of 3 documents cannot be read.*\n.*file{suffix}: ") as raised:
        read_nodes(docs)
    if size and suffix == ".txt":
        assert "it has more than 100,000,000 bytes" in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_a_document_that_vanishes_while_the_folder_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = _tree(tmp_path)
    found = documents._documents_in

    def vanishing(folder: Path, suffixes: Iterable[str]) -> list[Path]:
        paths = found(folder, suffixes)
        (docs / "a.txt").unlink()
        return paths

    monkeypatch.setattr(documents, "_documents_in", vanishing)
    with pytest.raises(DatasetError, match=r"a\.txt: .*No such file"):
        read_nodes(docs)
