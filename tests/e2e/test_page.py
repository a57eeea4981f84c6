"""The page of `bridge run`, in a real browser, over real servers.

The documentation's pictures are made by the same tests (Debian's pngquant, when it is there, makes them small):
PAGE_IMAGES=docs/images pytest tests/e2e/test_page.py
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.support.lab import Lab, free_port
from tests.support.lab.engine import NoEngineError, install
from tests.support.lab.servers import Program
from tests.support.program import Daemon, environment
from tests.support.raw import RawConsul, RawKube, ready_addresses

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Eventually = Callable[..., None]
Open = Callable[..., Page]

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
PASSWORD = "open-sesame"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "page.md"
PICTURES = ("overview-light-wide", "overview-dark-wide", "service-light-wide", "overview-dark-phone", "held")
"""Those that docs/page.md shows."""


def debian(program: str) -> str:
    """Where a program is. When missing, it is installed in continuous integration; elsewhere the test is skipped."""
    if (found := shutil.which(program)) is None and os.environ.get("CI") == "true" and os.geteuid() == 0:
        install([program])
        found = shutil.which(program)
    if found is None:
        reason = f"no {program} on the PATH (Debian's package of that name has it)"
        if os.environ.get("CI") == "true":
            raise NoEngineError(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all of these tests."""
    program = debian("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS), timeout=PATIENCE_MS)
        yield running
        running.close()


class Complaints(list[str]):
    """What a browser complains about: console errors, failed scripts, and what the policy (CSP) forbids."""

    def watch(self, page: Page, missing: bool) -> None:
        """Collect from now on; not that a page is missing, where that is what a test is about."""

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (missing and "status of 404" in message.text):
                self.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: self.append(str(error)))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
        )


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens an address in a context of its own; options are Playwright's. Nothing may be complained about.

    `missing`: the browser may say that a page is not there.
    """
    contexts: list[BrowserContext] = []
    found: list[Complaints] = []

    def open_at(address: str, missing: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page, complaints = context.new_page(), Complaints()
        found.append(complaints)
        complaints.watch(page, missing)
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert [text for complaints in found for text in complaints] == []


def picture(page: Page, name: str) -> None:
    """A screenshot for the documentation, when a user asks for them."""
    if (folder := os.environ.get("PAGE_IMAGES")) and name in PICTURES:
        Path(folder).mkdir(parents=True, exist_ok=True)
        data = page.screenshot()  # written here: Playwright would leave a thread behind that writes files
        if pngquant := shutil.which("pngquant"):
            data = subprocess.run(
                (pngquant, "--quality=60-95", "-"), input=data, stdout=subprocess.PIPE, check=True
            ).stdout
        (Path(folder) / f"page-{name}.png").write_bytes(data)


def expect_names(page: Page, names: list[str]) -> None:
    """Wait for just these names in the table, in this order: a click does not wait for the next page to be whole."""
    expect(page.locator("#results tbody th a")).to_have_text(names, use_inner_text=True)


def fill(consul: RawConsul, prefix: str, services: int, instances: int = 3) -> list[str]:
    """Register services in Consul; their names, sorted."""
    words = ("billing", "cache", "gateway", "ldap", "metrics", "orders", "postgres", "radosgw", "search", "web")
    names = [f"{prefix}{words[n % len(words)]}-{n:03}" for n in range(services)]
    for n, name in enumerate(names):
        for i in range(instances):
            address = f"10.{70 + i}.{n // 250}.{n % 250 + 1}"
            consul.register(name, f"{prefix}vm-{i}", f"10.69.0.{i + 1}", 8080, Address=address)
    return sorted(names)


def seen(page: Page, selector: str) -> int:
    """How many of these elements are whole on the first screen."""
    script = "(all) => all.filter(e => e.getBoundingClientRect().bottom <= innerHeight).length"
    return int(page.locator(selector).evaluate_all(script))


def test_it_shows_searches_sorts_and_pages(daemon: Daemon, consul: RawConsul, opened: Open, prefix: str) -> None:
    """A hundred and twenty services: three pages, found by name, ordered by any column, with the address saying it.

    Thirty of them are seen on a usual screen; on a phone's first screen are the verdict and the first services.
    """
    names = fill(consul, prefix, 120)
    page = opened(daemon.url)
    expect(page.locator("#count")).to_have_text("Services 1 to 50 of 120")
    expect(page.locator("h1")).to_have_text(re.compile("In sync$"))
    assert seen(page, "#results tbody tr") >= 30
    phone = opened(daemon.url, viewport={"width": 390, "height": 844})
    assert seen(phone, "#verdict h1") == 1
    assert seen(phone, "#results tbody tr") >= 5
    phone.context.close()
    expect_names(page, names[:50])
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#count")).to_have_text("Services 51 to 100 of 120")
    expect_names(page, names[50:100])
    page.get_by_role("link", name="Service", exact=True).click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Service")
    expect_names(page, names[:50])
    page.get_by_role("link", name="Service", exact=True).click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Service")
    expect_names(page, names[::-1][:50])
    page.get_by_label("Search services").press_sequentially("radosgw")
    expect(page.locator("#count")).to_have_text("Services 1 to 12 of 12")
    expect_names(page, [n for n in names[::-1] if "radosgw" in n])
    expect(page).to_have_url(re.compile("q=radosgw"))
    page.reload()
    expect(page.locator("#count")).to_have_text("Services 1 to 12 of 12")
    page.get_by_label("Search services").fill("no such thing")
    expect(page.locator("#count")).to_have_text("No service matches.")


def test_it_follows_what_happens_without_being_reloaded(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str,
    opened: Open, eventually: Eventually,
) -> None:  # fmt: skip
    """An instance that turns unhealthy is seen in the table, in the changes, on the service's page and in its rows."""
    name = f"{prefix}radosgw"
    for i in range(12):
        consul.register(name, f"{prefix}vm-{i}", f"10.77.0.{i + 1}", 8080)
    eventually(lambda: len(ready_addresses(kube.endpoints(namespace, name))), 12, 60)
    page = opened(daemon.url)
    detail = opened(f"{daemon.url}/service/{namespace}/{name}")
    expect(page.locator("h1")).to_have_text(re.compile("In sync$"))
    expect(page.locator("#live span")).to_have_text("Live")
    row = page.locator("#results tbody tr")
    expect(row.locator("td").nth(1)).to_have_text("12 ready")
    consul.flip(name, f"{prefix}vm-3", "critical")
    expect(row.locator("td").nth(1)).to_have_text("11 ready, 1 not ready")
    expect(page.locator("#changes li").first).to_contain_text(f"{name} 11 ready, 1 not ready (was 12 ready)")
    sick = detail.locator("#why tbody tr", has_text=f"{prefix}vm-3")
    expect(sick).to_contain_text("critical")
    expect(sick.locator("td").nth(4)).to_have_text("not ready")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live span")).to_have_text("Paused")
    consul.flip(name, f"{prefix}vm-3", "passing")
    eventually(lambda: len(ready_addresses(kube.endpoints(namespace, name))), 12, 60)
    expect(detail.locator("#changes li").first).to_contain_text("12 ready (was 11 ready)")
    expect(row.locator("td").nth(1)).to_have_text("11 ready, 1 not ready")
    page.get_by_role("button", name="Resume").click()
    expect(row.locator("td").nth(1)).to_have_text("12 ready")


