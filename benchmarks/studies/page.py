"""`python -m benchmarks.studies.page` writes what the studies say: what is concluded into `docs/results/concluded.md`,
every number into `docs/results/README.md`, a line each into the README. It stands between two marks of each, made of the
committed rows alone; what stands around them is written by hand.
"""

# ruff: noqa: E501 - lines of Markdown

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.scaling import MFU
from benchmarks.studies.answers import ANSWERS, Answer
from benchmarks.studies.noise import floor
from benchmarks.studies.plan import STUDIES
from benchmarks.studies.rows import read
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import markdown_table

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "results" / "README.md", ROOT / "README.md"
CONCLUDED = PAGE.with_name("concluded.md")
#: heading of what is concluded -> how the verdicts below it begin
CONCLUSIONS = {"Not so at this scale": "does not hold", "Not to be told here": "not ", "Seen at this scale": "holds"}
BEGIN, END = (
    "<!-- studies: written by `python -m benchmarks.studies.page`, change the rows instead -->",
    "<!-- studies end -->",
)

ASSUMED = f"""What it would take counts forward and backward passes (`python -m benchmarks.studies.needs`), not supervision, sampling or evaluation;
days are those of one H100 at {100 * MFU:.0f} % of its bf16 peak, which is assumed. Three seeds find what they find: how large a seed's
effect is at that size nobody has published.
"""


def main() -> None:
    """Draw the figures, and write the three blocks."""
    answers = found(PAGE.parent)
    for path, block in blocks(answers):
        text = path.read_text(encoding="utf-8")
        write_text(path, with_block(text, block))
        print(path)


def blocks(answers: list[Answer]) -> list[tuple[Path, str]]:
    """What belongs between the marks of which page."""
    return [(PAGE, page(answers)), (CONCLUDED, concluded(answers)), (README, claims(answers))]


def found(pictures: Path) -> list[Answer]:
    """What the studies that have two seeds or more say; their figures are drawn into a folder."""
    return [answer for make in ANSWERS if (answer := make(pictures)) is not None]


def with_block(text: str, block: str) -> str:
    """The text with what stands between its marks replaced.

    Raises:
        ValueError: it has not one pair of marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the text must have one line {BEGIN} and one line {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text)


def page(answers: list[Answer]) -> str:
    """The block of `docs/results/README.md`: the claims, each study, and the noise floor."""
    parts = ["## The paper's claims, at this scale\n", markdown_table(_claims(answers)), ASSUMED]
    for answer in answers:
        parts.append(f"## {answer.title}\n\n{answer.body}\n")
        parts.append(
            f"Repeat it: `{answer.command}`; rows: [{answer.file}](../../benchmarks/results/studies/{answer.file}).\n"
        )
    if open_ := _unfinished():
        parts.append(
            "## What is not done\n\nRuns of each study that are there, of those that it is made of; what is told above is told of these.\n"
        )
        parts.append(markdown_table(open_))
    if lines := floor():
        parts.append(
            "## The noise floor\n\nWhat another seed alone does to each embedded default, and the difference between two settings that so "
            "many seeds of each\nwould find four times in five without pairing them. Runs of the same seed share data and noise, and their paired\n"
            "differences are smaller: the comparisons above say how small a difference each would have found.\n"
        )
        parts.append(markdown_table(lines))
    return "\n".join(parts)


def _unfinished() -> list[dict[str, str]]:
    counts = {name: (len(read(name)), len(study.jobs)) for name, study in STUDIES.items()}
    counts["fig6"] = len(read("fig6")), 90
    questions = {name: study.question for name, study in STUDIES.items()} | {
        "fig6": "Which of the five rules is the best?"
    }
    return [
        {"study": name, "question": questions[name], "runs": f"{done} of {whole}"}
        for name, (done, whole) in sorted(counts.items())
        if done < whole
    ]


def _claims(answers: list[Answer]) -> list[dict[str, str]]:
    return [
        {
            "the paper says": answer.claim,
            "here": answer.verdict,
            "to tell it at the paper's scale": answer.needs,
        }
        for answer in answers
        if answer.needs
    ]


def concluded(answers: list[Answer]) -> str:
    """The block of `docs/results/concluded.md`: the paper's claims by what became of them, each with the picture and
    the rows that carry it, then what surrounds them.
    """
    asked = [answer for answer in answers if answer.needs]
    parts, told = [], set()
    for heading, begins in CONCLUSIONS.items():
        of = [each for each in asked if each.verdict.startswith(begins)]
        told |= {each.title for each in of}
        parts.append(f"## {heading}\n\n" + ("\n".join(map(_conclusion, of)) or "Nothing.\n"))
    parts.append("## Beside the paper\n\n" + "\n".join(_conclusion(each) for each in answers if each.title not in told))
    return "\n".join(parts)


def _conclusion(answer: Answer) -> str:
    said = [f"### {answer.title}\n"]
    if not answer.claim.startswith("("):
        said.append(f"The paper: {answer.claim}. Here: **{answer.verdict}**.\n")
    said.append(f"{answer.line}\n")
    if picture := re.search(r"!\[[^\]]*\]\([^)]*\)", answer.body):
        said.append(f"{picture[0]}\n")
    rows = f"[{answer.file}](../../benchmarks/results/studies/{answer.file})"
    needs = f" At the paper's scale: {answer.needs}." if answer.needs else ""
    said.append(f"[All numbers](README.md#{_anchor(answer.title)}); rows: {rows}; again: `{answer.command}`.{needs}\n")
    return "\n".join(said)


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")


def claims(answers: list[Answer]) -> str:
    """The block of the README: a line a claim of the paper."""
    return "\n".join(
        f"- **{answer.title}** {answer.verdict[0].upper()}{answer.verdict[1:]}. {answer.line}"
        for answer in answers
        if answer.needs
    )


if __name__ == "__main__":
    main()
