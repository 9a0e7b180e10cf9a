"""The dashboard of a real site in a real Chromium: a killed agent, a request from the page, a restart of the broker."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.servers.ports import free_port
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site
from tests.acceptance.conftest import agents
from tests.browser import CHROMIUM, Browser
from tests.patience import PATIENCE_S

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@contextmanager
def dashboard(*connection: str) -> Iterator[str]:
    """A process of ``s2m3 dashboard``; gives the address that it prints."""
    command = [sys.executable, "-m", "s2m3", "dashboard", "--port", "0", "--until-stdin-closes", *connection]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().split()[4].removesuffix(";")
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site("mosquitto", agents(gw_a="48MiB", gw_b="160MiB", gw_c="160MiB")) as running:
        running.serve([load_task(f"pocket/{name}") for name in ("classify", "zero-shot")])
        yield running


@pytest.fixture
def page(site: Site) -> Iterator[Browser]:
    """The page, with all that the site has; it complained of nothing, and loaded nothing of another host."""
    with dashboard("--broker", site.url) as url, Browser() as browser:
        browser.look(width=1280, height=900)
        browser.open(url)
        browser.wait("document.querySelectorAll('.lane.here').length == 3")
        browser.wait("document.querySelectorAll('.chip.served').length == 2")
        yield browser
        assert browser.complaints == []
        assert [each for each in browser.loaded if not each.startswith((url, "blob:"))] == []


def device(name: str, *, gone: bool) -> str:
    return f"document.querySelector('[data-device={name}].{'gone' if gone else 'here'}')"


def test_a_chosen_picture_gets_its_answer_and_the_request_its_waterfall(page: Browser, jpeg: Path) -> None:
    page.choose_file("#ask input[type=file]", jpeg)
    page.wait("document.querySelector('.dropped img')")
    page.value("document.querySelector('.go').click()")
    page.wait("document.querySelector('#answer .said')")
    assert page.value("document.querySelector('#answer .said').textContent").startswith("missile")
    assert "image-encoder@gw-" in page.value("document.querySelector('#answer').textContent")
    page.wait("document.querySelector('.request')")
    page.value("document.querySelector('.request summary').click()")
    page.wait("document.querySelectorAll('.request .node').length == 2")


DROP = """new Promise((done) => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  canvas.toBlob((blob) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([blob], 'dropped.png', {type: 'image/png'}));
    const drop = new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true});
    document.querySelector('.drop').dispatchEvent(drop);
    done();
  });
})"""


def test_a_dropped_picture_gets_its_answer(page: Browser) -> None:
    page.value(DROP)
    page.wait("document.querySelector('.dropped').textContent == 'dropped.png'")
    page.value("document.querySelector('.go').click()")
    page.wait("document.querySelector('#answer .said')")


@contextmanager
def http_door(site: Site) -> Iterator[str]:
    """A process of ``s2m3 http``; gives its address."""
    command = [sys.executable, "-m", "s2m3", "http", "--port", "0", "--until-stdin-closes", "--broker", site.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().split()[5].removesuffix(";")
        process.stdin.close()


ASKED = 'a rocket\'s launch\na "cat" 50 % \\\\ off'


@pytest.mark.parametrize(("task", "texts", "answers"), [("classify", "", "missile"), ("zero-shot", ASKED, "rocket's")])
def test_the_lines_of_the_page_ask_the_same_where_they_are_pasted(  # noqa: PLR0917 - one row of the table
    site: Site, page: Browser, jpeg: Path, tmp_path: Path, task: str, texts: str, answers: str
) -> None:
    shutil.copy(jpeg, tmp_path / "frame.jpg")
    page.value(
        f"{{const made = document.querySelector('#ask select'); made.value = {json.dumps(task)}; "
        "made.dispatchEvent(new Event('change'));}"
    )
    page.choose_file("#ask input[type=file]", tmp_path / "frame.jpg")
    if texts:
        page.value(
            f"{{const field = document.querySelector('#ask textarea'); field.value = {json.dumps(texts)}; "
            "field.dispatchEvent(new Event('input', {bubbles: true}));}"
        )
    page.wait("document.querySelector('.dropped img')")
    shell, curl, python = page.value("[...document.querySelectorAll('#snippets pre')].map((each) => each.textContent)")
    with http_door(site) as door:
        curl = curl.replace("http://127.0.0.1:8080", door)
        for command in (["bash", "-c", shell], ["sh", "-c", curl], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
            )
            assert answers in done.stdout, done
    page.value("document.querySelector('.go').click()")
    page.wait(f"document.querySelector('#answer .said')?.textContent.includes({json.dumps(answers)})")


def test_a_request_without_its_input_is_told_on_the_page(page: Browser) -> None:
    page.value("document.querySelector('.go').click()")
    page.wait("document.querySelector('#answer .bad')")
    assert page.value("document.querySelector('#answer').textContent") == "image is missing: choose a file"


def test_without_the_flag_there_is_no_button(page: Browser) -> None:
    assert page.value("document.querySelectorAll('.order').length") == 0


def test_a_chosen_task_shows_its_path(page: Browser) -> None:
    page.value("document.querySelectorAll('.chip')[1].click()")
    page.wait("document.querySelectorAll('#paths > path').length >= 2")
    assert page.value("document.querySelectorAll('.block.on').length") >= 3
    assert page.value("document.querySelector('#path-text').textContent").startswith("zero-shot: ")


def test_a_device_is_drained_and_put_back_from_the_page(site: Site) -> None:
    with dashboard("--broker", site.url, "--allow-control") as url, Browser() as browser:
        browser.look(width=1280, height=900)
        browser.open(url)
        browser.wait("document.querySelectorAll('.order').length == 3")
        browser.value("document.querySelector('[data-device=gw-b] .order').focus()")
        for key, word in (("Enter", "drained"), ("Space", "online")):
            browser.press(key)
            browser.wait(f"document.querySelector('[data-device=gw-b]').classList.contains('{word}')")
            held = browser.value("document.activeElement.getAttribute('aria-label')")
            assert held == ("undrain gw-b" if word == "drained" else "drain gw-b")
        assert browser.complaints == []


def test_a_killed_agent_turns_grey_and_its_modules_move(site: Site, page: Browser) -> None:
    victim = site.observer.routes["classify"].front_door[0]
    site.kill(victim)
    page.wait(device(victim, gone=True))
    encoder = "efficientnet-lite0/encoder"
    moved = (
        f"[...document.querySelectorAll('.here .block.ready.active b')].some((each) => each.textContent == '{encoder}')"
    )
    page.wait(moved)
    page.wait("document.querySelectorAll('.failure li.done').length >= 2")
    assert victim in page.value("document.querySelector('.failure h3').textContent")
    page.wait("document.querySelectorAll('.chip.served').length == 2")
    site.start_agent(victim)
    page.wait(device(victim, gone=False))


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"width": 1280, "height": 900},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "phone": {"width": 390, "height": 844},
    "calm": {"width": 1280, "height": 900, "calm": True},
}
MOVING = "[...document.querySelectorAll('*')].filter((each) => getComputedStyle(each).transitionDuration != '0s')"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program that finds what people with disabilities can't use."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm isn't installed")
    folder = tmp_path_factory.mktemp("axe")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4.11.0"]
    subprocess.run(install, cwd=folder, check=True, timeout=10 * PATIENCE_S, capture_output=True)
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_serious_is_found_in_any_look(site: Site, page: Browser, axe: str, look: str) -> None:
    site.client.ask("classify", image=str(picture("rocket.jpg").path))
    page.look(**LOOKS[look])
    page.value("document.querySelectorAll('.chip')[1].click()")
    page.wait("document.querySelector('.request') && document.querySelector('#paths > path')")
    page.value("document.querySelector('.request summary').click()")
    page.value("document.querySelector('#snippets summary').click()")
    page.wait("document.querySelector('.request .node')")
    page.value(f"{axe}; 0")
    found = page.value(
        "axe.run().then((each) => each.violations.map(({id, impact, nodes}) => [id, impact, nodes[0].html]))"
    )
    assert [each for each in found if each[1] in {"serious", "critical"}] == []
    assert page.value(TOO_WIDE) <= 0
    assert (page.value(f"{MOVING}.length") == 0) is (look == "calm")


def test_all_of_it_is_reached_by_the_keyboard(site: Site, page: Browser) -> None:
    site.client.ask("classify", image=str(picture("rocket.jpg").path))
    page.wait("document.querySelector('.request')")
    reached: dict[str, int] = {}
    while len(reached) < 60 and not any(name.startswith("SUMMARY request") for name in reached):
        page.press("Tab")
        place = "(({tagName, id, className, parentNode}) => `${tagName} ${parentNode.className} ${id} ${className}`)"
        reached[page.value(f"{place}(document.activeElement)")] = len(reached)
        outline = "getComputedStyle(document.activeElement.closest('.drop') ?? document.activeElement).outlineStyle"
        assert page.value(outline) != "none"
    assert {name.split()[0] for name in reached} >= {"BUTTON", "SELECT", "INPUT", "SUMMARY"}
    page.press("Enter")
    page.wait("document.querySelector('.request[open] .node')")
    page.value("document.querySelectorAll('.chip')[1].focus()")
    page.press("Space")
    page.wait("document.querySelector('#paths > path')")
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_a_dashboard_that_is_started_again_is_found_and_shows_nothing_of_before(site: Site) -> None:
    port = free_port()
    with Browser() as browser:
        browser.look(width=1280, height=900)
        for task in ("classify", "zero-shot"):
            with dashboard("--broker", site.url, "--port", str(port)) as url:
                if task == "classify":
                    browser.open(url)
                browser.wait("document.querySelectorAll('.lane.here').length == 3")
                browser.wait("document.querySelector('#link.live')")
                text = None if task == "classify" else "a cat"
                site.client.ask(task, image=str(picture("rocket.jpg").path), text=text)
                browser.wait(f"document.querySelector('.request b')?.textContent == '{task}'")
                assert browser.value("document.querySelectorAll('.request').length") == 1
            browser.wait("document.querySelector('#link.lost')")


def test_a_restart_of_the_broker_heals_the_page(site: Site, page: Browser) -> None:
    site.kill_broker()
    page.wait("document.querySelector('#link.lost')")
    assert page.value("document.querySelector('#link').textContent").startswith("no broker: ")
    site.start_broker()
    page.wait("document.querySelector('#link.live')")
    page.wait("document.querySelectorAll('.lane.here').length == 3")
