r"""A table as LaTeX, in ASCII, for a document that loads ``booktabs`` and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from robustfdd.report.exhibit import Exhibit

_SPECIAL = {
    **{character: rf"\{character}" for character in "{}_%&#$"},
    # A bracket or a star at the start of a row would be read as an argument of the line end before it.
    **{character: f"{{{character}}}" for character in "[]*`"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
    "→": r"$\to$",
    # The marks of the verdicts: what LaTeX has without a further package.
    "✓": r"$\surd$",
    "○": r"$\circ$",
    "✗": r"$\times$",
}
# The Greek letters that LaTeX has commands for: those that look like no Latin one.
_GREEK = re.compile(
    "alpha|beta|gamma|delta|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega|"
    "Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega"
)
# Combining accents and their commands; written out, they do not depend on the document's input encoding.
_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
_LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
_NORMS = {"L∞": r"$L_\infty$", "L2": r"$L_2$"}
#: The line of a plain article, in points.
_LINE = 345.0
#: What columns of names and figures may be wider than their characters on average, in points; running text makes room.
_MARGIN = 8.0
#: Lines of a header up to this many characters are not broken.
_SHORT = 6


@dataclass(frozen=True)
class _Size:
    """A type size: its command, the points between two columns, and those that a character takes on average."""

    command: str
    gap: float
    character: float

    def width(self, characters: Sequence[int]) -> float:
        """The width of a table whose columns have these widest lines, in points."""
        return sum(n * self.character + self.gap for n in characters)


_SIZES = (_Size(r"\small", 10, 4.6), _Size(r"\footnotesize", 6, 4.2), _Size(r"\scriptsize", 4, 3.7))
#: For a table that is too wide even so: its headers and second lines are smaller still.
_NARROW = _Size(r"\scriptsize", 3, 3.7)


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii() and character.isprintable():
        return character
    name = unicodedata.name(character, "")
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    if greek:
        command = greek[2].replace("LAMDA", "LAMBDA").lower()
        command = command.capitalize() if greek[1] == "CAPITAL" else command
        if _GREEK.fullmatch(command):
            return rf"$\{command}$"
    if character in _LETTERS:
        return rf"\{_LETTERS[character]}{{}}"
    letter, *accents = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and len(accents) == 1 and accents[0] in _ACCENTS:
        return rf"\{_ACCENTS[accents[0]]}{{{letter}}}"
    return rf"{{[}}U+{ord(character):04X}{{]}}"


def escape(text: str) -> str:
    """Plain text as LaTeX that prints it; a character that plain pdfLaTeX cannot print becomes its code point."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    parts = re.split(r"(L∞|\bL2\b)", text)
    escaped = "".join(_NORMS.get(part) or "".join(map(_character, part)) for part in parts)
    # Two hyphens side by side would be set as a dash.
    return re.sub("-(?=-)", "-{}", escaped)


def _lines(text: str, *, narrow: bool) -> list[str]:
    """A header in lines of about its longest word, or it would be wider than the figures under it."""
    words = re.sub(r"(?<=\w{2}-)(?=\w{4})" if narrow else "$^", " ", text).split()
    longest = max(map(len, words), default=0)
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= max(longest, _SHORT):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cell_lines(text: str, *, narrow: bool) -> list[str]:
    """A figure with its spread, an interval or a change, in two lines where a table is too wide for one."""
    return re.sub(r" (?:(±) |(to |→ ))", r"\n\1\2", text).split("\n") if narrow else [text]


def _header(text: str, *, narrow: bool, flush: str) -> str:
    lines = [escape(line) for line in _lines(text, narrow=narrow)]
    shown = r" \\ ".join(rf"\tiny {line}" if narrow else line for line in lines)
    return rf"\shortstack[{flush}]{{{shown}}}" if len(lines) > 1 else f"{{{shown}}}" if narrow else shown


def _figures(text: str, *, narrow: bool, flush: str) -> str:
    first, *more = [escape(line) for line in _cell_lines(text, narrow=narrow)]
    # Not a \shortstack, whose last line would stand beside the cells of one line.
    lines = r" \\ ".join([first, *(rf"\tiny {line}" for line in more)])
    return rf"\begin{{tabular}}[t]{{@{{}}{flush}@{{}}}}{lines}\end{{tabular}}" if more else first


