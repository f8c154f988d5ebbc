"""Pages: the numbers of the JSON document, every number of a picture in its table, nothing that acts or is fetched."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from ssmdiag.assessment.memory import assess_memory
from ssmdiag.capacity.capacity import assess_capacity
from ssmdiag.capacity.report import CapacityReport, report_capacity
from ssmdiag.compare.trend import Verdict
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import OutputError
from ssmdiag.output.result import Result
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.reports import Settings, kernel_text, render
from ssmdiag.reports.capacity_text import NONE_GIVEN
from ssmdiag.reports.capacity_text import document as capacity_document
from ssmdiag.reports.compare.json import conversion_document, models_document, run_document, table_document
from ssmdiag.reports.compare.words import status_of, step
from ssmdiag.reports.drawing import colours
from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.heat import LEVELS, Heat
from ssmdiag.reports.drawing.picture import WIDE, Picture, width_of
from ssmdiag.reports.drawing.plot import MOST_POINTS, Curve, Plot
from ssmdiag.reports.folding import fold, label_layers
from ssmdiag.reports.json import document, plain
from ssmdiag.reports.page import PAGES, capacity, kernel, main_picture_of, page_of
from ssmdiag.reports.page.diagnosis import strip
from ssmdiag.reports.page.page import Page
from ssmdiag.reports.probe.json import document as probe_document
from ssmdiag.reports.retrain.json import document as retrain_document
from ssmdiag.reports.text import laws, remarks
from tests.cli.test_hostile_names import assert_harmless
from tests.reports import test_compare_text, test_contract, test_probe_text, test_retrain_text
from tests.reports.example_diagnoses import CASES, diagnosis, layer, remembering
from tests.test_diagnosis import recurrence

MODEL = CASES["findings"]
assert isinstance(MODEL, Diagnosis)
CAPACITY = report_capacity(recurrence([0.001, 0.01, 0.1, 0.5]), 512, other_steps=True, wanted=64)
PROBED, OTHERS = test_probe_text.CASES["two-texts"]
SHOWN = test_probe_text.SHOWN
EVIL = "<script>alert(1)</script><b>\"'\u202e\x1b[31m\n::add-mask::x <img src=x onerror=y>"


@dataclass(frozen=True)
class Case:
    """A result, its page, and what JSON says of it."""

    result: Any
    document: Callable[[Any], Any]
    arguments: tuple[Any, ...] = ()

    def page(self, result: Any = None) -> Page:
        return page_of(self.result if result is None else result, *self.arguments, command="ssmdiag x -o y.html")


def of_capacity(result: CapacityReport) -> Any:
    return capacity_document("", [result], 512)


PAGED = {
    "diagnosis": Case(MODEL, document),
    "broken": Case(CASES["unstable"], document),
    "nothing finite": Case(CASES["nothing-finite"], document),
    "on the boundary": Case(CASES["on-the-boundary"], document),
    "run": Case(test_contract.RUN, run_document),
    "run that crossed": Case(test_compare_text.CASES["broken-and-crossed"], run_document),
    "models": Case(test_contract.PAIR, models_document),
    "table": Case(test_contract.TABLE, table_document),
    "conversion": Case(test_contract.PROOF, conversion_document),
    "capacity": Case(CAPACITY, of_capacity),
    "probe": Case(PROBED, lambda result: probe_document(result, SHOWN, OTHERS), (SHOWN, OTHERS)),
    "probe of no layer": Case(test_probe_text.ALONE, lambda result: probe_document(result, SHOWN), (SHOWN,)),
    "hybrid": Case(test_probe_text.HYBRID, lambda result: probe_document(result, SHOWN), (SHOWN,)),
    "retrain": Case(test_contract.TRAINED, retrain_document),
    "sweep": Case(test_retrain_text.CASES["sweep"], retrain_document),
    "interrupted": Case(test_retrain_text.CASES["interrupted"], retrain_document),
}
each_page = pytest.mark.parametrize("case", PAGED)


@dataclass
class Node:
    """An element as it was read back."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, *tags: str, outside: str = "") -> Iterator[Node]:
        """Yield the elements below, those within `outside` left out."""
        for child in self.children:
            if child.tag != outside:
                if not tags or child.tag in tags:
                    yield child
                yield from child.all(*tags, outside=outside)

    @property
    def said(self) -> str:
        """All text within."""
        return self.text + "".join(child.said for child in self.children)


