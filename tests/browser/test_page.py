"""The sandbox's page in a real browser: what happens outside shows, and what is pressed happens."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from baas_auth_plugins import AxiaAuth, MemoryTokenCache
from baas_auth_plugins.sandbox import Sandbox

AXIA = "/v1/authentication/oauth/access-token"
CREDENTIALS = ("your-client-id", "your-client-secret")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def page(browser: Any, sandbox: Sandbox) -> Iterator[Any]:
    """The page, which must report no error and load nothing from elsewhere."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(sandbox.url) or problems.append(request.url))
    page.goto(sandbox.url)
    page.get_by_text("live", exact=True).wait_for()
    yield page
    context.close()
    assert problems == []


def token_request(sandbox: Sandbox, secret: str = CREDENTIALS[1]) -> requests.Response:
    headers = {"Content-Type": "application/json"}
    return requests.post(sandbox.url + AXIA, auth=(CREDENTIALS[0], secret), headers=headers, timeout=10)


def rows(page: Any, text: str) -> Any:
    return page.get_by_role("list", name="Requests, newest first").locator("li").filter(has_text=text)


def test_fault_request_and_revocation(page: Any, sandbox: Sandbox) -> None:
    """A fault is injected, meets a request from outside and shows in the log; a token is revoked and goes."""
    page.get_by_role("button", name="503", exact=True).click()
    page.get_by_text("token request, 1×").wait_for()
    assert [(fault.kind, fault.status) for fault in sandbox.faults] == [("status", 503)]

    assert token_request(sandbox).status_code == 503
    rows(page, "injected fault: status 503").get_by_text(f"POST {AXIA}").wait_for()
    page.get_by_text("token request, 1×").wait_for(state="hidden")

    assert token_request(sandbox).status_code == 200
    (token,) = sandbox.tokens
    page.get_by_role("button", name=f"Revoke token {token.digest}").click()
    page.get_by_text("No valid token.").wait_for()
    assert sandbox.tokens == []
    assert token.access_token not in page.content()


def test_client_of_the_package_is_seen(page: Any, sandbox: Sandbox) -> None:
    """A token request and an API call of an auth object are in the log, newest first, and its token in the list."""
    auth = AxiaAuth(*CREDENTIALS, base_url=sandbox.url, cache=MemoryTokenCache())
    assert requests.get(f"{sandbox.url}/v1/accounts", auth=auth, timeout=10).ok
    rows(page, "GET /v1/accounts").wait_for()
    rows(page, AXIA).wait_for()
    paths = re.findall(r"(?:GET|POST) (\S+)", "\n".join(rows(page, "axia").all_inner_texts()))
    assert paths == ["/v1/accounts", AXIA]
    page.get_by_role("button", name=f"Expire token {sandbox.tokens[0].digest}").click()
    page.get_by_text("No valid token.").wait_for()
    assert requests.get(f"{sandbox.url}/v1/accounts", auth=auth, timeout=10).ok
    rows(page, "Expired token").wait_for()


def test_log_explains_and_masks(page: Any, sandbox: Sandbox) -> None:
    """A refused request says which rule it broke; its details show no secret."""
    token_request(sandbox, "another-secret")
    row = rows(page, "the client_secret is not the sandbox's")
    row.wait_for()
    row.locator("summary").press("Enter")
    row.get_by_text("Basic *** (client_id your-client-id)").wait_for()
    assert "another-secret" not in page.content()


def test_log_can_be_filtered_and_cleared(page: Any, sandbox: Sandbox) -> None:
    """Only problems are shown if wanted; a cleared log is empty, here and in the sandbox."""
    token_request(sandbox)
    token_request(sandbox, "wrong")
    page.get_by_text("2 requests").wait_for()
    page.get_by_label("Only problems").check()
    page.get_by_text("1 request", exact=True).wait_for()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.get_by_text("No requests yet.").wait_for()
    assert sandbox.requests == []
    token_request(sandbox, "wrong")
    page.get_by_text("1 request", exact=True).wait_for()


