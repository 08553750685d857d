#!/usr/bin/env bash
# Playwright 1.65.2 for Python with Debian's chromium-headless-shell, and a page whose Content-Security-Policy has no unsafe-eval.
# A good guess: evaluate and wait_for_function both run in the page as the browser's own debugger does, whatever the page's policy is.
# What it does: evaluate works. wait_for_function with an expression is an EvalError, unless it is true at once; with a function (() => ...) it works.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

command -v chromium-headless-shell >/dev/null || { echo "needs Debian's chromium-headless-shell"; exit 2; }
python3 -m venv v && v/bin/pip -q install playwright==1.65.2 2>/dev/null
v/bin/python - <<'PYTHON' | tee seen
import http.server
import threading

from playwright.sync_api import Error, sync_playwright


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Security-Policy", "default-src 'none'; script-src 'self'")
        self.end_headers()
        self.wfile.write(b"<title>page</title>")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
later = "performance.now() > window.begun + 300"
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium-headless-shell", args=["--no-sandbox"])
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    for name, call in (
        ("evaluate", lambda: page.evaluate("document.title")),
        ("an expression", lambda: page.wait_for_function(later, timeout=5000)),
        ("a function", lambda: page.wait_for_function(f"() => {later}", timeout=5000)),
    ):
        page.evaluate("window.begun = performance.now()")
        try:
            call()
            print(f"{name}: works")
        except Error as error:
            print(f"{name}: {'EvalError' if 'EvalError' in str(error) else error}")
    browser.close()
PYTHON
diff seen - <<'SEEN'
evaluate: works
an expression: EvalError
a function: works
SEEN