class Reader(HTMLParser):
    """Reads a page into nodes; one whose elements are not closed in order is refused."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in self.VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(Node("#text", {}, data))


def read(page: str) -> Node:
    return Reader(page).root


def numbers(value: Any) -> Iterator[float]:
    """Yield every number of a document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item)
            yield from numbers(key)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) or value in ("inf", "-inf"):
        yield float(value)


def cells(node: Node) -> Iterator[float]:
    """Yield the numbers in the cells of tables, in full."""
    for cell in node.all("td"):
        exact = [data.attributes["value"] for data in cell.all("data")]
        for said in exact or [cell.said]:
            if re.fullmatch(r"-?(\d+(\.\d+)?(e[+-]\d+)?|inf)", said):
                yield float(said)


@each_page
def test_every_number_of_a_table_is_one_of_the_document(case: str) -> None:
    told = PAGED[case]
    known = set(numbers(json.loads(json.dumps(plain(told.document(told.result))))))
    page = read(told.page().document())
    body = [node for node in page.all("tr", outside="figure") if "setting" not in node.said]
    shown = [value for node in body for value in cells(node)]
    assert [
        value for value in shown if value not in known and round(value, 3) not in {round(x, 3) for x in known}
    ] == []
    assert shown or case in ("conversion", "interrupted")


def test_the_page_of_a_diagnosis_has_the_margin_and_half_life_of_every_layer_to_the_last_digit() -> None:
    page = read(PAGED["diagnosis"].page().document())
    shown = {value for node in page.all("tr", outside="figure") for value in cells(node)}
    for entry in document(MODEL)["layers"]:
        assert {
            entry["margin"],
            entry["half_life"]["median"],
            entry["half_life"]["max"],
            entry["horizon"]["max"],
        } <= shown


@each_page
def test_the_numbers_of_a_picture_are_those_in_the_table_below_it(case: str) -> None:
    made = PAGED[case].page()
    figures = list(read(made.document()).all("figure"))
    assert len(figures) == len(made.pictures)
    for figure, picture in zip(figures, made.pictures, strict=True):
        (table,) = figure.all("table")
        wanted = picture.numbers()
        values = [float(v) for row in wanted.rows for v in row[1:] if isinstance(v, (int, float)) and math.isfinite(v)]
        assert values
        assert sorted(v for v in cells(table) if math.isfinite(v)) == sorted(values)
        if isinstance(picture, Plot):
            assert_drawn(picture)
        else:
            assert isinstance(picture, Heat)
            assert_shaded(picture)


def assert_drawn(plot: Plot) -> None:
    """Assert that every drawn point is one of the table, where the axes' own ticks say it is."""
    root = ElementTree.fromstring(plot.svg(alone=True))
    x, y = plot._axes()
    frame = next(e for e in root.iter() if e.get("class") == "frame")
    left, top, wide, high = (float(frame.get(name, "")) for name in ("x", "y", "width", "height"))
    rows = [(row[0], value) for row in plot.numbers().rows for value in row[1:]]
    known = [
        (left + wide * x.place(a), top + high * (1 - y.place(b)))
        for a, b in rows
        if isinstance(a, (int, float)) and isinstance(b, (int, float)) and x.holds(a) and y.holds(b)
    ]
    drawn = [e.get("d", "") for e in root.iter() if re.fullmatch(r"curve c\d|d\d", e.get("class", ""))]
    points = [tuple(map(float, at.split())) for d in drawn for at in re.findall(r"[ML](-?[\d.]+ -?[\d.]+)", d)]
    points = [(a, b) for a, b in points if b <= top + high]  # the key is below
    assert points
    for a, b in points:
        assert min(math.hypot(a - c, b - d) for c, d in known) < 0.1


