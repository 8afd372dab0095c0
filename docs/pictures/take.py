"""Take the pictures that show the package at work: the demo in a terminal, and the sandbox's page in a browser.

``python docs/pictures/take.py`` needs the extras ``cli`` and ``httpx2``, playwright, and Chromium.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def demo() -> str:
    """Run ``baas-auth demo``, and return its output as a terminal in SVG."""
    from rich.console import Console
    from rich.text import Text

    result = subprocess.run(
        [sys.executable, "-m", "baas_auth_plugins", "demo"],
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "88"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True)
    console.print("[bold]$[/bold] baas-auth demo", highlight=False)
    console.print(Text.from_ansi(result.stdout))
    svg = console.export_svg(title="baas-auth demo", unique_id="demo")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


def sandbox_page() -> None:
    """Write a screenshot of the sandbox's page for each colour scheme."""
    import requests
    from playwright.sync_api import sync_playwright

    from baas_auth_plugins import AxiaAuth, BS2Auth
    from baas_auth_plugins.sandbox import Fault, Sandbox

    with Sandbox(port=8765) as sandbox, sync_playwright() as playwright:
        axia = AxiaAuth(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url)
        bs2 = BS2Auth(sandbox.client_id, sandbox.client_secret, scope="cob.read pix.read", base_url=sandbox.url)
        requests.get(f"{sandbox.url}/v1/accounts", auth=axia, timeout=10)
        requests.get(f"{sandbox.url}/pix/direto/forintegration/v1/cobv/abc123", auth=bs2, timeout=10)
        sandbox.revoke(provider="axia")
        requests.get(f"{sandbox.url}/v1/accounts", auth=axia, timeout=10)
        sandbox.inject(Fault("status", "token", status=503, times=2))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(_ARGUMENTS))
        for scheme in ("light", "dark"):
            shown = browser.new_page(color_scheme=scheme, viewport={"width": 1180, "height": 900})
            shown.goto(sandbox.url)
            shown.wait_for_timeout(1000)
            shown.screenshot(path=HERE / f"sandbox-{scheme}.png", full_page=True)
        browser.close()


def main() -> None:
    """Take the pictures."""
    (HERE / "demo.svg").write_text(demo(), encoding="utf-8")
    sandbox_page()


if __name__ == "__main__":
    sys.exit(main())
