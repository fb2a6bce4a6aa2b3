"""The report: complete, self-contained, deaf to hostile names; and opened in a browser, where it must work."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.comparison.analysis.test_served_decoding import contestant as served_contestant
from tests.comparison.page import Page
from tests.comparison.sample_results import (
    DENSE,
    MOE,
    contestant,
    everyone,
    failed_run,
    model,
    nine,
    results,
    run,
    sample,
)

from moekit.comparison.report import render, write_report
from moekit.comparison.report.escaping import code_spans, plotly_text, script_json
from moekit.comparison.results_schema import LeftOutText, Results, Trial
from moekit.config import AnyRouterConfig, HashConfig, SoftmaxTopKConfig, SwitchConfig

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "{{ 7*7 }} `tick` <b>&amp; %{x} \u2028 ${hacked}",
)


def hostile() -> Results:
    """A comparison in which everything that has a name or a message is an attack."""
    first, second, third = HOSTILE
    runs = [run(s, 1.9, experts=8, layers=(0,), domains=HOSTILE) for s in (0, 1)]
    runs[0] = runs[0].model_copy(update={"warnings": [f"layer 0: {first}"]})
    made = results(
        [
            contestant(first, model([DENSE]), [run(s, 2.0, domains=HOSTILE) for s in (0, 1)], total=1, active=1),
            contestant(second, model([MOE]), runs, total=3, active=1),
            contestant(third, model([MOE]), [failed_run(0, first), failed_run(1, second)], total=3, active=1),
        ],
        seeds=[0, 1], baseline=first, domains=HOSTILE, command=f"moekit compare --data '{first}'",
    )  # fmt: skip
    settings = made.settings.model_copy(update={"schedule": second, "learning_rate_rule": third})
    contestants = [*made.contestants[:2], made.contestants[2].model_copy(update={"caveat": first})]
    return made.model_copy(update={"settings": settings, "contestants": contestants})


def test_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(sample(), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_nothing_is_fetched() -> None:
    """No element of the page names another file, and the policy forbids what a script might try."""
    page = Page(render(sample()))
    assert not [tag for tag, attributes in page.tags if {"src", "srcset", "action"} & attributes.keys()]
    links = [attributes["href"] or "" for _, attributes in page.tags if "href" in attributes]
    assert {link[0] for link in links} == {"#"}
    assert {link[1:] for link in links} <= {attributes.get("id") for _, attributes in page.tags}
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_page_says_what_was_measured() -> None:
    comparison = sample()
    text = Page(render(comparison)).text
    for label in (
        "Parameter utilisation", "Resource efficiency", "Scalability", "Task handling", "Learning approach",
        "Response time",
    ):  # fmt: skip
        assert label in text
    for fact in (
        comparison.corpus.sha256, comparison.command, comparison.settings.schedule, comparison.machine.cpu,
        comparison.settings.learning_rate_rule, "4,000,000 tokens a run", "Mixture of experts for each FLOP",
        "the loss is no longer a number (step 812)",
    ):  # fmt: skip
        assert fact in text


@pytest.mark.parametrize("comparison", [sample(), everyone()], ids=["five", "everyone"])
def test_every_cell_of_the_key_differences_is_filled(comparison: Results) -> None:
    html = render(comparison)
    table = html[html.index('<table class="differences">') :]
    figures = re.findall(r'<td><span class="figure">(.*?)</span>', table[: table.index("</table>")])
    assert len(figures) == 6 * len(comparison.contestants)
    assert all(re.search(r"\d|not reached", figure) for figure in figures)


def test_what_multiplies_nothing_is_said_to() -> None:
    html = render(everyone())
    text = Page(html).text
    for fact in ("n-grams, reference", "LSTM, reference", "under 1 %", "no FLOPs"):
        assert fact in text
    assert "Without FLOPs, and so without a line: ngram." in html
    assert "0.00×" not in text
    assert "looking up the probabilities of all 256 next bytes" in text
    assert "looking up the probabilities" not in Page(render(sample())).text


@pytest.mark.parametrize("baseline", ["ngram", "lstm"])
def test_a_reference_as_the_baseline(baseline: str) -> None:
    assert "</html>" in render(everyone().model_copy(update={"baseline": baseline}))


def test_tables_and_charts_are_accessible() -> None:
    page = Page(render(sample()))
    assert next(tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")) == "h1"
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    plots = [attributes for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert len(plots) == 7
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)


def test_hostile_text_stays_text() -> None:
    page = Page(render(hostile()))
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [tag for tag, attributes in page.tags if tag in ("img", "b") or "onerror" in attributes]
    for name in HOSTILE:
        assert re.sub(r"\s+", " ", name) in page.text


def test_caveats_and_warnings_are_shown() -> None:
    made = sample()
    dense, moe, *others = made.contestants
    warned = moe.runs[0].model_copy(update={"warnings": ["layer 2: 6 of 8 experts get no tokens (step 20)"]})
    moe = moe.model_copy(update={"caveat": "it peeks", "runs": [warned, *moe.runs[1:]]})
    text = Page(render(made.model_copy(update={"contestants": [dense, moe, *others]}))).text
    assert "moe (*) is held against nobody: it peeks." in text
    assert text.count("moe is not comparable with the others: it peeks.") == 2
    assert "mixture of experts, not comparable" in text
    assert "moe, seed 0: layer 2: 6 of 8 experts get no tokens (step 20)" in text


def test_router_figures_stand_where_they_mean_something() -> None:
    """Dropped choices where there is a capacity; scores and logits where there is something learned."""

    def row(router: AnyRouterConfig) -> list[str]:
        layer = MOE.model_copy(update={"router": router})
        dropping = run(0, 1.9, experts=8, layers=(0,))
        dropping = dropping.model_copy(
            update={"routing": [dropping.routing[0].model_copy(update={"dropped_share": 0.125})]}
        )
        html = render(results([contestant("x", model([layer]), [dropping], total=1, active=1)], seeds=[0]))
        cells = re.search(r'<th scope="row"[^>]*>x, layer\s0</th>(.*?)</tr>', html, re.S)
        assert cells is not None
        return re.findall(r"<td>(.*?)</td>", cells[1])[3:]

    assert row(SwitchConfig())[::2] == ["12.5 %", "1.50"]
    assert row(SoftmaxTopKConfig(top_k=2))[::2] == ["–", "1.50"]
    assert row(HashConfig()) == ["–", "–", "–"]


def test_the_search_for_learning_rates_and_its_cost_are_shown() -> None:
    made = sample()
    trials = [
        Trial(contestant=name, rate_factor=factor, tokens=50_000, seconds=3.0, bits_per_byte=bits)
        for name, factor, bits in (("dense", 0.5, 3.2), ("dense", 1, 3.1), ("dense", 2, None), ("moe", 1, 3.05))
    ]
    settings = made.settings.model_copy(update={"trials": trials, "tuning_seconds": 75.0})
    dense = made.contestants[0].model_copy(update={"learning_rate": 0.004})
    made = made.model_copy(update={"settings": settings, "contestants": [dense, *made.contestants[1:]]})
    html = render(made)
    assert "after 50,000 tokens at multiples of the rule&#39;s rate; 4 trials, 1 min 15 s" in html
    assert "<td>0.004</td><td>3.200</td><td>3.100</td><td>failed</td>" in html
    assert "<td>–</td><td>–</td><td>3.050</td><td>–</td>" in html
    assert "The search for learning rates" not in render(sample())


def test_decoding_as_served_stands_at_both_sizes_with_labels() -> None:
    dense, moe = served_contestant("dense", 2.0), served_contestant("moe", 3.0)
    odd = served_contestant("odd", 1.0).model_copy(update={"served_size": None, "no_served_size": "it is <tiny>"})
    runs = [run.model_copy(update={"bits_per_byte_as_served": 1.234}) for run in dense.runs]
    capped = dense.model_copy(update={"name": "capped", "runs": runs})
    text = Page(render(results([dense, moe, odd, capped], seeds=[0, 1, 2]))).text
    for said in (
        "At the comparison's own size", "the engine that generate serves them with", "At a size that no cache holds",
        "with random weights", "odd was not measured at a size that no cache holds: it is <tiny>.",
        "Served without a capacity it has 1.234 bits per byte.",
    ):  # fmt: skip
        assert said in text
    assert text.count("Time over baseline's (95 %)") == 2
    assert "Hollow: the same plans at a size that no cache holds" in text
    before = Page(render(sample())).text
    assert "in calls of torch" in before
    assert "no cache holds" not in before


@pytest.mark.parametrize("text", HOSTILE)
def test_embedding(text: str) -> None:
    embedded = script_json({"name": text})
    assert json.loads(embedded) == {"name": text}
    assert not re.search("[<>&\u2028\u2029]", embedded)
    assert not re.search("[<>]|%{", plotly_text(text))
    assert "<script" not in code_spans(f"`{text}`")
    assert "<img" not in code_spans(f"`{text}`")


def test_code_spans() -> None:
    assert code_spans("`moe` < 1, 95 %") == "<code>moe</code> &lt; 1, 95\u00a0%"
    assert code_spans("odd ` tick") == "odd ` tick"


@pytest.mark.parametrize(
    "comparison",
    [
        sample((0,)),
        results([contestant("dense", model([DENSE]), [failed_run(0)], total=1, active=1)], seeds=[0]),
        results([contestant("dense", model([DENSE]), [run(0, 2.0)], total=1, active=1)], seeds=[0]),
        results([], seeds=[0]),
    ],
    ids=["one seed", "all failed", "one contestant", "nobody"],
)
def test_report_of_little(comparison: Results) -> None:
    assert "</html>" in render(comparison)


# ---- in the browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_report(open_page: Callable[..., None]) -> Callable[..., None]:
    """Open the report of some results, by a name of theirs, at a width (px), in light or dark."""

    def show(name: str, comparison: Callable[[], Results], width: int = 1280, scheme: str = "light") -> None:
        open_page(name, lambda: render(comparison()), width, scheme)

    return show


def requested(browser: webdriver.Chrome) -> list[str]:
    """The addresses that the page asked for, those inside itself (data:, blob:) left out."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        # The browser's own start page, which it may still be loading.
        and not event["params"]["documentURL"].startswith("chrome://")
    ]
    return [address for address in addresses if not address.startswith(("data:", "blob:"))]