def assert_shaded(heat: Heat) -> None:
    """Assert that a cell has the shade of its value, and none has a shade without one."""
    root = ElementTree.fromstring(heat.svg(alone=True))
    total = 0.0
    for shades in root.iter():
        if shades.get("class") == "heat" and shades.get("d"):
            level = round(float(shades.get("fill-opacity", "")) * LEVELS)
            total += level * sum(float(wide) for wide in re.findall(r"h(\d[\d.]*)v", shades.get("d", "")))
    cell = heat._across(1) - heat._across(0)
    known = [v for row in heat.values for v in row if v is not None and v > 0]
    levels = sum(math.ceil(LEVELS * value / heat.most - 1e-9) for value in known)
    assert total == pytest.approx(levels * cell, rel=2e-2)


ALLOWED = frozenset({
    "html", "head", "meta", "link", "title", "body", "main", "div", "style", "h1", "h2", "h3", "p", "b", "ul", "li",
    "table", "caption", "span", "thead", "tbody", "tr", "th", "td", "data", "bdi", "figure", "figcaption", "details",
    "summary", "pre", "br", "svg", "desc", "g", "path", "rect", "circle", "text", "#text",
})  # fmt: skip


@each_page
def test_a_page_acts_on_nobody_and_fetches_nothing_whatever_names_say(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_contract, "EVIL", EVIL)
    told = PAGED[case]
    page = (
        replace(told, arguments=test_contract.spoilt(told.arguments)).page(test_contract.spoilt(told.result)).document()
    )
    assert_harmless(page)
    root = read(page)
    for node in root.all():
        assert node.tag in ALLOWED
        assert not [name for name in node.attributes if name.startswith("on") or name in ("src", "href", "action")] or (
            node.attributes == {"rel": "icon", "href": "data:,"}
        )
    assert "url(" not in page
    assert "@import" not in page
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"] * len(list(root.all("svg")))
    policy = next(node for node in root.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    if case != "probe of no layer":  # whose model and texts have their own names
        assert "<script>" in root.said, "names are shown as they are"


@each_page
def test_a_page_is_for_those_who_do_not_see_it_too(case: str) -> None:
    page = PAGED[case].page().document()
    root = read(page)
    assert next(root.all("html")).attributes == {"lang": "en"}
    assert [node.said for node in root.all("h1")] == [PAGED[case].page().title]
    verdict = next(root.all("p"))
    assert verdict.attributes["class"].startswith("verdict"), "the verdict is first"
    assert not re.search(r"\b[A-Z]{4,}  ", verdict.said), "its word stands once, before the sentence"
    for table in root.all("table"):
        assert next(table.all("caption")).said
        for head in table.all("th"):
            assert head.attributes["scope"] in ("row", "col")
        widths = {sum(1 for _ in row.all("th", "td")) for row in table.all("tr")}
        assert len(widths) == 1
    names = [node.attributes["id"] for node in root.all() if "id" in node.attributes]
    assert len(names) == len(set(names))
    for picture in root.all("svg"):
        assert picture.attributes["role"] == "img"
        by_id = {node.attributes.get("id"): node for node in picture.children}
        assert by_id[picture.attributes["aria-labelledby"]].tag == "title"
        assert by_id[picture.attributes["aria-describedby"]].said.strip()


@each_page
def test_a_notebook_shows_the_page_without_its_frame(case: str) -> None:
    shown = PAGED[case].result._repr_html_()
    root = read(shown)
    assert [node.attributes.get("class") for node in root.children if node.tag != "#text"] == ["ssmdiag"]
    rules = re.sub(r"@media[^{]*\{", "", next(root.all("style")).said)
    selectors = [one for rule in re.findall(r"([^{}]+)\{", rules) for one in rule.strip().split(",")]
    assert all(re.match(r"\.(ssmdiag|picture)|svg\.picture", selector.strip()) for selector in selectors)


def test_every_result_has_a_page() -> None:
    assert {kind.__name__ for kind in Result.__subclasses__()} == set(PAGES)
    found = assess_capacity(recurrence([0.01, 0.1]), 64)
    assert "Memory function" in found._repr_html_()


def test_main_pictures_are_files_of_their_own() -> None:
    for case in PAGED.values():
        picture = main_picture_of(case.result)
        if picture is not None:
            root = ElementTree.fromstring(picture.svg(alone=True))
            style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
            selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style))
            assert all(re.match(r"\.picture|svg\.picture", one) for one in selectors), (
                "others in a document keep theirs"
            )
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert next(root.iter("{http://www.w3.org/2000/svg}title")).text == picture.title
    assert main_picture_of(test_contract.PROOF) is None
    assert render([MODEL], "svg", Settings()) == main_picture_of(MODEL).svg(alone=True)  # type: ignore[union-attr]
    for several in ([MODEL, MODEL], [CASES["failed"]], [CASES["nothing-finite"]]):
        with pytest.raises(OutputError):
            render(several, "svg", Settings())


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    bent = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), bent, strict=True))


