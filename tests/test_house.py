"""Rules of the package: its imports, names and docstrings, what importing loads, what installing brings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import llama_index_finetune_structured as package

ROOT = Path(package.__file__).parent
ROW = [
    "printable", "notebook_html", "progress_bar", "panics", "errors", "data_frames", "lazy", "example",
    "answer_values", "answer_classes", "forks", "descriptors", "locks", "files", "checksums", "jsonl",
    "jsonl_store", "json_schema", "written_values", "stated_rules", "background", "formats", "capture", "trust",
    "local", "dataset", "llms", "engines", "evaluation", "tuning", "service", "demo", "cli",
]  # fmt: skip
PUBLIC = [
    "AgentRun", "AgentScorecard", "AnswerReport", "AsWritten", "CallPolicy", "CaptureError", "Cascade",
    "CheckReport", "CheckpointError", "ConfigurationError", "DatasetError", "DatasetSummary", "DocumentProblem",
    "DocumentText", "EndTrust", "EngineError", "Evidence", "Example", "FieldRule", "FieldTrust",
    "FinetuneDataset", "FinetuneEngine", "FinetuneStructuredError", "FollowingLoraLLM", "GeneratedQuestions",
    "GradientAIFineTuningHandler", "GradientBaseModelLLM", "GradientFinetuneEngine", "GradientModelAdapterLLM",
    "Improvement", "LabelledDocuments", "LeakageReport", "LearningCurve", "LlamaCppServer", "LogProbability",
    "LoraFinetuneEngine", "LoraJob", "LoraLLM", "LoraSettings", "Message", "MissingDependencyError", "Money",
    "OpenAIFineTuningHandler", "OpenAIFinetuneEngine", "OpenAIPydanticProgram", "Parity", "ParityError",
    "Prices", "PromptTooLongError", "Question", "QuestionGenerator", "QueueFullError", "RequestTimeoutError",
    "RetrievalAugmentedDatasetBuilder", "Revalidation", "Scorecard", "ServiceError", "ServingCommand",
    "ServingRecipe", "Source", "StructuredAnswerError", "SunsetWarning", "TextScorecard", "Timeouts", "Trust",
    "Usage", "aanswer_questions", "acalibrate", "acompare", "acompare_agents", "alabel_documents",
    "answer_questions", "answer_rules", "arun_agent", "ascore_turns", "aselect", "calibrate", "capture",
    "check", "compare", "compare_agents", "compare_texts", "embedding_similarity", "export_adapter",
    "hosted_llm", "improve", "label_documents", "learning_curve", "load_schema", "parity", "read_documents",
    "read_nodes", "rollback", "run_agent", "score_turns", "select", "served_llm", "serving_commands",
    "text_mode", "trust_of", "tune",
]  # fmt: skip
LOCAL_ROW = ["schema", "model", "train", "generate", "export"]
EVALUATION_ROW = [
    "run", "score", "results", "report", "scorecard", "comparison", "calibration", "learning_curves",
    "export_parity", "texts", "spread", "selection", "agents",
]  # fmt: skip
HEAVY = [
    "torch",
    "transformers",
    "peft",
    "llguidance",
    "openai",
    "gradientai",
    "networkx",
    "scipy",
    "sklearn",
    "babel",
    "dateparser",
]


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def _imported(path: Path) -> set[str]:
    """The modules of this package that a file imports anywhere: also in functions and under TYPE_CHECKING."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(MODULES[_module_name(path)]):
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(MODULES)


def test_no_file_imports_itself_through_others() -> None:
    """No file may import itself through others; imports in functions and under TYPE_CHECKING count."""
    imports = {_module_name(path): _imported(path) for path in ROOT.rglob("*.py")}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        names = [name.removeprefix(f"{package.__name__}.") for name in reversed(error.args[1])]
        circle = " imports ".join(names)
        pytest.fail(f"a circle of imports: {circle}; move what they share into a module of its own")


def test_imports_inside_the_package_are_relative() -> None:
    """Inside the package, its modules are imported by relative imports only."""
    absolute = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and str(node.module).split(".")[0] == package.__name__
        )
        or (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] == package.__name__ for alias in node.names)
        )
    ]
    assert not absolute, f"absolute imports of the package inside it: {absolute}"


def _public_names(tree: ast.Module) -> set[str]:
    """The classes of a module without a leading underscore, and its functions in ``__all__``, if it has one."""
    exported = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = set(ast.literal_eval(node.value))
    return {
        node.name
        for node in tree.body
        if (isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
        or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.name in exported if exported is not None else not node.name.startswith("_"))
        )
    }


def test_no_two_public_classes_or_functions_share_a_name() -> None:
    """A public class or function has a name of its own; only ``register`` of the command line's modules repeats."""
    homes = defaultdict(set)
    for module, tree in MODULES.items():
        for name in _public_names(tree):
            homes[name].add(module.removeprefix(f"{package.__name__}."))
    shared = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert {module.partition(".")[0] for module in shared.pop("register")} == {"cli"}
    assert not shared, f"names with two meanings: {shared}"


def test_every_module_says_in_one_sentence_what_it_is() -> None:
    """Every module has a docstring whose first line ends with a full stop."""
    first_lines = {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in MODULES.items()}
    without = [name for name, line in first_lines.items() if not line.endswith(".")]
    assert not without, f"no docstring whose first line ends with a full stop: {without}"