def traces(browser: webdriver.Chrome, chart: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = browser.execute_script(
        "return document.getElementById(arguments[0]).data.map(({x, y, z, visible}) => ({x, y, z, visible}))",
        f"chart-{chart}",
    )
    return data


def press(browser: webdriver.Chrome, chart: str, label: str) -> None:
    """By keyboard, as the page must be usable without a mouse."""
    button = browser.find_element(By.XPATH, f"//figure[@data-chart='{chart}']//button[normalize-space()='{label}']")
    button.send_keys("\n")


@pytest.mark.browser
def test_opens_without_error_or_network(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample)
    time.sleep(0.5)  # for a request that comes late
    assert browser.get_log("browser") == []
    addresses = requested(browser)
    assert len(addresses) == 1
    assert addresses[0].startswith("file:")


@pytest.mark.browser
def test_charts_are_drawn(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample)
    charts = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(charts) == 7
    marks = "return arguments[0].querySelectorAll('.trace, .hm, path.js-line, path.box').length"
    assert all(browser.execute_script(marks, chart) for chart in charts)


@pytest.mark.browser
def test_switching_the_axis(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample)
    title = "return document.querySelector('#chart-curves .xtitle').textContent"
    assert browser.execute_script(title) == "Training FLOPs"
    before = traces(browser, "curves")
    press(browser, "curves", "Seconds")
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(title) == "Seconds in training steps")
    after = traces(browser, "curves")
    assert after[1]["x"] != before[1]["x"]
    assert after[1]["y"] == before[1]["y"]
    span = "const [low, high] = document.getElementById('chart-curves').layout.xaxis.range; return high - low"
    end = browser.execute_script(span)
    press(browser, "curves", "Whole run")
    assert browser.execute_script(span) > end + 1