def test_it_shows_what_the_guard_holds(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str,
    opened: Open, eventually: Eventually,
) -> None:  # fmt: skip
    """Twelve of twelve turn unhealthy at once: the verdict, the row and the service's page say what is held and why."""
    name = f"{prefix}radosgw"
    for i in range(12):
        consul.register(name, f"{prefix}vm-{i}", f"10.77.0.{i + 1}", 8080)
    eventually(lambda: len(ready_addresses(kube.endpoints(namespace, name))), 12, 60)
    page = opened(daemon.url)
    expect(page.locator("h1")).to_have_text(re.compile("In sync$"))
    for i in range(12):
        consul.flip(name, f"{prefix}vm-{i}", "critical")
    expect(page.locator("h1")).to_have_text(re.compile("Removals held$"))
    line = page.locator("#verdict li", has_text="Removals held")
    expect(line.get_by_role("link", name=f"{namespace}/{name}")).to_be_visible()
    command = line.locator("code").inner_text()
    assert command.endswith(f"--service {name} --namespace {namespace} --force")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    line.get_by_role("button", name="Copy").click()
    expect(line.get_by_role("button", name="Copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == command
    row = page.locator("#results tbody tr")
    expect(row.locator(".badge")).to_have_text(re.compile("held$"))
    expect(row.locator("td").first).to_contain_text("12 not ready")
    row.get_by_role("link").click()
    expect(page.locator("#why")).to_contain_text("Held:")
    page.goto(f"{daemon.url}?state=held")
    expect(page.locator("#count")).to_have_text("Services 1 to 1 of 1")


def test_a_service_without_any_ready_endpoint_is_amber_and_its_times_are_the_readers(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str,
    opened: Open, eventually: Eventually,
) -> None:  # fmt: skip
    """One of two services has one instance, and that one fails: mark, filter, verdict, metric; seen from Tokyo."""
    for name in ("web", "db"):
        consul.register(f"{prefix}{name}", f"{prefix}vm-{name}", "10.77.0.1", 8080)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}db")), [("10.77.0.1", 8080)], 60)
    consul.flip(f"{prefix}db", f"{prefix}vm-db", "critical")
    eventually(lambda: daemon.metric("consul_bridge_services_without_ready_endpoints"), 1, 60)
    page = opened(daemon.url, timezone_id="Asia/Tokyo", viewport={"width": 390, "height": 844})
    expect(page.locator("h1")).to_have_text(re.compile("No ready endpoint$"))
    expect(page.locator("#verdict li").get_by_role("link")).to_have_text(f"{namespace}/{prefix}db")
    expect(page.locator("#results tbody tr").first.locator(".badge.warn")).to_have_text(
        re.compile("no ready endpoint$")
    )
    expect(page.locator(".zone")).to_have_text("times in Asia/Tokyo")
    time_of = page.locator("#changes time").first
    shown, title = time_of.inner_text(), time_of.get_attribute("title") or ""
    assert (int(shown[:2]) - int(title[11:13])) % 24 == 9
    assert title.endswith(" UTC")
    expect(page.locator("#about")).to_contain_text("rule 1 (--service")
    page.get_by_role("link", name=re.compile("^No ready endpoint")).click()
    expect(page.locator("#count")).to_have_text("Services 1 to 1 of 1")
    page.goto(f"{daemon.url}/service/{namespace}/{prefix}db")
    expect(page.locator("#why tbody th")).to_have_text(re.compile("vm-db"))
    assert page.locator(".instances").evaluate("e => e.scrollWidth - e.clientWidth") == 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_service_that_goes_while_its_page_is_open_is_shown_as_gone(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str,
    opened: Open, eventually: Eventually,
) -> None:  # fmt: skip
    """Its page becomes the one of a service that is not there, and follows on: it comes back with the service."""
    name = f"{prefix}radosgw"
    consul.register(name, f"{prefix}vm-0", "10.77.0.1", 8080)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, name)), [("10.77.0.1", 8080)], 60)
    page = opened(f"{daemon.url}/service/{namespace}/{name}", missing=True)
    expect(page.locator("#live span")).to_have_text("Live")
    consul.deregister(name, f"{prefix}vm-0")
    expect(page.locator("h1")).to_have_text("No such service")
    expect(page.locator("#main")).to_contain_text(f"Nothing is mirrored to {namespace}/{name}.")
    expect(page.locator("#why")).to_have_count(0)
    expect(page).to_have_title(re.compile("^No such service"))
    consul.register(name, f"{prefix}vm-0", "10.77.0.2", 8080)
    expect(page.locator("#why tbody tr")).to_contain_text("10.77.0.2")
    expect(page.locator("h1")).to_contain_text(name)