@pytest.mark.parametrize("theme", [colours.LIGHT, colours.DARK])
def test_every_text_and_curve_has_a_contrast_of_four_and_a_half(theme: dict[str, str]) -> None:
    assert colours.LIGHT.keys() == colours.DARK.keys()
    for ground in ("ground", "raised"):
        for name, colour in theme.items():
            if name not in ("ground", "raised", "edge"):
                low, high = sorted((luminance(colour), luminance(theme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_a_page_of_64_layers_is_small_and_soon_made() -> None:
    model = diagnosis(*(remembering(layer(i, half_life=2 * 1.2**i)) for i in range(64)), context_length=4096)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        page = render([model], "html", Settings())
        seconds.append(time.process_time() - start)
    assert len(page.encode()) <= 1_000_000
    assert min(seconds) <= 0.3


def test_what_a_page_cannot_hold_is_said() -> None:
    wide = diagnosis(*(remembering(layer(i)) for i in range(300)), context_length=4096)
    page = render([wide], "html", Settings())
    assert "96 of 300 layers, spread evenly" in page
    assert len(page.encode()) <= 1_000_000
    many = render([wide] * 12, "html", Settings())
    assert re.search(r"\d+ checkpoints more in the table alone", many)
    assert len(many.encode()) <= 1_500_000
    steps = list(range(0, 3000, 10))
    long = test_compare_text.run_of(
        {test_compare_text.name(0): test_compare_text.still(test_compare_text.name(0))}, steps
    )
    made = page_of(long)
    assert f"{MOST_POINTS} of 300 checkpoints, spread evenly" in made.document()
    assert all(
        len(curve.points) <= MOST_POINTS for plot in made.pictures if isinstance(plot, Plot) for curve in plot.curves
    )


STRANGE = {
    "never forgets": [0.0, 0.0], "grows": [-0.01, 0.1], "one NaN": [math.nan, 0.1], "all NaN": [math.nan],
    "forgets at once": [50.0, 60.0], "infinite": [math.inf, 1.0], "nearly constant": [1e-14, 1e-13],
    "beyond float64": [-900.0],
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_layer_has_a_page(case: str) -> None:
    one = recurrence(STRANGE[case])
    memory = assess_memory(one, 64, every_passing=True)
    for made in (page_of(report_capacity(one, 64)), kernel.page(memory, kernel_text.Shown("a.pt"))):
        root = read(made.document())
        assert next(root.all("p")).said.strip()
        assert not {"nan", "inf", "None"} & {node.said for node in root.all("td")}
        for picture in made.pictures:
            assert not re.search("nan|inf", re.sub("<title.*?</desc>", "", picture.svg()))


@pytest.mark.parametrize("scale", ["linear", "log", "log1p"])
@pytest.mark.parametrize("values", [[1.0, 1.0], [0.5, 2e9], [1e-12, 2e-12], [3.0], [1000.0, 1001.0]])
def test_an_axis_has_its_values_and_ticks_between_its_ends(scale: Any, values: list[float]) -> None:
    axis = Axis("x", scale).over(values)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    places = [axis.place(value) for value, _ in axis.ticks()]
    assert places == sorted(places)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert len({said for _, said in axis.ticks()}) == len(places)


def test_a_picture_must_be_made() -> None:
    bare = Picture("of nothing", "Nothing.")
    for part in (bare.body, bare.numbers, lambda: bare.height):
        with pytest.raises(NotImplementedError):
            part()


def test_a_kernel_begins_with_its_answer_and_says_that_no_context_is_given() -> None:
    memory = assess_memory(recurrence([0.001, 0.01, 0.1]), 64, every_passing=True)
    said = kernel_text.document(memory, kernel_text.Shown("a.pt"))
    page = read(kernel.page(memory, kernel_text.Shown("a.pt")).document())
    assert next(page.all("p")).said == f"OK. {said['answer'][:1].upper()}{said['answer'][1:]}"
    assert "none is given" in page.said
    newest = kernel_text.Shown("a.pt", stated_context=64, chosen="newest of 3: a.pt")
    told = read(kernel.page(memory, newest).document()).said
    assert "none is given" not in told
    assert "newest of 3: a.pt" in told


def test_a_capacity_says_that_no_context_is_given() -> None:
    assert NONE_GIVEN not in page_of(CAPACITY).document()
    made = capacity.page([CAPACITY], "a.pt", 512, stated=False, chosen="newest of 3: a.pt")
    unstated = read(made.document()).said
    assert unstated.count("none is given") == 2
    assert "newest of 3: a.pt" in unstated


def test_a_row_of_a_run_is_coloured_as_the_answer_is() -> None:
    colours = {"problem": "error", "warning": "warning"}
    for case in ("run", "run that crossed"):
        result = PAGED[case].result
        labels = [layer.name for layer in result.layers]
        named = dict(zip(labels, labels, strict=True))
        wanted = [colours.get(status_of(layer, result, named)[0], "") for layer in result.layers]
        rows = [
            row
            for row in read(PAGED[case].page().document()).all("tr", outside="figure")
            if row.said.startswith(tuple("0123456789"))
        ]
        assert [row.attributes.get("class", "") for row in rows[: len(wanted)]] == wanted


def test_projected_steps_are_read_as_in_sentences() -> None:
    run = read(PAGED["run"].page().document())
    assert not [cell.said for cell in run.all("td") if re.fullmatch(r"\d{4,}|.*e\+\d+", cell.said)]
    ahead = [one.projection for each in PAGED["run"].result.layers for one in each.limits if one.projection]
    assert ahead
    assert all(step(one.at) in run.said for one in ahead if one.at is not None)


def test_a_page_has_every_sentence_of_the_full_report() -> None:
    for case in ("findings", "assumed", "partly-read", "unstable"):
        one = CASES[case]
        assert isinstance(one, Diagnosis)
        said = read(page_of(one).document()).said
        settings = Settings(full=True)
        labels = label_layers([each.name for each in one.layers])
        rows = fold(one.layers, labels, all_layers=False)
        wanted = [*laws(one, rows, settings), *remarks(one, labels, settings)]
        assert wanted
        assert all(sentence in said for sentence in wanted)


def test_options_are_not_broken_over_lines() -> None:
    page = page_of(diagnosis(remembering(layer(0)))).document()
    assert '<span class="whole">--length</span>' in page
    assert not re.search(r"(?<!whole\">)--length", page)


@pytest.mark.parametrize("name", ["x" * 300, "W" * 40, "表示層" * 20, "i" * 60, "backbone.layers.0.mixer"])
def test_names_stay_within_a_picture(name: str) -> None:
    heat = strip([name], [MODEL.layers[0].histogram], 512)
    assert isinstance(heat, Heat)
    root = ElementTree.fromstring(heat.svg(alone=True))
    said = next(e for e in root.iter() if e.get("text-anchor") == "end")
    assert width_of(said.text or "") <= float(said.get("x", "")) + 1
    assert (said.text or "").startswith("…") == (width_of(name) > 150)


def test_ticks_stay_apart_and_within_a_picture() -> None:
    """Of all decades of time constants beside names as wide as they come."""
    heat = strip(["W" * 40], [[1] * len(MODEL.layers[0].histogram)], 10**6)
    assert isinstance(heat, Heat)
    root = ElementTree.fromstring(heat.svg(alone=True))
    ticks = [e for e in root.iter() if e.get("class") == "quiet" and e.get("text-anchor") == "middle"]
    ends = [(float(e.get("x", "")), width_of(e.text or "") / 2) for e in ticks]
    assert len(ends) > 4
    assert all(a + half < b - other for (a, half), (b, other) in itertools.pairwise(ends))
    assert all(at - half >= 0 and at + half <= WIDE for at, half in ends)


@pytest.mark.parametrize("values", [[1e-4, 2e-3], [1.00001, 1.00002], [1e-12, 2e-12], [123_456.0, 123_457.0]])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_ticks_of_small_differences_leave_room_for_the_name_of_their_axis(values: list[float], scale: Any) -> None:
    curve = Curve("a", [(float(k), value) for k, value in enumerate(values)])
    plot = Plot(title="A", about="B.", x=Axis("step"), y=Axis("nats", scale), curves=[curve])
    root = ElementTree.fromstring(plot.svg(alone=True))
    ticks = [e for e in root.iter() if e.get("text-anchor") == "end"]
    assert len(ticks) > 1
    assert all(float(e.get("x", "")) - width_of(e.text or "") >= 18 for e in ticks)


def test_modes_that_never_decay_are_not_drawn_as_long_time_constants() -> None:
    bins = len(MODEL.layers[0].histogram)
    counts = [0] * (bins - 1) + [4]
    heat = strip(["0"], [counts], 2048)
    assert isinstance(heat, Heat)
    assert heat.ticks[-1] == (len(heat.columns), "∞")
    assert "those that never decay" in heat.about
    assert heat.mark is not None
    assert heat.mark[0] == pytest.approx(4 * (math.log10(2048) - 3))


@pytest.mark.parametrize("context", [None, 1, 10, 2048, 10**12])
def test_time_constants_of_every_decade_have_a_column(context: int | None) -> None:
    """Also of modes that never decay, which are counted in the last."""
    bins = len(MODEL.layers[0].histogram)
    for place in range(bins):
        counts = [int(k == place) for k in range(bins)]
        picture = strip(["a", "b"], [counts, counts], context)
        assert isinstance(picture, Heat)
        numbers = picture.numbers()
        assert {len(row) for row in numbers.rows} == {len(numbers.heads)}
        assert all(sum(value for value in row[1:] if isinstance(value, int)) == 1 for row in numbers.rows)
        assert len(numbers.heads) > 8
        assert picture.mark is None or 0 <= picture.mark[0] <= len(picture.columns)


@pytest.mark.parametrize("scale", ["linear", "log", "log1p"])
def test_an_axis_with_nothing_to_draw_has_ends_and_ticks(scale: Any) -> None:
    assert Axis("steps", scale).over([]).ticks()


def test_a_layer_that_holds_nothing_has_a_page_and_stands_still() -> None:
    """Weights on the state that are all 0: every rate is ∞, every time constant 0, and nothing fits on a log axis."""

    def empty(step: int) -> test_compare_text.LayerPoint:
        return replace(test_compare_text.still("0")(step), rate=Quantiles(*[math.inf] * 5), margin=1.0)

    for steps in ([0, 1], test_compare_text.STEPS):
        run = test_compare_text.run_of({"0": empty}, steps)
        assert run.layers[0].verdict is Verdict.STEADY
        assert "Slowest time constant over" not in page_of(run).document()
        assert main_picture_of(run) is not None
