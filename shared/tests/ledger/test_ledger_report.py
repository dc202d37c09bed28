"""The report is static, complete, and safe to look at."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.ledger import PAPERS, Entry, Figure, collect, collect_and_render, entries, render_report

BEADS = replace(PAPERS[3], package="glass_beads", command="glass-beads", name="Glass Beads")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def beads(tmp_path_factory) -> Entry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "PAPERS", (BEADS,))
        return collect("glass_beads", tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def report(beads, tmp_path_factory) -> Path:
    """Ten papers, one of them with a package."""
    folder = tmp_path_factory.mktemp("site") / "report"
    papers = [beads if paper.package == "fitprune" else Entry(paper) for paper in PAPERS]
    assert render_report(papers, folder) == folder / "index.html"
    return folder


class Page(HTMLParser):
    """What a page refers to and what its table cells say."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.references += [(tag, value) for name, value in attributes if name in ("src", "href", "srcset")]
        if tag in ("td", "th"):
            self._open = True
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.cells[-1] = f"{self.cells[-1]} {data}".strip()


def test_every_paper_has_its_page(report):
    pages = sorted(path.name for path in report.glob("*.html"))
    others = {paper.package for paper in PAPERS if paper.package != "fitprune"}
    assert pages == sorted(f"{package}.html" for package in others | {"index", "glass_beads"})
    index = Page(report / "index.html")
    assert {value for tag, value in index.references if tag == "a"} == set(pages) - {"index.html"}
    assert sum(cell == "planned" for cell in index.cells) == 9


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(report):
    """Fails if a page links a style sheet, font, picture or script that is not in the report's folder."""
    for path in report.glob("*.html"):
        page = Page(path)
        for tag, value in page.references:
            if tag == "a":
                continue
            assert value == "data:," or (report / value).is_file(), value
        assert "script" not in page.tags
        assert not re.search(r"url\(|@import", path.read_text())


def test_each_claim_is_a_row_with_the_paper_s_value_ours_status_and_evidence(report):
    cells = Page(report / "glass_beads.html").cells
    row = next(i for i, cell in enumerate(cells) if cell.startswith("Throughput on one GPU"))
    assert cells[row + 1 : row + 5] == [
        "1,204.5 beads/s",
        "1,190.2 beads/s",
        "recorded",
        "2031-02-03, 0123456789, NVIDIA H200",
    ]
    row = next(i for i, cell in enumerate(cells) if cell.startswith("A box of the standard size"))
    assert cells[row + 1 : row + 5] == ["128 beads", "128 beads", "reproduced", "recomputed"]
    row = next(i for i, cell in enumerate(cells) if cell.startswith("Counting in the rain"))
    assert "below the baseline's 0.40 in 3 of 3 seeds" in cells[row]
    assert cells[row + 3] == "not reproduced"


def test_text_from_a_ledger_is_shown_not_interpreted(report):
    """Fails if the templates do not escape."""
    text = (report / "glass_beads.html").read_text()
    assert "JAR-Bench &lt;test&gt;, 60\N{NO-BREAK SPACE}% &amp; above" in text
    assert "<test>" not in text


def test_figures_are_copied_with_their_captions(report):
    assert (report / "figures" / "glass_beads" / "beads.svg").is_file()
    text = (report / "glass_beads.html").read_text()
    assert '<img src="figures/glass_beads/beads.svg" alt="Beads by size: a &lt; b &amp; c.">' in text


def test_a_page_opens_with_its_picture_then_what_is_reproduced_then_folded_tables(report):
    """Fails if tables come first, or the index lacks the thumbnail."""
    text = (report / "glass_beads.html").read_text()
    order = [text.index(part) for part in ('<figure class="lead">', "<ol", "What is reproduced", "<details", "<dl>")]
    assert order == sorted(order)
    assert text.count("<details") == text.count("<table") == text.count("</details>") > 1
    assert '<img class="thumbnail" src="figures/glass_beads/beads.svg"' in (report / "index.html").read_text()


def test_a_column_that_says_nothing_is_not_shown(report):
    """Claims that nobody ran have neither a number of ours nor evidence. Fails if their columns stay."""
    text = (report / "glass_beads.html").read_text()
    full = text[text.index("<b>Full size</b>") :].partition("</table>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", full) == ["Claim", "Paper", "Status"]
    assert not re.search(r"0e\+00|\d{19}", text)


def test_a_planned_paper_shows_its_method_and_no_evidence(report):
    text = (report / "dtnet.html").read_text()
    assert "Each encoder layer of a captioner holds three spatial and two channel cells." in text
    assert "There is no package for this paper yet" in text
    assert "<table" not in text


def test_an_earlier_report_is_replaced_and_nothing_else_ever(beads, tmp_path):
    """Fails if any folder that is named as output is replaced."""
    output = tmp_path / "report"
    render_report([Entry(PAPERS[0]), beads], output)
    (output / "stale.html").write_text("x")
    render_report([beads], output)
    assert not (output / "stale.html").exists()
    assert not (output / "flashsloth.html").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds something else than a report"):
        render_report([beads], mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_a_figure_that_is_missing_or_no_picture_leaves_no_report(beads, tmp_path):
    for name, message in (("gone.png", "no such figure"), ("data.csv", "not a picture")):
        with pytest.raises(UserError, match=message):
            render_report([replace(beads, figures=[Figure(tmp_path / name, "x")])], tmp_path / "report")
        assert list(tmp_path.iterdir()) == []


def test_the_verb_and_the_command_write_the_same_kind_of_report(tmp_path, monkeypatch, capsys):
    from glass_beads.commands.app import main

    monkeypatch.setattr(entries, "PAPERS", (BEADS,))
    monkeypatch.setattr("sys.argv", ["glass-beads", "report", "--output", str(tmp_path / "one")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(tmp_path / "one" / "index.html")
    assert (tmp_path / "one" / "glass_beads.html").is_file()
    with pytest.raises(UserError, match="not one of the papers: marbles"):
        collect_and_render(tmp_path / "two", ["marbles"])


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page in a headless browser; its standard output."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize(("scheme", "background"), [(1, (251, 250, 247)), (0, (21, 23, 26))])
def test_a_browser_shows_the_claims_in_light_and_dark(report, tmp_path, scheme, background):
    """Fails if the style sheet is missing from the page or the claims' table is not in it."""
    picture = tmp_path / "page.png"
    options = ["--dump-dom", f"--screenshot={picture}", "--window-size=1280,1600"]
    options += [f"--blink-settings=preferredColorScheme={scheme}"]
    page = browse(report / "glass_beads.html", tmp_path / "profile", *options)
    assert page.count("<tr id=") == 6
    assert '<span class="status reproduced">reproduced</span>' in page
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert tuple(pixels[2, 2]) == background
    # Text down the whole table: rows of pixels that differ from the background.
    assert (pixels != background).any(axis=(1, 2)).sum() > 500


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize("name", ["glass_beads.html", "index.html"])
def test_no_page_is_wider_than_a_phone(report, tmp_path, name):
    """Fails if a table keeps its columns on a narrow screen: the page would have to be scrolled sideways."""
    frame = tmp_path / "phone.html"
    frame.write_text(
        f'<iframe src="{(report / name).as_uri()}" style="width: 380px; height: 4000px; border: 0"></iframe>'
        "<p></p><script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
        "document.querySelector('p').textContent = 'width ' + page.documentElement.scrollWidth }</script>"
    )
    page = browse(frame, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files")
    assert "<p>width 380</p>" in page