@pytest.mark.browser
def test_all_eight_are_drawn(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    """On every axis, also where one of them has no figure."""
    open_report("everyone", everyone)
    assert len(browser.find_elements(By.CSS_SELECTOR, "[data-chart=curves] .legend button")) == 8
    caption = browser.find_element(By.CSS_SELECTOR, "[data-chart=curves] figcaption")
    assert "without a line: ngram" in caption.text
    assert len(traces(browser, "curves")) == 14  # a line and a band each
    bars = "return document.getElementById('chart-curves').layout.shapes.length"
    assert browser.execute_script(bars) == 1  # where the one without a line ends
    press(browser, "curves", "Tokens")
    assert len(traces(browser, "curves")) == 16
    press(browser, "curves", "ngram")
    assert browser.execute_script(bars) == 0
    press(browser, "curves", "ngram")
    assert "ngram" not in caption.text
    assert len(traces(browser, "decode")) == 8
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_legend_hides_a_contestant(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample)
    shown = sum(trace["visible"] for trace in traces(browser, "curves"))
    press(browser, "curves", "moe")
    assert sum(trace["visible"] for trace in traces(browser, "curves")) == shown - 2
    assert sum(trace["visible"] for trace in traces(browser, "leverage")) == 6  # of four rivals, two marks each
    labels = "return document.getElementById('chart-curves').layout.annotations.map(({text}) => text)"
    assert "moe" not in browser.execute_script(labels)
    press(browser, "domains", "moe")  # any legend switches all charts
    assert sum(trace["visible"] for trace in traces(browser, "curves")) == shown
    assert "moe" in browser.execute_script(labels)


@pytest.mark.browser
def test_heat_map_follows_the_choice(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample)
    caption = browser.find_element(By.CSS_SELECTOR, "[data-chart=experts] figcaption")
    assert "0.050 bits" in caption.text
    select = Select(browser.find_element(By.CSS_SELECTOR, "[data-chart=experts] select"))
    select.select_by_visible_text("hybrid")
    layers = browser.find_elements(By.CSS_SELECTOR, "[data-chart=experts] button[data-choice='1']")
    assert [button.text for button in layers if button.is_enabled()] == ["1", "3"]
    assert "0.090 bits" in caption.text
    press(browser, "experts", "3")
    assert "0.170 bits" in caption.text
    assert len(traces(browser, "experts")[0]["z"][0]) == 8


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize(("name", "comparison"), [("sample", sample), ("hostile", hostile), ("everyone", everyone)])
def test_no_horizontal_overflow(
    browser: webdriver.Chrome,
    open_report: Callable[..., None],
    width: int,
    name: str,
    comparison: Callable[[], Results],
) -> None:
    open_report(name, comparison, width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    script = "const root = document.documentElement; return [root.scrollWidth, root.clientWidth, window.innerWidth]"
    content, visible, window = browser.execute_script(script)
    assert content <= visible <= window == width


def spread_out() -> Results:
    """Nine contestants whose seeds differ so much that every figure and its interval is long."""
    made = nine()
    contestants = []
    for index, one in enumerate(made.contestants):
        runs = [
            run.model_copy(
                update={
                    "curve": [
                        point.model_copy(update={"seconds": point.seconds * (1, 3, 20)[(run.seed + index) % 3]})
                        for point in run.curve
                    ]
                }
            )
            for run in one.runs
        ]
        slow = {"decode_ms_per_token_median": 123.45, "decode_ms_per_token_p95": 1234.56, "params_total": 123_000_000}
        contestants.append(one.model_copy(update={"runs": runs, **slow}))
    return made.model_copy(update={"contestants": contestants})


@pytest.mark.browser
@pytest.mark.parametrize(("name", "comparison"), [("nine", nine), ("spread", spread_out)])
def test_tables_fit_1300_pixels(
    browser: webdriver.Chrome, open_report: Callable[..., None], name: str, comparison: Callable[[], Results]
) -> None:
    open_report(name, comparison, 1300)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = (
        "return [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => one.textContent.slice(0, 80))"
    )
    assert browser.execute_script(wide) == []


@pytest.mark.browser
def test_the_answer_and_its_two_charts_fit_the_first_screen(
    browser: webdriver.Chrome, open_report: Callable[..., None]
) -> None:
    open_report("nine", nine, 1300)
    bottom = "return document.querySelector(`#chart-${arguments[0]}`).getBoundingClientRect().bottom"
    left = "return document.querySelector(`#chart-${arguments[0]}`).getBoundingClientRect().left"
    assert browser.execute_script(bottom, "curves") < 950
    assert browser.execute_script(bottom, "leverage") < 950
    assert browser.execute_script(left, "leverage") > browser.execute_script(left, "curves") + 500, "not side by side"


def test_order_of_sections() -> None:
    """The answer and its charts, the table, what weakens it, and then the details."""
    sections = [a["aria-labelledby"] for tag, a in Page(render(nine())).tags if tag == "section"]
    assert sections == [
        "curves", "leverage", "summary", "trust", "verdict", "differences", "budget", "domains", "decode", "routing",
        "failures", "measured",
    ]  # fmt: skip


@pytest.mark.browser
def test_on_paper_everything_is_light_and_open(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("sample", sample, scheme="dark")
    state = (
        "const line = document.getElementById('chart-curves').data[1].line.color;"
        "return [line, document.querySelectorAll('details:not([open])').length,"
        " document.getElementById('chart-curves').layout.width || 0]"
    )
    before = browser.execute_script(state)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    colour, closed, width = browser.execute_script(state)
    assert colour != before[0]
    assert closed == 0 < before[1]
    assert width == 680
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(state) == before


@pytest.mark.browser
def test_dark_and_light_differ_in_the_charts(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    found = []
    for scheme in ("light", "dark"):
        open_report("sample", sample, scheme=scheme)
        line = browser.execute_script("return document.getElementById('chart-curves').data[1].line.color")
        found.append((line, browser.execute_script("return getComputedStyle(document.body).backgroundColor")))
    (light_line, light_page), (dark_line, dark_page) = found
    assert light_line != dark_line
    assert light_page != dark_page


@pytest.mark.browser
def test_hostile_names_do_not_run(browser: webdriver.Chrome, open_report: Callable[..., None]) -> None:
    open_report("hostile", hostile)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert browser.get_log("browser") == []
    assert len(requested(browser)) == 1
    ticks = browser.execute_script(
        "return [...document.querySelectorAll('#chart-decode .ytick text')].map(tick => tick.textContent)"
    )
    assert f"{HOSTILE[0][:19]}…" in ticks


def test_what_was_left_out_stands_in_the_report() -> None:
    lost = LeftOutText(domain="law", reason="not in <UTF-8>", texts=1234, bytes=45_600, example="a & b.txt")
    made = sample()
    page = render(made.model_copy(update={"corpus": made.corpus.model_copy(update={"left_out": [lost]})}))
    row = "<td>1,234</td><td>45.6\u00a0kB</td><td>not in &lt;UTF-8&gt;</td><td>a &amp; b.txt</td>"
    assert "What of it was left out" in page
    assert row in page
    assert "What of it was left out" not in render(made)