def test_what_is_selected_stays_and_the_page_reports_it(
    daemon: Daemon, consul: RawConsul, kube: RawKube, namespace: str, prefix: str,
    opened: Open, eventually: Eventually,
) -> None:  # fmt: skip
    """A user who copies text is not disturbed, and does not read that the page is live."""
    name = f"{prefix}radosgw"
    for i in range(3):
        consul.register(name, f"{prefix}vm-{i}", f"10.77.0.{i + 1}", 8080)
    eventually(lambda: len(ready_addresses(kube.endpoints(namespace, name))), 3, 60)
    page = opened(daemon.url)
    cell = page.locator("#results tbody td").nth(1)
    expect(cell).to_have_text("3 ready")
    cell.evaluate("e => getSelection().selectAllChildren(e)")
    consul.flip(name, f"{prefix}vm-1", "critical")
    expect(page.locator("#changes li").first).to_contain_text("(was 3 ready)")
    expect(page.locator("#live span")).to_have_text("Waits while text is selected")
    expect(cell).to_have_text("3 ready")
    page.evaluate("getSelection().removeAllRanges()")
    expect(cell).to_have_text("2 ready, 1 not ready")
    expect(page.locator("#live span")).to_have_text("Live")


def test_it_works_without_script(
    daemon: Daemon,
    consul: RawConsul,
    opened: Open,
    prefix: str,
    eventually: Eventually,
) -> None:
    """Search by the button, sort and page by links, a service's page: plain HTML."""
    names = fill(consul, prefix, 60, 1)
    eventually(lambda: [daemon.get("/")[1].count(text) for text in (b"of 60<", b"In sync</h1>")], [1, 1], 60)
    page = opened(
        daemon.url, java_script_enabled=False
    )  # the first sync is over, so that nothing is in trouble and first
    page.get_by_role("link", name="Next").click()
    expect_names(page, names[50:])
    page.get_by_label("Search services").fill("ldap")
    page.get_by_role("button", name="Search").click()
    expect_names(page, [n for n in names if "ldap" in n])
    page.locator("#results tbody th a").first.click()
    expect(page.locator("#why tbody tr")).to_have_count(1)
    expect(page.locator("#live")).to_contain_text("Reload to see what is new.")


