"""The coffee chain in Python: identical shops, one menu, one ledger in the store at REDIS_URL.

geode starts it with PORT, REDIS_URL and GEODE_REGION; any Redis server will do as well.
"""

import json
import os
import re
import secrets
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SHOP = os.environ.get("GEODE_REGION", "nowhere")
PAGE = (Path(__file__).parent / "../../crates/demo/page.html").read_bytes()
MENU = {
    "espresso": ("Espresso", 250), "flat-white": ("Flat white", 380), "cappuccino": ("Cappuccino", 360),
    "filter": ("Filter coffee", 290), "cold-brew": ("Cold brew", 420), "mocha": ("Mocha", 440),
}
CART_KEPT_SECONDS = 24 * 60 * 60
STORE_AWAY = "the store does not answer: check that it is running and that REDIS_URL is right, then try again"

# No retries by the client: it cannot know whether an increment whose answer was lost has counted.
store = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
    decode_responses=True, socket_connect_timeout=1, socket_timeout=2, retry=Retry(NoBackoff(), 0),
)


class Refusal(Exception):
    """An answer that says what is wrong with the request."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def drink_of(name):
    if not isinstance(name, str) or name not in MENU:
        raise Refusal(400, "there is no such drink: choose one of " + ", ".join(MENU))
    return name


def within(field, text, most):
    if not 1 <= len(text.strip()) <= most:
        raise Refusal(400, f"{field} must have 1 to {most} characters")
    return text.strip()


def numbers(counts):
    return {name: int(count) for name, count in counts.items()}


def show_menu(_request):
    likes = numbers(store.hgetall("coffee:likes"))
    return 200, {"drinks": [{"id": drink, "name": name, "price_cents": price, "likes": likes.get(drink, 0)}
                            for drink, (name, price) in MENU.items()]}


def show_orders(_request):
    with store.pipeline(transaction=True) as together:
        together.get("coffee:sold").hgetall("coffee:sold:shops").hgetall("coffee:sold:drinks")
        total, shops, drinks = together.execute()
    return 200, {"total": int(total or 0), "shops": numbers(shops), "drinks": numbers(drinks)}


def order(request):
    drink = drink_of(request.body({"drink": "espresso"})["drink"])
    with store.pipeline(transaction=True) as together:
        together.incr("coffee:sold").hincrby("coffee:sold:shops", SHOP, 1).hincrby("coffee:sold:drinks", drink, 1)
        total, _, _ = together.execute()
    return 201, {"drink": drink, "total": total}


def like(_request, name):
    drink = drink_of(name)
    return 200, {"drink": drink, "likes": store.hincrby("coffee:likes", drink, 1)}


def show_guestbook(_request):
    return 200, {"entries": [json.loads(entry) for entry in store.lrange("coffee:guestbook", 0, 19)]}


def sign_guestbook(request):
    signed = request.body({"name": "Ada", "text": "Good coffee"})
    entry = {"name": within("name", signed["name"], 40), "text": within("text", signed["text"], 280),
             "shop": SHOP, "at_ms": time.time_ns() // 1_000_000}
    store.lpush("coffee:guestbook", json.dumps(entry))
    store.ltrim("coffee:guestbook", 0, 99)
    return 201, {"entry": entry}


def show_cart(request):
    cart = request.cart()
    return 200, {"items": numbers(store.hgetall(f"coffee:cart:{cart}")) if cart else {}}


def fill_cart(request):
    added = request.body({"drink": "espresso"})
    drink, quantity = drink_of(added["drink"]), added.get("quantity", 1)
    if type(quantity) is not int or not 1 <= quantity <= 20:
        raise Refusal(400, "quantity must be 1 to 20")
    cart = request.cart() or secrets.token_hex(16)
    key = f"coffee:cart:{cart}"
    with store.pipeline(transaction=True) as together:
        together.hincrby(key, drink, quantity).expire(key, CART_KEPT_SECONDS).hgetall(key)
        items = together.execute()[2]
    request.extra["Set-Cookie"] = f"cart={cart}; Path=/; Max-Age={CART_KEPT_SECONDS}; HttpOnly; SameSite=Lax"
    return 201, {"items": numbers(items)}


def empty_cart(request):
    if request.cart():
        store.delete(f"coffee:cart:{request.cart()}")
    return 200, {"items": {}}


ROUTES = {
    ("GET", "/healthz"): lambda _request: (200, {"status": "ok"}),
    ("GET", "/api/menu"): show_menu,
    ("GET", "/api/orders"): show_orders, ("POST", "/api/orders"): order,
    ("GET", "/api/guestbook"): show_guestbook, ("POST", "/api/guestbook"): sign_guestbook,
    ("GET", "/api/cart"): show_cart, ("POST", "/api/cart"): fill_cart, ("DELETE", "/api/cart"): empty_cart,
}


class Handler(BaseHTTPRequestHandler):
    """One request, one connection, one thread: so a stop can wait for all that has begun."""

    timeout = 10

    def body(self, example):
        try:
            body = json.loads(self.content)
            if all(isinstance(body[field], str) for field in example):
                return body
        except (ValueError, KeyError, TypeError):
            pass
        raise Refusal(400, f"the body must be JSON such as {json.dumps(example)}")

    def cart(self):
        found = re.search(r"(?:^|;)\s*cart=([0-9a-f]{32})\s*(?:;|$)", self.headers.get("Cookie", ""))
        return found and found.group(1)

    def answer(self):
        path = self.path.split("?")[0]
        try:
            length = int(self.headers.get("Content-Length", "0"))
            self.content = self.rfile.read(min(max(length, 0), 65536))
            if length > 4096:
                raise Refusal(413, "the body is longer than 4096 bytes")
            if self.command == "POST" and (found := re.fullmatch(r"/api/likes/([^/]+)", path)):
                status, body = like(self, found.group(1))
            elif route := ROUTES.get((self.command, path)):
                status, body = route(self)
            else:
                raise Refusal(404, "nothing is here: see / for the shop and /api/menu for what it sells")
            return status, {"shop": SHOP, **body}
        except Refusal as refusal:
            return refusal.status, {"error": str(refusal)}
        except redis.RedisError as error:
            self.log_error("the store: %s", error)
            self.extra["Retry-After"] = "1"
            return 503, {"error": STORE_AWAY}

    def handle_request(self):
        started = time.perf_counter()
        self.extra = {"Content-Type": "application/json"}
        if (self.command, self.path) == ("GET", "/"):
            self.extra["Content-Type"] = "text/html; charset=utf-8"
            status, content = 200, PAGE
        else:
            status, body = self.answer()
            content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Server-Timing", f"shop;dur={(time.perf_counter() - started) * 1000:.3f}")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = handle_request

    def log_request(self, *_):
        """Requests are the door's to log."""


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128


if __name__ == "__main__":
    with Server(("127.0.0.1", int(os.environ.get("PORT", "3000"))), Handler) as server:
        # `shutdown` waits for the serving loop, which this thread runs: so it is called on another.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.05)