def test_request_that_waits_is_shown_before_and_after_its_answer(page: Any, sandbox: Sandbox) -> None:
    """A request without an answer yet is in the log as waiting; its row changes when it is answered."""
    page.get_by_role("button", name="Hang 60 s").click()
    page.get_by_text("Fault injected: Hang 60 s").wait_for()
    address = urlsplit(sandbox.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(f"POST {AXIA} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        rows(page, "waiting").get_by_text("injected fault: hang").wait_for()
    rows(page, "waiting").wait_for(state="hidden")
    assert rows(page, "injected fault: hang").count() == 1


@pytest.mark.parametrize("now", [-1.0, 1e30])
def test_clock_may_be_any_number(browser: Any, now: float) -> None:
    """A sandbox whose clock shows no time of day still has a log."""
    with Sandbox(clock=lambda: now) as sandbox:
        page = browser.new_page()
        page.goto(sandbox.url)
        token_request(sandbox)
        rows(page, AXIA).wait_for()
        page.close()


def test_every_fault_has_a_button(page: Any, sandbox: Sandbox) -> None:
    """Each kind of fault can be injected, for one gateway and a number of times."""
    page.get_by_label("Gateway", exact=True).select_option("bs2")
    page.get_by_label("How often").select_option("until cleared")
    for name in (
        "401",
        "Delay 3 s",
        "Drip",
        "Drop",
        "Cut short",
        "Hang 60 s",
        "HTML page",
        "Empty",
        "No token",
        "50 MiB",
    ):
        page.get_by_role("button", name=name, exact=True).click()
        page.get_by_text(f"Fault injected: {name}").wait_for()
    for name in ("Redirect", "Expired token"):
        page.get_by_role("button", name=name, exact=True).click()
        page.get_by_text(f"Fault injected: {name}").wait_for()
    kinds = {
        "status",
        "delay",
        "drip",
        "drop",
        "truncate",
        "hang",
        "garbage",
        "empty",
        "body",
        "huge",
        "redirect",
        "expire",
    }
    assert {fault.kind for fault in sandbox.faults} == kinds
    assert {(fault.provider, fault.times) for fault in sandbox.faults} == {("bs2", -1)}
    page.get_by_role("button", name="Clear faults").click()
    page.get_by_role("heading", name="Waiting").wait_for(state="hidden")
    assert sandbox.faults == []


def test_secret_and_settings_are_changed(page: Any, sandbox: Sandbox) -> None:
    """A rotated secret shows at once, in the curl lines too; the settings hold for the next token."""
    page.get_by_role("button", name="Rotate the secret").click()
    page.get_by_text("your-client-secret-2", exact=True).wait_for()
    assert token_request(sandbox).status_code == 401
    curl = page.get_by_label("curl line for ntxpay", exact=True)
    assert '"clientSecret": "your-client-secret-2"' in curl.inner_text()
    page.get_by_label("Lifetime of new tokens").select_option("60 s")
    page.get_by_label("A new token revokes the previous one").check()
    page.get_by_label("Enforce rate limits").uncheck()
    page.get_by_text("Setting changed").wait_for()
    page.wait_for_function("() => !document.getElementById('limits').checked")
    assert token_request(sandbox, "your-client-secret-2").json()["expires_in"] == 60


def test_page_says_that_the_sandbox_is_gone_and_finds_it_again(browser: Any) -> None:
    """When the sandbox stops, the page says so; when it starts again, the page goes on with the new log."""
    with Sandbox() as sandbox:
        port = int(sandbox.url.rpartition(":")[2])
        page = browser.new_page()
        page.goto(sandbox.url)
        token_request(sandbox)
        page.get_by_text("1 request", exact=True).wait_for()
    page.get_by_text("the sandbox does not answer").wait_for()
    with Sandbox(port=port):
        page.get_by_text("live", exact=True).wait_for()
        page.get_by_text("No requests yet.").wait_for()
    page.close()


ATTACKS = """async (url) => {
  const tries = [["GET", undefined], ["POST", undefined], ["POST", "text/plain"], ["POST", "application/json"], ["DELETE", undefined]];
  const seen = [];
  for (const [method, type] of tries) {
    for (const mode of ["no-cors", "cors"]) {
      for (const path of ["state", "faults", "clear"]) {
        const body = method === "POST" ? new Blob(['{"kind": "drop"}'], type ? {type} : {}) : undefined;
        try {
          const response = await fetch(url + "/_sandbox/" + path, {method, mode, body});
          if (response.ok) seen.push([method, mode, path, await response.text()]);
        } catch {}
      }
    }
  }
  const form = document.createElement("form");
  Object.assign(form, {action: url + "/_sandbox/clear", method: "post", enctype: "text/plain"});
  document.body.append(form);
  form.submit();
  return seen;
}"""


@pytest.mark.parametrize("how", ["another port", "another name for this address"])
def test_foreign_web_page_reads_and_changes_nothing(browser: Any, sandbox: Sandbox, how: str) -> None:
    """A page of another origin has no effect, nor has one whose host name was bound to the sandbox's address."""
    assert token_request(sandbox).status_code == 200
    rebound = sandbox.url.replace("127.0.0.1", "rebound.example")
    foreign = rebound if how == "another name for this address" else sandbox.url_for("bs2")
    page = browser.new_page()
    page.goto(f"{foreign}/page")  # a 401, which is a page as good as any
    page.evaluate("document.body.textContent = ''")
    with page.expect_navigation():
        assert page.evaluate(ATTACKS, rebound if foreign == rebound else sandbox.url) == []
    assert page.evaluate("document.body.textContent").startswith('{"error":')
    assert sandbox.faults == []
    assert sandbox.count("token") == len(sandbox.tokens) == 1
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 820, 1280])
def test_page_fits_and_is_usable_by_keyboard(browser: Any, sandbox: Sandbox, width: int, scheme: str) -> None:
    """Nothing is cut off at any width; every control can be reached with the Tab key and has a name."""
    token_request(sandbox)
    token_request(sandbox, "wrong")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(sandbox.url)
    page.get_by_text("2 requests").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    controls = page.locator("button:visible, select:visible, input:visible, summary:visible")
    reached = set()
    for _ in range(controls.count() + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    everything = controls.evaluate_all(
        "(all) => all.filter((one) => !one.disabled).map((one) => [...document.querySelectorAll('*')].indexOf(one))"
    )
    assert set(everything) <= reached
    unnamed = controls.evaluate_all(
        "(all) => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    page.close()