def _widths(exhibit: Exhibit, *, narrow: bool) -> list[int]:
    """The characters of the widest line of each column; running text can be as narrow as its longest word."""
    widths = []
    for j, header in enumerate(exhibit.headers):
        lines = _lines(header, narrow=narrow)
        for row in exhibit.rows:
            lines += row[j].split() if j in exhibit.prose else _cell_lines(row[j], narrow=narrow)
        widths.append(max(map(len, lines), default=0))
    return widths


def _columns(exhibit: Exhibit, size: _Size, widths: list[int]) -> list[str]:
    """The type of each column; running text shares what the figures leave of the line."""
    rest = max(_LINE - _MARGIN - size.width(widths), 0)
    # In proportion to the longest text, so that all texts of a row take about as many lines.
    wish = {j: max(len(row[j]) for row in exhibit.rows) for j in exhibit.prose if exhibit.rows}
    types = []
    for j, width in enumerate(widths):
        if j in wish:
            share = rest * wish[j] / max(sum(wish.values()), 1)
            types.append(rf"p{{{(width * size.character + share) / _LINE:.3f}\linewidth}}")
        else:
            types.append("l" if j < exhibit.n_text else "r")
    return types


def _tabular(exhibit: Exhibit, columns: list[str], *, narrow: bool) -> list[str]:
    """The lines of the ``tabular`` environment, one a row."""
    # \raggedright, which suits narrow lines, makes \\ end a line of the text and not the row.
    end = r"\tabularnewline" if exhibit.prose else r"\\[1.5pt]" if narrow else r"\\"
    flush = ["l" if j < exhibit.n_text else "r" for j in range(len(columns))]

    def cell(row: int, column: int) -> str:
        text = exhibit.rows[row][column]
        if column in exhibit.prose:
            shown = rf"\raggedright {escape(text)}"
        else:
            shown = _figures(text, narrow=narrow, flush=flush[column])
        return rf"\textbf{{{shown}}}" if (row, column) in exhibit.marks else shown

    headers = [_header(text, narrow=narrow, flush=flush[j]) for j, text in enumerate(exhibit.headers)]
    lines = [
        rf"\begin{{tabular}}{{{''.join(columns)}}}",
        r"  \toprule",
        f"  {' & '.join(headers)} {end}",
        r"  \midrule",
    ]
    for i in range(len(exhibit.rows)):
        if i in exhibit.rules:
            lines.append(r"  \midrule")
        lines.append(f"  {' & '.join(cell(i, j) for j in range(len(columns)))} {end}")
    lines += [r"  \bottomrule", r"\end{tabular}"]
    # What is too wide even when it is narrow sticks out on both sides alike.
    return [r"\makebox[\linewidth][c]{%", *lines, "}"] if narrow else lines


def to_latex(exhibit: Exhibit, *, label: str) -> str:
    """A ``table`` environment with caption and the label ``tab:LABEL``."""
    widths = _widths(exhibit, narrow=False)
    # A table of text is set small, so that its lines hold more than a word or two.
    sizes = _SIZES[-1:] if exhibit.prose else _SIZES
    size = next((size for size in sizes if size.width(widths) <= _LINE), _NARROW)
    narrow = size is _NARROW
    columns = _columns(exhibit, size, _widths(exhibit, narrow=narrow))
    # LaTeX numbers its tables itself.
    title = re.sub(r"^Table \d+: (.)", lambda found: found[1].upper(), exhibit.title)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(title)}. {escape(exhibit.caption)}}}",
        rf"  \label{{tab:{label}}}",
        # Classes differ in the space they leave below a caption that stands above; most leave none.
        r"  \vspace{4pt}",
        rf"  {size.command}",
        # The space on one side of a column.
        rf"  \setlength{{\tabcolsep}}{{{size.gap / 2:g}pt}}",
        *(f"  {line}" for line in _tabular(exhibit, columns, narrow=narrow)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
