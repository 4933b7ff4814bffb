# %% [markdown]
# # A student that knows when it is unsure, and learns from what it hands over
#
# 60 labelled rows are too few for a student that is left alone. They are enough for one that knows when it is unsure:
# a `Cascade` keeps its sure answers, puts the other questions to the teacher and keeps the teacher's answers, and
# `improve` trains the next student on them. The task: API cards of functions, from their documentation, in three parts
# of a stream of 400 questions.
#
# **With a real teacher** set `OPENAI_API_BASE` and `OPENAI_API_KEY`; without them a stand-in on loopback answers with
# a docstring parser (`loopback.py`), which is the gold, too. The student is real: each round trains the embedded model
# on your machine for some minutes. `BASE_MODEL`, `LABELLED`, `STREAM` and `MINUTES` change the size.

# %%
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai import OpenAI
from loopback import use_openai

from llama_index_finetune_structured import (
    Cascade,
    FinetuneDataset,
    FollowingLoraLLM,
    Prices,
    improve,
    trust_of,
    tune,
)
from llama_index_finetune_structured.demo.corpus import ApiCard, answerable, functions, parse_card

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "smollm2-135m-instruct")
LABELLED = int(os.environ.get("LABELLED", "60"))
STREAM = int(os.environ.get("STREAM", "400"))
MINUTES = float(os.environ["MINUTES"]) if "MINUTES" in os.environ else None
SURE, ROUNDS = 0.8, 3
OUTPUT = Path("example-output/cascade")
RUN = OUTPUT / "run"
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()

# %% [markdown]
# ## 60 labelled rows
#
# Two fifths are held out: they tell how sure the student's answers are, and whether a new one is better.

# %%
documented = [(function, parse_card(function.name, function.reference)) for function in functions()]
documented = [(function, card) for function, card in documented if answerable(card)]
random.Random(0).shuffle(documented)
questions = {
    f"function: {function.name}\n\n{function.reference}\n\nQuestion: {function.question}": card
    for function, card in documented[: LABELLED + STREAM]
}
rows, stream = list(questions.items())[:LABELLED], list(questions.items())[LABELLED:]
data = FinetuneDataset.from_pairs(
    [(question, card.model_dump()) for question, card in rows], schema=ApiCard.model_json_schema()
)
train, held_out = data.split(0.6, seed=0)
tune(train, BASE, validation=held_out, output_cls=ApiCard, output_dir=RUN, minutes=MINUTES)

# %% [markdown]
# ## The stream
#
# One cascade answers the whole stream; its student follows the run, so that each part is answered by the version that
# the rounds before have made. An answer is kept where the probability that it is right is at least 0.8. 60 rows are
# too few to promise an accuracy: `Cascade(accuracy=0.95)` needs some hundred held-out rows, and says so.

# %%
teacher = OpenAI(model=TEACHER, temperature=0, timeout=60)
prices = Prices(input_per_million=2.0, output_per_million=8.0)  # of the teacher, in dollars
capture = OUTPUT / "handed-over.jsonl"
cascade = Cascade(FollowingLoraLLM(run=RUN), teacher, threshold=SURE, capture=capture, prices=prices)


def answered(question):
    """The cascade's answer."""
    return cascade.structured_predict(ApiCard, PromptTemplate("{question}"), question=question)


rounds = []
print(f"{'round':>5} {'answers':>8} {'right':>6} {'handed over':>12} {'sure and right':>15} {'spent':>8}")
for number in range(ROUNDS):
    part = stream[number * len(stream) // ROUNDS : (number + 1) * len(stream) // ROUNDS]
    spent = cascade.summary()["money"]["spent"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answered, [question for question, _ in part]))
    spent = cascade.summary()["money"]["spent"] - spent
    right = [answer == card for answer, (_, card) in zip(answers, part, strict=True)]
    own = [trust_of(answer).answered_by != TEACHER for answer in answers]
    kept = [is_right for is_right, is_own in zip(right, own, strict=True) if is_own]
    print(
        f"{number + 1:>5} {len(part):>8} {sum(right) / len(right):>6.0%} {1 - sum(own) / len(own):>12.0%} "
        f"{f'{sum(kept)} of {len(kept)}':>15} {spent:>7.3f}$"
    )
    rounds.append((sum(right) / len(right), 1 - sum(own) / len(own), spent))
    if number + 1 < ROUNDS:
        result = improve(RUN, capture, output_cls=ApiCard, minutes=MINUTES)
        print(f"      version {result.version}: {result.reason}")

# %% [markdown]
# ## The rounds as a picture


# %%
def picture(rounds):
    """An SVG: three bars a round, right answers, share handed over, and money against that of the first round."""
    colours = {"right": "#1f9d68", "handed over": "#d1495b", "money, of round 1": "#2f7fd1"}
    most = max(rounds[0][2], 1e-9)
    body = ""
    for number, (right, share, spent) in enumerate(rounds):
        x = 40 + 190 * number
        body += f"<text x='{x}' y='190'>round {number + 1}: ${spent:.3f}</text>"
        values = (right, share, spent / most)
        for at, (value, colour) in enumerate(zip(values, colours.values(), strict=True)):
            left, height = x + 52 * at, 130 * value
            body += (
                f"<rect x='{left}' y='{170 - height:.0f}' width='40' height='{height:.0f}' fill='{colour}'/>"
            )
            body += f"<text x='{left}' y='{164 - height:.0f}'>{value:.0%}</text>"
    for at, (name, colour) in enumerate(colours.items()):
        body += f"<rect x='{40 + 150 * at}' y='8' width='12' height='12' fill='{colour}'/>"
        body += f"<text x='{58 + 150 * at}' y='19'>{name}</text>"
    size = f"viewBox='0 0 {190 * len(rounds) + 40} 200'"
    style = "font-family='sans-serif' font-size='13' style='background:#fff'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>{body}</svg>"


print((OUTPUT / "rounds.svg").write_text(picture(rounds), encoding="utf-8") and OUTPUT / "rounds.svg")

# %% [markdown]
# ## How sure one answer is, field by field

# %%
for field in trust_of(answers[own.index(True)] if any(own) else answers[0]).fields:
    where = (
        "not in the text"
        if field.evidence is None
        else f"characters {field.evidence.start} to {field.evidence.end}"
    )
    sure = "unknown" if field.probability is None else f"{field.probability:.2f}"
    print(f"{'.'.join(map(str, field.path)):24} {str(field.value)[:40]!r:44} {sure:8} {where}")
