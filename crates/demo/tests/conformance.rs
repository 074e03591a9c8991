//! One API, three shops: the same requests, with the same answers, to the demo and to the Node and Python examples, each
//! on a real Redis server.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod shop;

use serde_json::{Value, json};
use shop::{Answer, Language, REGION, RedisServer, Shop};

#[test]
fn the_demo_answers_as_agreed() {
    conforms(Language::Rust);
}

#[test]
fn the_node_example_answers_as_agreed() {
    conforms(Language::Node);
}

#[test]
fn the_python_example_answers_as_agreed() {
    conforms(Language::Python);
}

fn conforms(language: Language) {
    let Some(mut redis) = RedisServer::start() else { return };
    let Some(shop) = Shop::start(language, &redis) else { return };
    the_page_and_the_menu(&shop);
    orders_are_counted(&shop);
    likes_are_counted(&shop);
    the_guest_book_shows_the_latest_first(&shop);
    a_cart_belongs_to_its_cookie(&shop);
    bad_requests_say_what_is_wrong(&shop);
    without_its_store_a_shop_says_so_and_recovers(&shop, &mut redis);
    shop.stop();
}

fn the_page_and_the_menu(shop: &Shop) {
    let page = shop.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.body.contains("The coffee chain"));

    assert_eq!(shop.get("/healthz").status, 200);
    let menu = shop.get("/api/menu");
    assert_eq!((menu.status, menu.header("cache-control")), (200, "no-store"));
    assert_eq!(menu.header("content-type"), "application/json");
    let milliseconds = menu.header("server-timing").strip_prefix("shop;dur=").unwrap();
    assert!(milliseconds.parse::<f64>().unwrap() > 0.0);
    let menu = menu.json();
    assert_eq!(menu["shop"], REGION);
    assert_eq!(menu["drinks"].as_array().unwrap().len(), 6);
    let espresso = json!({ "id": "espresso", "name": "Espresso", "price_cents": 250, "likes": 0 });
    assert_eq!(menu["drinks"][0], espresso);
}

fn orders_are_counted(shop: &Shop) {
    let none = json!({ "shop": REGION, "total": 0, "shops": {}, "drinks": {} });
    assert_eq!(shop.get("/api/orders").json(), none);
    for (drink, total) in [("espresso", 1), ("mocha", 2), ("espresso", 3)] {
        let order = shop.post("/api/orders", &json!({ "drink": drink }));
        assert_eq!(order.status, 201);
        assert_eq!(order.json(), json!({ "shop": REGION, "drink": drink, "total": total }));
    }
    let drinks = json!({ "espresso": 2, "mocha": 1 });
    let sold = json!({ "shop": REGION, "total": 3, "shops": { REGION: 3 }, "drinks": drinks });
    assert_eq!(shop.get("/api/orders").json(), sold);
}

fn likes_are_counted(shop: &Shop) {
    for likes in 1..=2 {
        let liked = shop.post("/api/likes/espresso", &Value::Null);
        assert_eq!(liked.status, 200);
        assert_eq!(liked.json(), json!({ "shop": REGION, "drink": "espresso", "likes": likes }));
    }
    assert_eq!(shop.get("/api/menu").json()["drinks"][0]["likes"], 2);
}

