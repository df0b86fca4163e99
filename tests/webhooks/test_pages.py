"""Plain pages: no script, no cookie, no other host, usable with a keyboard, complete in both languages."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po

from service.errors import Misconfigured, StorageUnavailable
from tests.webhooks.builders import FORM_TYPE, an_app, drive, encode, open_form, post_form
from tests.webhooks.fakes import CODE, Boxes, Numbers
from webhooks import answers, pages, return_page
from webhooks.pages import Pages, catalogue, language_of

VOID = {"input", "meta", "link", "br", "path", "circle", "rect"}
LANGUAGES = ["km", "en"]
FIRST_PAGE = 14_000
DENIED = re.compile(
    r"report|abuse|victim|hotline|helpline|exploit|tip\b|case\b|anonymous|leaves no trace", re.IGNORECASE
)


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.nested_in_label: list[dict[str, str | None]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        assert len(known) == len(attrs), "an attribute stands twice"
        self.tags.append((tag, known))
        if any(name == "label" for name, _ in self.open):
            self.nested_in_label.append(known)
        if tag not in VOID:
            self.open.append((tag, known))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip():
            languages = [known["lang"] for _, known in self.open if known.get("lang")]
            self.words.append((str(languages[-1]) if languages else "", data.strip()))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [known for tag, known in self.tags if tag in names]


@pytest.fixture
def app(tmp_path, intake, monkeypatch):
    """The public app with return codes, whose answers need not wait."""
    monkeypatch.setattr(return_page, "FLOOR", 0.001)
    monkeypatch.setattr(return_page, "JITTER", 0.0)
    numbers = Numbers()
    for _ in range(20):
        numbers.finish()
    boxes = Boxes(questions=((1, "តើមានលេខទេ?"),), grade="witnessed")
    return an_app(tmp_path, intake, codes=numbers, mailboxes=boxes, pass_key=bytes(32))


def come_back(app, fields: dict[str, str], query: bytes):
    headers = [(b"content-type", FORM_TYPE.encode())]
    return drive(app, "POST", "/return", headers=headers, body=encode(fields), query=query)


def every_page(app, intake, language: str) -> dict[str, str]:
    """Return each page that the public may see."""
    query = f"lang={language}".encode()
    token, nonce = open_form(app)
    send = {"token": token, "nonce": nonce, "query": query}
    shown = {
        "cover": drive(app, "GET", "/", query=query),
        "form": drive(app, "GET", "/report", query=query),
        "wrong": post_form(app, {"answer": "phone"}, **send),
        "sent": post_form(app, {"what": "w"}, **send),
        "nothing": drive(app, "GET", "/nothing", query=query),
        "files": drive(app, "POST", "/report", headers=[(b"content-type", b"multipart/form-data")], query=query),
    }
    opened = come_back(app, {"code": CODE}, query)
    passed = re.search(r'name="pass" value="([^"]+)"', opened.text)
    assert passed
    shown |= {
        "number": post_form(app, {"what": "w2", "back": "yes"}, **send),
        "number twice": post_form(app, {"what": "w2", "back": "yes"}, **send),
        "coming back": drive(app, "GET", "/return", query=query),
        "slip": come_back(app, {"code": "1"}, query),
        "unknown": come_back(app, {"code": "3141592653589795"}, query),
        "opened": opened,
    }
    intake.failing = StorageUnavailable("gone")
    shown["not sent"] = post_form(app, {"what": "w"}, **send)
    shown["not added"] = come_back(app, {"pass": passed[1], "more": "w"}, query)
    return {name: answer.text for name, answer in shown.items()} | {
        f"notice {status}": page.decode() for status, page in Pages(["1280 Child helpline"]).notices.items()
    }


@pytest.fixture(params=LANGUAGES)
def language(request) -> str:
    return request.param


@pytest.fixture
def shown(app, intake, language) -> dict[str, Page]:
    return {name: Page(text) for name, text in every_page(app, intake, language).items()}


def test_no_script_no_style_no_other_host(app, intake, language):
    for name, text in every_page(app, intake, language).items():
        page = Page(text)
        assert not page.all("script", "style", "iframe", "img", "object", "embed", "audio", "video"), name
        for tag, known in page.tags:
            assert not any(key.startswith("on") or key == "style" for key in known), (name, tag)
            for key in ("href", "src", "action", "formaction"):
                address = known.get(key)
                assert address is None or re.match(r"(/(?!/)|#|\?|tel:)", address), (name, address)
        assert "//" not in re.sub(r"<!doctype html>", "", text), name


def test_titles_are_neutral_and_nothing_promises_too_much(shown):
    for name, page in shown.items():
        assert page.all("title"), name
        assert next(text for _, text in page.words) == "Bamboo", name
        said = " ".join(text for language, text in page.words if language == "en" and text != "Child helpline")
        assert not DENIED.search(said), (name, DENIED.search(said))


def test_every_control_has_a_label_and_no_memory(shown):
    checked = 0
    for name, page in shown.items():
        labels = {known.get("for") for known in page.all("label")}
        for control in page.all("input", "select", "textarea"):
            if control.get("type") == "hidden" or control.get("name") == "z":
                continue
            checked += 1
            assert control in page.nested_in_label or control.get("id") in labels, (name, control)
            if control.get("type") != "radio":
                assert control.get("autocomplete") == "off", (name, control)
        for field in page.all("textarea") + [known for known in page.all("input") if known.get("type") == "text"]:
            assert field.get("spellcheck") == "false"
        for form in page.all("form"):
            assert form.get("autocomplete") == "off"
            assert form.get("method") == "post"
            secret = [known for known in page.all("input") if known.get("name") == "z"]
            assert secret == [
                {
                    "type": "password",
                    "name": "z",
                    "value": "x",
                    "autocomplete": "one-time-code",
                    "hidden": None,
                    "tabindex": "-1",
                }
            ] * len(page.all("form"))
    assert checked > 30


def test_ids_are_single_and_what_is_pointed_at_is_there(shown):
    for name, page in shown.items():
        ids = [known["id"] for _, known in page.tags if known.get("id")]
        assert len(ids) == len(set(ids)), name
        for _, known in page.tags:
            for key in ("for", "aria-labelledby", "aria-describedby"):
                for target in (known.get(key) or "").split():
                    assert target in ids, (name, target)
            href = known.get("href") or ""
            if href.startswith("#"):
                assert href[1:] in ids, (name, href)


def test_groups_of_choices_have_a_legend_and_pages_a_heading(shown):
    for name, page in shown.items():
        tags = [tag for tag, _ in page.tags]
        assert tags.count("fieldset") == tags.count("legend"), name
        assert tags.count("h1") == (2 if name.startswith("notice") or name in ("nothing", "files") else 1), name
        assert [tag for tag in tags if tag in ("main", "header")] == ["header", "main"], name


def test_close_comes_first_and_leads_to_the_cover(shown, language):
    for name, page in shown.items():
        if name == "cover":
            continue
        first = next(known for tag, known in page.tags if tag in ("a", "button", "input", "select", "textarea"))
        assert first.get("class") == "close", name
        assert first.get("rel") == "noreferrer"
        assert first.get("href") in ("/", f"/?lang={language}")


def test_each_page_says_its_language(shown, language):
    khmer = re.compile("[\u1780-\u17ff]")
    for name, page in shown.items():
        assert page.all("html")[0]["lang"] == (
            language if "notice" not in name and name not in ("nothing", "files") else "km"
        )
        for said, text in page.words:
            if " · " in text:
                continue  # a province stands in both scripts
            if khmer.search(text):
                assert said == "km", (name, text)
            elif re.search("[A-Za-z]{2}", text) and text != "Bamboo":
                assert said == "en", (name, text)


def test_the_cover_is_the_same_for_everybody(app):
    plain = drive(app, "GET", "/")
    for headers in ([(b"accept-language", b"en")], [(b"cookie", b"a=b")], [(b"user-agent", b"other")]):
        assert drive(app, "GET", "/", headers=headers) == plain
    assert drive(app, "GET", "/", query=b"lang=fr").body == plain.body
    assert 'lang="km"' in plain.text


def test_two_loads_of_the_form_differ_only_in_token_and_names(app):
    first, second = (drive(app, "GET", "/report").text for _ in range(2))
    assert first != second

    def plain(page: str) -> str:
        return re.sub(r'name="(\w+)-[0-9a-f]{8}"|value="[A-Za-z0-9_=-]{48}"', r"\1", page)

    assert plain(first) == plain(second)
    assert "@" not in plain(first)


def test_form_and_receipt_leave_by_themselves(app, language):
    query = f"lang={language}".encode()
    form = drive(app, "GET", "/report", query=query).text
    sent = post_form(app, {"what": "w"}, query=query).text
    cover = "/" if language == "km" else "/?lang=en"
    assert f'<meta http-equiv="refresh" content="1200;url={cover}">' in form
    assert f'<meta http-equiv="refresh" content="10;url={cover}">' in sent


def test_nothing_that_was_sent_stands_on_the_receipt(app):
    page = post_form(app, {"what": "words", "answer": "phone", "number": "000000001"}).text
    assert "words" not in page
    assert "00000001" not in page


@pytest.mark.parametrize("path", ["/", "/report"])
def test_the_first_page_is_small(app, path, language):
    answer = drive(app, "GET", path, query=f"lang={language}".encode())
    head = sum(len(name) + len(value) + 4 for name, value in answer.headers) + 100  # status line, date
    assert head + len(answer.body) <= FIRST_PAGE


def test_the_style_sheet_is_small_and_calls_nobody(app):
    css = drive(app, "GET", "/static/public.css")
    assert css.status == 200
    assert len(css.body) < 6_000
    assert not re.search(r"url\(|@import|@font-face|//", css.text)


def test_every_class_has_a_style(app, intake):
    css = drive(app, "GET", "/static/public.css").text
    for language in LANGUAGES:
        for name, text in every_page(app, intake, language).items():
            intake.failing = None
            for _, known in Page(text).tags:
                for style in (known.get("class") or "").split():
                    assert f".{style}" in css, (name, style)


# --- words ---


def messages() -> set[str]:
    """Return every English text of the templates and of the code."""
    found = {name for _, name in answers.KINDS} | {answers.WORDS_MISSING, answers.NUMBER_WRONG}
    found |= {call.label for call in Pages(("1280 Child helpline", "117 Police")).calls}
    for template in (pages.HERE / "templates").glob("*.html"):
        with template.open("rb") as source:
            found |= {str(text) for _, text, _, _ in extract("jinja2.ext:babel_extract", source, options={})}
    return found


def test_every_text_is_translated_and_nothing_else():
    assert len(messages()) > 40
    assert set(catalogue("km")) == messages()


def test_translations_keep_the_placeholders_and_are_khmer():
    marks = re.compile(r"%\(\w+\)s|%[sd]|\{\w*\}|[0-9]{2,}")
    for english, khmer in catalogue("km").items():
        digits = khmer.translate({0x17E0 + n: str(n) for n in range(10)})
        assert sorted(marks.findall(english)) == sorted(marks.findall(digits)), english
        assert re.search("[\u1780-\u17ff]", khmer), english


def test_khmer_is_marked_as_unreviewed_and_parses_cleanly():
    path = Path(pages.HERE, "locales", "km", "LC_MESSAGES", "webhooks.po")
    assert "unreviewed" in path.read_text().splitlines()[0]
    with path.open("rb") as source:
        found = read_po(source, locale="km", abort_invalid=True)
    assert not [message.id for message in found if message.fuzzy and message.id]


def test_a_number_with_a_label_of_its_own_stays_as_it_was_written():
    page = Pages(("+855 23 000 001 Our desk",)).notices[503].decode()
    assert 'href="tel:+85523000001"><b>+855 23 000 001</b><span lang="en">Our desk</span>' in page


@pytest.mark.parametrize("wrong", ["Police 117", "117", "", "<b> Police"])
def test_a_number_that_nobody_could_call_is_refused_at_start(wrong):
    with pytest.raises(Misconfigured):
        Pages((wrong,))


@pytest.mark.parametrize(
    ("query", "language"),
    [(b"", "km"), (b"lang=en", "en"), (b"a=b&lang=en", "en"), (b"lang=english", "km"), (b"lang=%65n", "km")],
)
def test_the_language_comes_from_the_address_alone(query, language):
    assert language_of(query) == language
