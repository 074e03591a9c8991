//! The shop's page and its JSON API.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::RequestError;
use crate::ledger::{CART_KEPT_S, Counts, Ledger};
use crate::menu;

/// No request needs a longer body; a longer one is answered with 413.
const LONGEST_BODY: usize = 4096;
const LONGEST_NAME: usize = 40;
const LONGEST_TEXT: usize = 280;
const MOST_AT_ONCE: u32 = 20;

/// One shop of the chain.
pub(crate) struct Shop {
    pub(crate) region: String,
    pub(crate) ledger: Ledger,
}

type Answer = Result<Response, RequestError>;

/// Every path that the shop answers.
pub(crate) fn router(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/api/menu", get(show_menu))
        .route("/api/orders", get(show_orders).post(order))
        .route("/api/likes/{drink}", post(like))
        .route("/api/guestbook", get(show_guestbook).post(sign_guestbook))
        .route("/api/cart", get(show_cart).post(fill_cart).delete(empty_cart))
        .fallback(|| async { RequestError::NotFound })
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(from_fn(describe))
        .with_state(shop)
}

/// Says how long the shop took, and that its answers are of the moment.
async fn describe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let mut response = next.run(request).await;
    let took_ms = started.elapsed().as_secs_f64() * 1000.0;
    let headers = response.headers_mut();
    if let Ok(timing) = HeaderValue::try_from(format!("shop;dur={took_ms:.3}")) {
        headers.insert("server-timing", timing);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn page() -> Html<&'static str> {
    Html(include_str!("../page.html"))
}

async fn show_menu(State(shop): State<Arc<Shop>>) -> Answer {
    let likes = shop.ledger.likes().await?;
    let drinks: Vec<Value> = menu::DRINKS
        .iter()
        .map(|drink| {
            let likes = likes.get(drink.id).copied().unwrap_or(0);
            json!({ "id": drink.id, "name": drink.name, "price_cents": drink.price_cents, "likes": likes })
        })
        .collect();
    Ok(Json(json!({ "shop": shop.region, "drinks": drinks })).into_response())
}

#[derive(Deserialize)]
struct OrderBody {
    drink: String,
}

async fn order(State(shop): State<Arc<Shop>>, body: Bytes) -> Answer {
    let order: OrderBody = parse(&body, r#"{"drink": "espresso"}"#)?;
    let drink = menu::find(&order.drink).ok_or(RequestError::Drink)?;
    let total = shop.ledger.sell(drink, &shop.region).await?;
    let receipt = json!({ "shop": shop.region, "drink": drink, "total": total });
    Ok((StatusCode::CREATED, Json(receipt)).into_response())
}

async fn show_orders(State(shop): State<Arc<Shop>>) -> Answer {
    let sold = shop.ledger.sold().await?;
    let orders =
        json!({ "shop": shop.region, "total": sold.total, "shops": sold.shops, "drinks": sold.drinks });
    Ok(Json(orders).into_response())
}

async fn like(State(shop): State<Arc<Shop>>, Path(drink): Path<String>) -> Answer {
    let drink = menu::find(&drink).ok_or(RequestError::Drink)?;
    let likes = shop.ledger.like(drink).await?;
    Ok(Json(json!({ "shop": shop.region, "drink": drink, "likes": likes })).into_response())
}

#[derive(Deserialize)]
struct GuestbookBody {
    name: String,
    text: String,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    name: String,
    text: String,
    shop: String,
    at_ms: u64,
}

async fn sign_guestbook(State(shop): State<Arc<Shop>>, body: Bytes) -> Answer {
    let signed: GuestbookBody = parse(&body, r#"{"name": "Ada", "text": "Good coffee"}"#)?;
    let entry = Entry {
        name: within("name", &signed.name, LONGEST_NAME)?,
        text: within("text", &signed.text, LONGEST_TEXT)?,
        shop: shop.region.clone(),
        at_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    };
    let entry = json!(entry);
    shop.ledger.sign(&entry.to_string()).await?;
    Ok((StatusCode::CREATED, Json(json!({ "shop": shop.region, "entry": entry }))).into_response())
}

async fn show_guestbook(State(shop): State<Arc<Shop>>) -> Answer {
    let entries = shop.ledger.guestbook().await?;
    // An entry that some other program wrote is left out.
    let entries: Vec<Entry> = entries.iter().filter_map(|entry| serde_json::from_str(entry).ok()).collect();
    Ok(Json(json!({ "shop": shop.region, "entries": entries })).into_response())
}

#[derive(Deserialize)]
struct CartBody {
    drink: String,
    #[serde(default = "one")]
    quantity: u32,
}

fn one() -> u32 {
    1
}

async fn show_cart(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Answer {
    let items = match cart_cookie(&headers) {
        Some(id) => shop.ledger.cart(id).await?,
        None => Counts::new(),
    };
    Ok(cart_answer(&shop, &items).into_response())
}

async fn fill_cart(State(shop): State<Arc<Shop>>, headers: HeaderMap, body: Bytes) -> Answer {
    let added: CartBody = parse(&body, r#"{"drink": "espresso", "quantity": 1}"#)?;
    let drink = menu::find(&added.drink).ok_or(RequestError::Drink)?;
    if !(1..=MOST_AT_ONCE).contains(&added.quantity) {
        return Err(RequestError::Quantity { most: MOST_AT_ONCE });
    }
    let id = match cart_cookie(&headers) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?),
    };
    let items = shop.ledger.fill_cart(&id, drink, added.quantity).await?;
    let cookie = format!("cart={id}; Path=/; Max-Age={CART_KEPT_S}; HttpOnly; SameSite=Lax");
    Ok((StatusCode::CREATED, [(header::SET_COOKIE, cookie)], cart_answer(&shop, &items)).into_response())
}

async fn empty_cart(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Answer {
    if let Some(id) = cart_cookie(&headers) {
        shop.ledger.empty_cart(id).await?;
    }
    Ok(cart_answer(&shop, &Counts::new()).into_response())
}

fn cart_answer(shop: &Shop, items: &Counts) -> Json<Value> {
    Json(json!({ "shop": shop.region, "items": items }))
}

/// The cart's id: 32 hexadecimal digits. Anything else is no cart of ours.
fn cart_cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let id =
        cookies.flat_map(|line| line.split(';')).find_map(|cookie| cookie.trim().strip_prefix("cart="))?;
    let digits = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == 32 && digits).then_some(id)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], example: &'static str) -> Result<T, RequestError> {
    serde_json::from_slice(body).map_err(|_| RequestError::Body { example })
}

fn within(field: &'static str, text: &str, most: usize) -> Result<String, RequestError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > most {
        return Err(RequestError::Length { field, most });
    }
    Ok(text.to_owned())
}
