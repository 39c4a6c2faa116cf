"""Browsers sign in at a real OpenID provider, before the real `secrets` and `registry`."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from services.registry.tests.support import running as running_registry
from services.secrets.tests.support import Secrets
from stellwerk_gateway.config import Settings
from stellwerk_gateway.login import origin
from stellwerk_gateway.main import compose
from stellwerk_launcher import ports
from stellwerk_launcher.testing import Servers
from stellwerk_platform.app import App
from tests.oidc.provider import SECRET, OpenIdProvider, sign_in

CALLER = "/stellwerk.secrets.v1.TokenService/GetCaller"
JSON = {"content-type": "application/json"}
OWN = {**JSON, "sec-fetch-site": "same-origin"}


@dataclass
class Site:
    """The gateway as a browser and a terminal see it."""

    url: str
    grpc_address: str
    secrets: Secrets
    provider: OpenIdProvider

    def browser(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60)

    async def signed_in(
        self, browser: httpx.AsyncClient, path: str = "/login", who: str = "ada"
    ) -> httpx.Response:
        """Goes through the login up to what `/login/callback` answers."""
        redirect = await sign_in(browser, f"{self.url}{path}", "ada")
        return await browser.get(redirect.headers["location"])


@pytest.fixture(scope="module")
async def site(servers: Servers, openid: Callable[..., OpenIdProvider]) -> AsyncIterator[Site]:
    chosen = ports.choose(["gateway", "http"], {})
    url = f"http://127.0.0.1:{chosen['http']}"
    with openid(f"{url}/login/callback").run() as provider:
        known = {**provider.settings, "oidc_create_users": "example.org"}
        async with running_registry(servers, known) as registry:
            down = "127.0.0.1:9"
            settings = Settings(
                listen=f"127.0.0.1:{chosen['gateway']}",
                http_listen=f"127.0.0.1:{chosen['http']}",
                registry_address=registry.address,
                secrets_address=registry.secrets.address,
                runs_address=down,
                compute_address=down,
                inference_address=down,
                telemetry_address=down,
                vault_role_id=servers.vault_role_id,
                vault_secret_id=servers.vault_secret_id,
                oidc_client_secret=SECRET,
            )
            app = App("gateway")
            await compose(app, settings)
            yield Site(url, settings.listen, registry.secrets, provider)
            await app.leave()


async def call(browser: httpx.AsyncClient, headers: dict[str, str]) -> tuple[int, str]:
    """The status of a call and who made it, or the reason of the refusal."""
    response = await browser.post(CALLER, content="{}", headers=headers)
    document = response.json()
    if response.status_code == 200:
        return 200, document["subject"]
    if "details" in document:
        return response.status_code, document["details"][0]["debug"]["reason"]
    return response.status_code, document["reason"]


async def test_a_browser_signs_in_calls_and_signs_out(site: Site) -> None:
    async with site.browser() as browser:
        answer = await site.signed_in(browser, "/login?next=/runs%3Fpage%3D2")
        assert (answer.status_code, answer.headers["location"]) == (303, "/runs?page=2")
        (cookie,) = [c for c in answer.headers.get_list("set-cookie") if "stellwerk_session=swk_" in c]
        assert "HttpOnly; SameSite=Lax" in cookie
        assert await call(browser, OWN) == (200, "users/ada")
        stolen = browser.cookies["stellwerk_session"]
        async with site.browser() as thief:
            thief.cookies.set("stellwerk_session", stolen, domain="127.0.0.1")
            assert await call(thief, OWN) == (200, "users/ada")
            # Another site cannot sign her out.
            elsewhere = {"sec-fetch-site": "cross-site"}
            assert (await browser.post("/logout", headers=elsewhere)).status_code == 403
            done = await browser.post("/logout", headers={"sec-fetch-site": "same-origin"})
            assert "Signed out" in done.text
            assert "stellwerk_session" not in browser.cookies
            # The thief is out with the next calls, wherever the key was known.
            async with asyncio.timeout(60):
                while (refused := await call(thief, OWN))[0] == 200:
                    pass
            assert refused in ((401, "KEY_INVALID"), (401, "TOKEN_REVOKED"))


async def test_only_stellwerks_own_pages_use_the_cookie(site: Site) -> None:
    async with site.browser() as browser:
        assert "Signed in as Ada Lovelace" in (await site.signed_in(browser)).text
        for headers, expected in (
            (OWN, 200),
            ({**JSON, "origin": site.url}, 200),
            (JSON, 403),
            ({**JSON, "sec-fetch-site": "none"}, 403),
            ({**JSON, "sec-fetch-site": "same-site"}, 403),
            ({**JSON, "sec-fetch-site": "cross-site", "origin": site.url}, 403),
            ({**JSON, "origin": "https://evil.example"}, 403),
            ({**JSON, "origin": "null"}, 403),
            ({**JSON, "origin": site.url + ".evil.example"}, 403),
        ):
            assert (await call(browser, headers))[0] == expected, headers
        # A key that is shown counts, and not the cookie.
        wrong = {**JSON, "authorization": "Bearer swk_wrong"}
        assert await call(browser, wrong) == (401, "KEY_INVALID")


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil",
        "/a\r\nset-cookie: x",
        "/a\tb",
        "a",
    ],
)
def test_a_login_leads_nowhere_else(target: str) -> None:
    assert origin.own_path(target) == ""


async def test_a_login_is_bound_to_its_browser_and_used_once(site: Site) -> None:
    async with site.browser() as victim, site.browser() as attacker:
        assert (await victim.get("/login?next=//evil.example")).json()["reason"] == "INVALID_NEXT"
        begun = await attacker.get("/login")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["code_challenge_method"] == ["S256"]
        assert asked["response_type"] == ["code"]
        assert asked["nonce"][0] not in begun.headers["set-cookie"]
        redirect = await sign_in(attacker, f"{site.url}/login", "bob")
        callback = redirect.headers["location"]
        # The attacker has the victim follow the link, to have her work in his name.
        assert (await victim.get(callback)).json()["reason"] == "LOGIN_EXPIRED"
        await victim.get("/login")
        assert (await victim.get(callback)).json()["reason"] == "LOGIN_EXPIRED"
        assert "stellwerk_session" not in victim.cookies
        changed = callback.replace("iss=", "iss=https%3A%2F%2Fevil.example%2F")
        assert (await attacker.get(changed)).json()["reason"] == "LOGIN_REFUSED"
        login = attacker.cookies["stellwerk_login"]
        assert "Signed in as Bob" in (await attacker.get(callback)).text
        attacker.cookies.set("stellwerk_login", login, domain="127.0.0.1", path="/")
        assert (await attacker.get(callback)).json()["reason"] == "LOGIN_REFUSED"


async def test_who_may_not_come_in_reads_why(site: Site) -> None:
    async with site.browser() as browser:
        redirect = await sign_in(browser, f"{site.url}/login", "stranger")
        answer = await browser.get(redirect.headers["location"], headers={"accept": "text/html"})
        assert (answer.status_code, "stellwerk_session" in browser.cookies) == (403, False)
        assert "Nobody here has the e-mail address stranger@example.net" in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        for path in ("/login", "/login/callback"):
            assert (await browser.post(path)).status_code == 405
        assert (await browser.get("/login/callback")).json()["reason"] == "LOGIN_EXPIRED"


async def terminal(site: Site, home: Path, *words: str, said: str = "") -> tuple[int, str]:
    """Runs the command line with a home of its own; opens the address that a login names.

    Returns exit code and output.
    """
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "stellwerk"),
        *(*words, "--grpc-address", site.grpc_address),
        env={
            "PATH": os.environ["PATH"],
            "XDG_CONFIG_HOME": str(home),
            "HOME": str(home),
            "STELLWERK_DATA_DIR": str(home),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
        },
        cwd=home,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(said.encode())
    process.stdin.close()
    text = ""
    async for line in process.stdout:
        text += line.decode()
        if line.startswith(b"Open http"):
            async with site.browser() as browser:
                await sign_in(browser, line.decode().split()[1], "bob", until="")
    return await process.wait(), text


async def test_a_terminal_signs_in_with_a_browser_elsewhere(site: Site, tmp_path: Path) -> None:
    code, text = await terminal(site, tmp_path, "login")
    assert (code, "check that it shows the code" in text) == (0, True), text
    assert "as users/bob" in text
    code, text = await terminal(site, tmp_path, "whoami", "--output", "json")
    shown = json.loads(text)
    assert (shown["subject"], shown["key_from"]) == ("users/bob", "stellwerk login (users/bob)")
    code, text = await terminal(site, tmp_path, "logout")
    assert (code, "the key has ended" in text) == (0, True), text
    code, text = await terminal(site, tmp_path, "whoami")
    assert (code, "KEY_MISSING" in text) == (4, True), text


async def test_a_terminal_takes_invitations_and_keys(site: Site, tmp_path: Path) -> None:
    owner, carol = tmp_path / "owner", tmp_path / "carol"
    for home in (owner, carol):
        home.mkdir()
    code, text = await terminal(site, owner, "login", "--key", said=site.secrets.owner_key)
    assert (code, "as users/owner" in text) == (0, True), text
    code, text = await terminal(site, owner, "user", "create", "carol", "--output", "json")
    invitation = json.loads(text)["invitation"]
    code, text = await terminal(site, carol, "login", "--invitation", said=invitation)
    assert (code, "as users/carol" in text) == (0, True), text
    code, text = await terminal(site, carol, "key", "create", "ci", "--expires", "30d", "--output", "json")
    key = json.loads(text)["key"]
    code, text = await terminal(site, owner, "key", "list", "--user", "carol")
    assert ("ci" in text, key[:10] in text, key in text) == (True, True, False)
    code, text = await terminal(site, owner, "logout")
    assert (code, "is still good" in text) == (0, True), text
