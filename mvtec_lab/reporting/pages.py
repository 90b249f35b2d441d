"""Render the lab's pages: self-contained HTML in one style, without scripts or addresses outside the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mvtec_lab.config import Config
from mvtec_lab.reporting.attempts import Estimate
from mvtec_lab.reporting.words import number, p_value
from mvtec_lab.results import GOOD, flatten, write_whole

SHORT = 4  # sections, which one or two screens show
# What a phone has room for: letters in a row, of which a name, which may be wrapped, takes as many; columns of texts.
LETTERS, NAME, WORDS = 49, 14, 3
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_CELL = re.compile(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", re.DOTALL)
_DATA = re.compile(r"<td\b([^>]*)>(.*?)</td>", re.DOTALL)
_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_SECTION = re.compile(r"<h2>(.*?)</h2>")
# Where a key, a name or a list may be broken in a narrow column; no number is.
_BREAK = re.compile(r"(?<=[^\W\d_][._])(?=[^\W\d_])|(?<=[,/=|])(?=\S)")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page, complete or not at all; a long one has its contents below its head.

    Args:
        template: its file beside this one.
        values: what the template names.
    """
    html = _environment().get_template(template).render(**values)
    write_whole(path, _with_contents(_TABLE.sub(_with_titles, html)))


@cache
def _environment() -> jinja2.Environment:
    """Return what renders the templates, each of which takes a tenth of a second to compile."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names, paths and error texts come from files
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["p_value"] = p_value
    environment.filters["breakable"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    return environment


def _with_contents(html: str) -> str:
    """Return a page with links to its sections below its head, where there are more than SHORT of them."""
    titles = _SECTION.findall(html)
    if len(titles) <= SHORT:
        return html
    numbers = count(1)
    html = _SECTION.sub(lambda title: f'<h2 id="section-{next(numbers)}">{title[1]}</h2>', html)
    links = "".join(f'<li><a href="#section-{place}">{title}</a></li>' for place, title in enumerate(titles, 1))
    return html.replace("</header>", f'</header>\n<nav aria-label="Contents"><ul>{links}</ul></nav>', 1)


def _with_titles(table: re.Match[str]) -> str:
    """Return a table; one that is too wide for a phone has titles in its cells, as each row becomes a card there."""
    titles, *rows = ([_plain(cell) for cell in _CELL.findall(row)] for row in _ROW.findall(table[0]))
    if "config" in table[0].partition(">")[0]:  # its texts are wrapped
        wide = len(titles) > WORDS
    else:
        words = [max(map(len, title.split()), default=0) for title in titles]
        letters = [max([word, *map(len, cells)]) for word, *cells in zip(words, *rows, strict=False)]
        wide = sum(letters[1:]) + min(*letters[:1], NAME) > LETTERS - len(letters)  # one of space beside each
    if not wide:
        return table[0]

    def titled(row: re.Match[str]) -> str:
        left = iter(titles)  # a cell is title and content, which stand in rows of their own: a title may take two lines

        def cell(found: re.Match[str]) -> str:
            return f'<td data-title="{next(left, "")}"{found[1]}><span>{found[2]}</span></td>'

        return _DATA.sub(cell, row[0])

    html = _ROW.sub(titled, table[0])
    return re.sub(r'<table( class="|)', lambda begin: begin[0] + ("many " if begin[1] else ' class="many"'), html)


def _plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html.replace("<wbr>", "")).split())


def protocol(settings: Mapping[str, str], counts: Mapping[str, Mapping[str, int]], drawn_from_all: bool) -> str | None:
    """Return how images were split, in words; None where the settings do not say it.

    Args:
        settings: dotted key -> value as text.
        counts: split -> class -> images.
        drawn_from_all: whether the pool holds all images, not those for testing alone.
    """
    train = counts.get("train", {})
    split = {key.removeprefix("split."): value for key, value in settings.items() if key.startswith("split.")}
    test = "no test images" if split.get("test") in ("0", "0.0") else f"test {split.get('test')}"
    match split.get("protocol"):
        case None:
            return None
        case "kfold":
            text = f"{split['folds']}-fold cross-validation"
            val = counts.get("val", {})
            if train.get(GOOD) and val.get(GOOD) == sum(val.values()):  # a one-class method
                beside = "" if train[GOOD] == sum(train.values()) else " and defects of the other folds"
                return f"{text}, trained on train/good{beside}, {split['val']} of it held out for validation"
            text += f", validation {split['val']}"
        case "one_class":
            held_out = sum(counts.get("val", {}).values())
            return f"Trained on good images alone, {held_out} others held out for validation; tested on the test images"
        case "own":
            return f"The data set's own split; what it lacks is drawn: validation {split['val']}, {test}"
        case "file":
            return f"Split by {split['file']}"
        case _:
            text = f"Holdout, validation {split['val']}, {test}"
    pool = "all images" if drawn_from_all or split["pool"] == "all" else "the test folder"
    return f"{text} of {pool}" + ("" if split["per_class"] == "null" else f", {split['per_class']} images a class")


def describe_command(settings: Mapping[str, str]) -> str:
    """Return the command that describes the images of a run, and divides them as the run does.

    Args:
        settings: dotted key -> value as text.
    """
    default, sample = flatten(asdict(Config())), settings["data.name"] == "sample"
    words = [f"data={settings['data.name']}"]
    for key, value in settings.items():
        if key in ("data.root", "data.category", "data.labels"):  # each conf/data/*.yaml has a default of its own
            said = value not in ("null", default[key] if sample else "null")
        elif key == "split.seed":
            said = value != settings["seed"]
        elif key == "split.protocol":  # as above
            said = True
        else:
            said = key.startswith(("data.good", "data.defects", "model.method", "seed", "split."))
            said = said and value != default[key]
        if said:
            words.append(shlex.quote(f"{key}={value}"))
    return " ".join(["python -m mvtec_lab task=describe", *words])
