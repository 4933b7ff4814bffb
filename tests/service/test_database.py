"""The service's database, opened by several processes at once."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from llama_index_finetune_structured.service.database import Database


def test_a_database_that_another_process_just_makes_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself does not wait before it changes the journal of a file that is in use."""
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE of_another (number INTEGER)")
    threading.Timer(0.5, other.close).start()
    database = Database(path)
    with database.write():
        pass
    database.close()
