"""The token, and the browsers that have shown it.

A browser shows the token once and gets a cookie: the random name of a login that only this process remembers. So a
login ends for good when it is logged out, when it has not been used for too long, and when the dashboard stops.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from http.cookies import CookieError, SimpleCookie
from typing import Final

LOGINS_MAX: Final = 1000
LOGIN_IDLE_S: Final = 3600.0


class Login:
    """One browser's login. `ended` is set when it is logged out: what it still receives has to end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.ended = asyncio.Event()
        self._clock = clock
        self._used_at = clock()
        self._requests = 0

    @property
    def idle_s(self) -> float:
        """How long it has not been used; an open stream is use."""
        return 0.0 if self._requests else self._clock() - self._used_at

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside the block a request is answered."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._used_at = self._clock()


class Logins:
    """All logins of one dashboard.

    `port` is part of the cookie's name, since cookies ignore the port: it separates dashboards on one machine.
    `secure`: browsers use https only. `idle_s`: a login that has not been used for so long has ended.
    """

    def __init__(
        self, token: str, *, port: int, secure: bool, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token = token
        self._cookie = f"jido_dashboard_{port}"
        # Strict: not sent with requests that another site caused.
        self._attributes = "Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
        self._idle_s = idle_s
        self._clock = clock
        self._logins: dict[str, Login] = {}

    def is_token(self, given: str | None) -> bool:
        """Whether that is the token."""
        return given is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def begin(self) -> str:
        """A new login; the value of `Set-Cookie`."""
        for name in [name for name, login in self._logins.items() if login.idle_s > self._idle_s]:
            self._end(name)
        while len(self._logins) >= LOGINS_MAX:
            self._end(next(iter(self._logins)))
        name = secrets.token_urlsafe(32)
        self._logins[name] = Login(self._clock)
        return f"{self._cookie}={name}; {self._attributes}"

    def find(self, cookies: str) -> Login | None:
        """The login of a request with that `Cookie` header."""
        name = self._name(cookies)
        login = self._logins.pop(name, None)
        if login is None or login.idle_s > self._idle_s:
            return None
        self._logins[name] = login  # the last used is the last
        return login

    def end(self, cookies: str) -> str:
        """Log that browser out; the value of `Set-Cookie`, with which it forgets the cookie."""
        self._end(self._name(cookies))
        return f"{self._cookie}=; Max-Age=0; {self._attributes}"

    def _name(self, cookies: str) -> str:
        try:
            found = SimpleCookie(cookies).get(self._cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _end(self, name: str) -> None:
        login = self._logins.pop(name, None)
        if login is not None:
            login.ended.set()