@pytest.mark.parametrize("part", ROW)
def test_a_part_imports_only_from_those_left_of_it(part: str) -> None:
    """A part (folder or file at the top) imports only from the parts left of it in ROW."""
    files = sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]
    assert files
    allowed = set(ROW[: ROW.index(part) + 1])
    imported = {file: {name.split(".")[1] for name in _imported(file) if "." in name} for file in files}
    wrong = {str(file.relative_to(ROOT)): sorted(parts - allowed) for file, parts in imported.items()}
    assert {file: names for file, names in wrong.items() if names} == {}


def _modules_imported(path: Path) -> set[str]:
    """The package's modules that a file imports from, anywhere, as paths such as ``dataset.splits``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    ("files", "barred"),
    [
        ("*.py", ("dataset.checks", "dataset.generate", "dataset.schema")),
        ("schema/*.py", ("dataset.checks", "dataset.generate")),
        ("checks/*.py", ("dataset.generate", "dataset.schema")),
        ("generate/*.py", ("dataset.checks", "dataset.schema")),
    ],
)
def test_dataset_sub_folders_import_the_files_beside_them_and_never_the_other_way(
    files: str, barred: tuple[str, ...]
) -> None:
    paths = [path for path in (ROOT / "dataset").glob(files) if path.name != "__init__.py"]
    assert paths
    wrong = {path.name: {m for m in _modules_imported(path) if m.startswith(barred)} for path in paths}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("part", LOCAL_ROW)
def test_a_part_of_the_local_engine_imports_only_from_those_left_of_it(part: str) -> None:
    paths = sorted((ROOT / "local" / part).rglob("*.py"))
    assert paths
    barred = tuple(f"local.{other}" for other in LOCAL_ROW[LOCAL_ROW.index(part) + 1 :])
    wrong = {path.name: {m for m in _modules_imported(path) if m.startswith(barred)} for path in paths}
    assert not any(wrong.values()), wrong


def test_every_part_of_the_local_engine_stands_in_its_row() -> None:
    assert {path.parent.name for path in ROOT.glob("local/*/__init__.py")} == set(LOCAL_ROW)


def test_evaluation_runs_then_scores_then_reports() -> None:
    """A module of evaluation/ imports only from those left of it in EVALUATION_ROW."""
    files = [file for file in (ROOT / "evaluation").rglob("*.py") if file.name != "__init__.py"]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    imports = {name: _modules_imported(file) & set(modules) for name, file in modules.items()}
    place = {name: EVALUATION_ROW.index(name.split(".")[1]) for name in modules}
    wrong = {name: {m for m in imported if place[m] > place[name]} for name, imported in imports.items()}
    assert not any(wrong.values()), wrong


def test_no_lazy_name_is_the_name_of_a_sub_module() -> None:
    doors = [path for path in ROOT.rglob("__init__.py") if "lazy_names(" in path.read_text(encoding="utf-8")]
    assert len(doors) >= 4
    for door in doors:
        name = ".".join((package.__name__, *door.parent.relative_to(ROOT).parts))
        modules = {path.stem for path in door.parent.iterdir()}
        assert modules & set(import_module(name).__all__) <= (
            {"capture"} if door.parent == ROOT else set()
        ), name


def test_every_name_of_a_lazy_front_door_loads() -> None:
    """A lazy ``__init__`` loads every name of its ``__all__`` and declares the same names for type checkers."""
    for name, tree in MODULES.items():
        doors = [
            node for node in tree.body if isinstance(node, ast.If) and "lazy_names(" in ast.unparse(node)
        ]
        for door in doors:
            declared = {alias.name for node in door.body for alias in getattr(node, "names", ())}
            module = import_module(name)
            eager = {"capture"} if module is package else set()
            assert declared | eager == set(module.__all__), name
            assert [key for key in module.__all__ if not hasattr(module, key)] == []


def test_every_part_stands_in_the_row() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == set(ROW)


def _python(code: str) -> str:
    """What a fresh interpreter that turns warnings into errors prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT.parent).stdout.strip()


def test_importing_the_package_loads_nothing_heavy_and_warns_of_nothing() -> None:
    code = f"import sys, {package.__name__}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _python(code) == "[]"


@pytest.mark.parametrize("name", ["LoraLLM", "LoraFinetuneEngine", "capture", "compare", "FinetuneDataset"])
def test_naming_a_class_loads_no_torch(name: str) -> None:
    code = f"import sys; from {package.__name__} import {name}; print('torch' in sys.modules)"
    assert _python(code) == "False"


def test_the_public_names_are_these_and_all_load() -> None:
    assert sorted(PUBLIC) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_the_local_engine_loads_no_llama_index() -> None:
    names = [
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in ROOT.glob("local/**/*.py")
    ]
    assert len(names) > 30
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {names!r}]; "
        "print([m for m in sys.modules if m.startswith('llama_index') and 'finetune' not in m])"
    )
    assert _python(code) == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        getattr(package, "NoSuchThing")  # noqa: B009


def test_installing_without_extras_brings_nothing_heavy() -> None:
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    assert names == {
        "llama-index-core",
        "llama-index-instrumentation",
        "pydantic",
        "jsonschema",
        "referencing",
        "regex",
        "numpy",
        "pyyaml",
        "tiktoken",
        "tqdm",
        "tenacity",
        "typer",
        "typing-extensions",
        "rich",
        "platformdirs",
        "detect-secrets",
        "phonenumbers",
    }
    assert {"openai", "gradient", "local", "pdf", "demo", "dev"} <= set(project["optional-dependencies"])


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
