r"""A table as LaTeX, in ASCII, for a document that loads ``booktabs`` and nothing else."""

from __future__ import annotations

import re
import unicodedata

from robustfdd.report.grid import Grid

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # A bracket or a star at the start of a row would be read as an argument of the line end before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "`": "{`}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "†": r"$^\dagger$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
}
# The Greek letters that LaTeX has commands for: those that look like no Latin one.
_GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi"}
    | {"rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi"}
    | {"Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"}
)
# Combining accents and their commands; written out, they do not depend on the document's input encoding.
_ACCENTS = {
    "\u0300": r"\`",
    "\u0301": r"\'",
    "\u0302": r"\^",
    "\u0303": r"\~",
    "\u0304": r"\=",
    "\u0306": r"\u",
    "\u0307": r"\.",
    "\u0308": r"\"",
    "\u030a": r"\r",
    "\u030b": r"\H",
    "\u030c": r"\v",
    "\u0327": r"\c",
}
_LETTERS = {
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
}
_NORMS = {"L∞": r"$L_\infty$", "L2": r"$L_2$"}
#: From how many columns on a table is set smaller, to fit the 345 pt of a plain article: type size, column gap.
_SIZES = ((10, r"\scriptsize", "2pt"), (8, r"\footnotesize", "3pt"), (0, r"\small", "5pt"))


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
        if command in _GREEK:
            return rf"$\{command}$"
    if character in _LETTERS:
        return _LETTERS[character]
    letter, *accents = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and len(accents) == 1 and accents[0] in _ACCENTS:
        return f"{_ACCENTS[accents[0]]}{{{letter}}}"
    return rf"{{[}}U+{ord(character):04X}{{]}}"


def escape(text: str) -> str:
    """Plain text as LaTeX that prints it; a character that plain pdfLaTeX cannot print becomes its code point."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    parts = re.split(r"(L∞|\bL2\b)", text)
    escaped = "".join(_NORMS.get(part) or "".join(map(_character, part)) for part in parts)
    # Two hyphens side by side would be set as a dash.
    return re.sub("-(?=-)", "-{}", escaped)


def _stacked(header: str, text: bool) -> str:
    """A header with its words one below the other, or it would be wider than the figures under it."""
    words = [escape(word) for word in header.split()]
    lines = r" \\ ".join(words)
    return lines if len(words) == 1 else rf"\shortstack[{'l' if text else 'r'}]{{{lines}}}"


def to_latex(grid: Grid, *, label: str) -> str:
    """A ``table`` environment with caption and the label ``tab:LABEL``."""

    def cell(row: int, column: int, text: str) -> str:
        escaped = escape(text)
        return rf"\textbf{{{escaped}}}" if (row, column) in grid.marks else escaped

    n_columns = len(grid.headers)
    columns = "l" * grid.n_text + "r" * (n_columns - grid.n_text)
    size, gap = next((size, gap) for least, size, gap in _SIZES if n_columns >= least)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(grid.title)}. {escape(grid.caption)}}}",
        rf"  \label{{tab:{label}}}",
        # Classes differ in the space they leave below a caption that stands above; most leave none.
        r"  \vspace{4pt}",
        rf"  {size}",
        rf"  \setlength{{\tabcolsep}}{{{gap}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        "    " + " & ".join(_stacked(header, j < grid.n_text) for j, header in enumerate(grid.headers)) + r" \\",
        r"    \midrule",
    ]
    for i, row in enumerate(grid.rows):
        if i in grid.rules:
            lines.append(r"    \midrule")
        lines.append("    " + " & ".join(cell(i, j, text) for j, text in enumerate(row)) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"