def test_it_is_usable_by_keyboard_and_named_for_screen_readers(
    daemon: Daemon,
    consul: RawConsul,
    opened: Open,
    prefix: str,
    eventually: Eventually,
) -> None:
    """The skip link comes first and works, focus is seen and survives an update, everything has a role and a name."""
    name = fill(consul, prefix, 1, 2)[0]
    eventually(lambda: daemon.get("/")[1].count(b"of 1<"), 1, 60)
    page = opened(daemon.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    for role in ("banner", "main", "search"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    expect(page.get_by_role("columnheader", name="State")).to_have_attribute("aria-sort", "ascending")
    expect(page.get_by_role("rowheader")).to_contain_text(name)
    expect(page.get_by_role("img", name=re.compile("Lag, last 15 minutes"))).to_be_visible()
    link = page.locator("#results").get_by_role("link", name=name)
    link.focus()
    expect(link).to_have_css("outline-style", "solid")
    consul.flip(name, f"{prefix}vm-0", "critical")
    expect(page.locator("#results tbody td").nth(1)).to_have_text("1 ready, 1 not ready")
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(name)


@dataclass(frozen=True, slots=True)
class Proxy:
    """nginx with the configuration that docs/page.md shows, in front of a bridge."""

    port: int
    trust: ssl.SSLContext

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def ask(self, path: str, method: str = "GET", password: str = PASSWORD) -> Iterator[http.client.HTTPResponse]:
        """An answer whose headers have come; the rest is to be read from it. Asked for by a name, as people do."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.trust, timeout=60)
        credentials = base64.b64encode(f"alice:{password}".encode()).decode()
        with contextlib.closing(connection):
            headers = {"Authorization": f"Basic {credentials}", "Host": "bridge.example.com"}
            connection.request(method, path, headers=headers)
            with connection.getresponse() as answer:
                yield answer

    def status(self, path: str, method: str = "GET", password: str = PASSWORD) -> int:
        """Of an answer."""
        with self.ask(path, method, password) as answer:
            return answer.status


@pytest.fixture
def proxy(daemon: Daemon, lab: Lab, tmp_path: Path) -> Iterator[Proxy]:
    """The proxy of the documentation: other ports, other paths, nothing else is changed."""
    program, port = debian("nginx"), free_port()
    (shown,) = re.findall(r"^```nginx\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    config = shown
    for there, here in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("http://127.0.0.1:9480;", f"{daemon.url};"),
        ("/etc/nginx/", f"{tmp_path}/"),
    ):
        assert there in config
        config = config.replace(there, here)
    (line,) = re.findall(r"# Who may look. Another line: (printf .*)$", config, re.MULTILINE)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "bridge.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "bridge.pem"))
    subprocess.run(["bash", "-c", line.replace("passwd -6", f"passwd -6 {PASSWORD}")], check=True)
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log stderr; {user} events {{}}\n"
        f"http {{ access_log off; {folders}\n{config}}}\n"
    )
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    made = Proxy(port, trust)

    def listens() -> bool:
        try:
            return made.status("/healthz") == 200
        except OSError:
            return False

    running = Program(
        lab.folder / f"nginx-{port}",
        [program, "-c", f"{tmp_path}/nginx.conf", "-e", "stderr"],
        environment("", ""),
        listens,
    )
    try:
        running.start()
        yield made
    finally:
        running.stop()


def test_the_documented_proxy_authenticates_users_and_allows_only_reading(proxy: Proxy) -> None:
    """The bridge answers behind it (its look at Host lets that through); metrics are left out."""
    assert (proxy.status("/", password="guessed"), proxy.status("/")) == (401, 200)
    assert [proxy.status("/", method) for method in ("HEAD", "POST", "DELETE")] == [200, 403, 403]
    assert [proxy.status(path) for path in ("/metrics", "/nix", "/readyz")] == [404, 404, 200]
    with proxy.ask("/") as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_page_behind_the_documented_proxy_follows(
    proxy: Proxy, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, opened: Open, eventually: Eventually
) -> None:
    """A browser's page, and a script that asks for what is new."""
    options = {"ignore_https_errors": True, "http_credentials": {"username": "alice", "password": PASSWORD}}
    page = opened(proxy.url, **options)
    expect(page.locator("#live span")).to_have_text("Live")
    with proxy.ask("/api/changes?limit=0") as answer:
        newest = json.load(answer)["newest"]
    consul.register(f"{prefix}web", f"{prefix}vm-0", "10.77.0.1", 8080)
    eventually(lambda: ready_addresses(kube.endpoints(namespace, f"{prefix}web")), [("10.77.0.1", 8080)], 60)

    def told() -> list[str]:
        with proxy.ask(f"/api/changes?after={newest}") as answer:
            return [change["text"] for change in json.load(answer)["changes"]]

    eventually(lambda: "created: 1 ready" in told(), True, 60)
    expect(page.locator("#results tbody tr")).to_contain_text(f"{prefix}web")


SERVICES: Mapping[str, int] = {
    "billing": 3, "grafana": 1, "ldap": 2, "mailrelay": 2, "metrics": 3, "orders": 4,
    "postgres": 2, "radosgw": 12, "redis": 3, "registry": 2, "search": 5, "web": 6,
}  # fmt: skip


def test_it_is_dark_and_light_and_fits_a_phone(fresh_lab: Lab, opened: Open, eventually: Eventually) -> None:
    """By the reader's own preference; nothing is wider than the screen. These are the documentation's pictures."""
    env = environment(fresh_lab.consul.address, fresh_lab.kubeconfig)
    running = Daemon(fresh_lab, "page", "--service", "*", "--namespace", "storage", env=env)
    with fresh_lab.raw_kube() as kube, fresh_lab.raw_consul() as consul:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "storage"}}
        kube.json("POST", "/api/v1/namespaces", body)
        for n, (name, instances) in enumerate(SERVICES.items()):
            for i in range(instances):
                consul.register(name, f"{name}-{i + 1}", f"10.77.{n}.{i + 1}", 8000 + n)
        running.start()
        try:
            eventually(lambda: len(ready_addresses(kube.endpoints("storage", "web"))), 6, 60)
            if os.environ.get("PAGE_IMAGES"):
                be_busy(consul, kube)
            consul.flip("radosgw", "radosgw-4", "critical")
            consul.flip("orders", "orders-2", "warning")
            eventually(lambda: len(ready_addresses(kube.endpoints("storage", "radosgw"))), 11, 60)
            look_at_everything(running, opened)
            for name in sorted(SERVICES, key=lambda s: -SERVICES[s]):
                for i in range(1, SERVICES[name]):
                    consul.deregister(name, f"{name}-{i + 1}")
            page = opened(running.url)
            expect(page.locator("h1")).to_have_text(re.compile("Removals held$"))
            expect(page.locator("#changes li.bad").first).to_contain_text("held")
            picture(page, "held")
            page.context.close()
        finally:
            running.stop()