fn the_guest_book_shows_the_latest_first(shop: &Shop) {
    assert_eq!(shop.get("/api/guestbook").json(), json!({ "shop": REGION, "entries": [] }));
    for number in 0..105 {
        let text = format!("<b>cup</b> № {number}");
        let signed = shop.post("/api/guestbook", &json!({ "name": "  Ada ", "text": text }));
        assert_eq!(signed.status, 201);
        let entry = &signed.json()["entry"];
        assert_eq!(
            (&entry["name"], &entry["text"], &entry["shop"]),
            (&json!("Ada"), &json!(text), &json!(REGION))
        );
        assert!(entry["at_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }
    let book = shop.get("/api/guestbook").json();
    assert_eq!(book["entries"].as_array().unwrap().len(), 20, "the latest are shown");
    assert_eq!(book["entries"][0]["text"], "<b>cup</b> № 104");
}

fn a_cart_belongs_to_its_cookie(shop: &Shop) {
    let no_cart = shop.get("/api/cart");
    assert_eq!(no_cart.json(), json!({ "shop": REGION, "items": {} }));
    assert_eq!(no_cart.header("set-cookie"), "", "looking makes no cart");

    let filled = shop.post("/api/cart", &json!({ "drink": "mocha" }));
    assert_eq!(filled.status, 201);
    let cookie = filled.header("set-cookie").split(';').next().unwrap().to_owned();
    let id = cookie.strip_prefix("cart=").unwrap();
    assert_eq!(id.len(), 32);
    assert!(filled.header("set-cookie").contains("HttpOnly"));
    let cookies = format!("other=1; {cookie}");
    let more = json!({ "drink": "mocha", "quantity": 3 });
    let filled = shop.request("POST", "/api/cart", &cookies, &more);
    assert_eq!(filled.json(), json!({ "shop": REGION, "items": { "mocha": 4 } }));
    assert!(filled.header("set-cookie").starts_with(&cookie), "the cart stays the same");

    let see = |cookies: &str| shop.request("GET", "/api/cart", cookies, &Value::Null).json()["items"].clone();
    assert_eq!(see(&cookies), json!({ "mocha": 4 }));
    assert_eq!(see("cart=00000000000000000000000000000000"), json!({}), "another's cart is another");
    assert_eq!(see("cart=*"), json!({}), "what is no cart of ours is ignored");

    let emptied = shop.request("DELETE", "/api/cart", &cookies, &Value::Null);
    assert_eq!((emptied.status, emptied.json()), (200, json!({ "shop": REGION, "items": {} })));
    assert_eq!(see(&cookies), json!({}));
}

fn bad_requests_say_what_is_wrong(shop: &Shop) {
    let refused = |answer: Answer, status: u16, hint: &str| {
        assert_eq!(answer.status, status, "{}", answer.body);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(hint), "{error}");
    };
    refused(shop.get("/api/nothing"), 404, "/api/menu");
    refused(shop.get("/nothing"), 404, "/api/menu");
    for path in ["/api/orders", "/api/cart"] {
        refused(shop.post(path, &json!({ "drink": "tea" })), 400, "flat-white");
        refused(shop.post(path, &json!({ "drink": 7 })), 400, "JSON such as");
        refused(shop.post(path, &json!([])), 400, "JSON such as");
        refused(shop.post(path, &Value::Null), 400, "JSON such as");
    }
    refused(shop.post("/api/likes/tea", &Value::Null), 400, "flat-white");
    refused(
        shop.post("/api/cart", &json!({ "drink": "mocha", "quantity": 21 })),
        400,
        "quantity must be 1 to 20",
    );
    refused(
        shop.post("/api/cart", &json!({ "drink": "mocha", "quantity": 0 })),
        400,
        "quantity must be 1 to 20",
    );
    refused(shop.post("/api/guestbook", &json!({ "name": " ", "text": "x" })), 400, "name must have 1 to 40");
    let long = "é".repeat(281);
    refused(
        shop.post("/api/guestbook", &json!({ "name": "x", "text": long })),
        400,
        "text must have 1 to 280",
    );
    let huge = "x".repeat(5000);
    assert_eq!(shop.post("/api/guestbook", &json!({ "name": "x", "text": huge })).status, 413);
    assert_eq!(shop.get("/api/orders").json()["total"], 3, "nothing refused was counted");
}

fn without_its_store_a_shop_says_so_and_recovers(shop: &Shop, redis: &mut RedisServer) {
    redis.kill();
    let answer = shop.get("/api/orders");
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    assert!(answer.json()["error"].as_str().unwrap().contains("REDIS_URL"));
    assert_eq!(shop.post("/api/orders", &json!({ "drink": "mocha" })).status, 503);
    assert_eq!(shop.get("/healthz").status, 200, "the shop itself is well");
    redis.restart();
    shop::until("the shop finds its store again", || shop.get("/api/orders").status == 200);
    assert_eq!(shop.post("/api/orders", &json!({ "drink": "mocha" })).json()["total"], 1);
}