def be_busy(consul: RawConsul, kube: RawKube) -> None:
    """Changes for a few minutes, so that the curves of a picture are more than one stroke."""
    for n in range(60):
        for name in sorted(SERVICES)[n % 4 :: 4][: 1 + n % 3]:
            consul.flip(name, f"{name}-1", "passing" if (n // 4) % 2 else "critical")
        kube.endpoints("storage", "web")  # its connection is not to be closed meanwhile
        time.sleep(1 + n % 6)
    for name in SERVICES:
        consul.flip(name, f"{name}-1", "passing")


COUNTS = "#results td:nth-child(2), #results td:nth-child(2) *, #results td:nth-child(3), #results td:nth-child(3) *"
"""How many endpoints are ready and how many are not, on both sides: what may not be cut off."""


def look_at_everything(running: Daemon, opened: Open) -> None:
    """The first page and a service's, in both colours and on both screens."""
    backs = set()
    for scheme in ("light", "dark"):
        for width, size in ((1280, "wide"), (375, "phone")):
            for path, what in (("/", "overview"), ("/service/storage/radosgw", "service")):
                page = opened(running.url + path, color_scheme=scheme, viewport={"width": width, "height": 860})
                expect(page.locator("#live span")).to_have_text("Live")
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
                assert (
                    page.locator(COUNTS).evaluate_all("(all) => all.filter(e => e.scrollWidth > e.clientWidth).length")
                    == 0
                )
                backs.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
                picture(page, f"{what}-{scheme}-{size}")
                page.context.close()
    assert len(backs) == 2
