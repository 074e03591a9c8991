//! What the shops share, in the store.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `coffee:sold` | string | coffees sold planet-wide, by INCR |
//! | `coffee:sold:shops`, `coffee:sold:drinks` | hash | the same per shop and per drink, by HINCRBY |
//! | `coffee:likes` | hash | likes per drink, by HINCRBY |
//! | `coffee:guestbook` | list | the latest entries, newest first, as JSON |
//! | `coffee:cart:ID` | hash | quantity per drink, by HINCRBY; gone a day after the last change |

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisResult, cmd, pipe};

use crate::error::DemoError;

/// Entries that the guest book keeps.
const GUESTBOOK_KEPT: isize = 100;
/// Entries of the guest book that are shown.
const GUESTBOOK_SHOWN: isize = 20;
/// How long an untouched cart is kept, in seconds.
pub(crate) const CART_KEPT_S: u32 = 24 * 60 * 60;

/// Counts by name: of a shop, or of a drink.
pub(crate) type Counts = BTreeMap<String, i64>;

/// The shops' common book-keeping: a connection that is shared by all requests and comes back by itself.
pub(crate) struct Ledger {
    connection: ConnectionManager,
}

/// Coffees sold.
pub(crate) struct Sold {
    pub(crate) total: i64,
    pub(crate) shops: Counts,
    pub(crate) drinks: Counts,
}

impl Ledger {
    /// Does not connect before the first request.
    pub(crate) fn open(url: &str) -> Result<Self, DemoError> {
        let client = redis::Client::open(url).map_err(DemoError::StoreUrl)?;
        // One quick try per request: a user waits for it, and the next request tries again.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(2)));
        let connection =
            ConnectionManager::new_lazy_with_config(client, config).map_err(DemoError::StoreUrl)?;
        Ok(Self { connection })
    }

    fn connection(&self) -> ConnectionManager {
        self.connection.clone()
    }

    /// One coffee more; all three counters or none. Returns the coffees sold planet-wide.
    pub(crate) async fn sell(&self, drink: &str, shop: &str) -> RedisResult<i64> {
        let mut transaction = pipe();
        transaction.atomic();
        transaction.cmd("INCR").arg("coffee:sold");
        transaction.cmd("HINCRBY").arg("coffee:sold:shops").arg(shop).arg(1).ignore();
        transaction.cmd("HINCRBY").arg("coffee:sold:drinks").arg(drink).arg(1).ignore();
        let (total,) = transaction.query_async(&mut self.connection()).await?;
        Ok(total)
    }

    pub(crate) async fn sold(&self) -> RedisResult<Sold> {
        let mut transaction = pipe();
        transaction.atomic();
        transaction.cmd("GET").arg("coffee:sold");
        transaction.cmd("HGETALL").arg("coffee:sold:shops");
        transaction.cmd("HGETALL").arg("coffee:sold:drinks");
        let (total, shops, drinks): (Option<i64>, Counts, Counts) =
            transaction.query_async(&mut self.connection()).await?;
        Ok(Sold { total: total.unwrap_or(0), shops, drinks })
    }

    /// One like more. Returns the drink's likes.
    pub(crate) async fn like(&self, drink: &str) -> RedisResult<i64> {
        cmd("HINCRBY").arg("coffee:likes").arg(drink).arg(1).query_async(&mut self.connection()).await
    }

    pub(crate) async fn likes(&self) -> RedisResult<Counts> {
        cmd("HGETALL").arg("coffee:likes").query_async(&mut self.connection()).await
    }

    /// Adds an entry to the guest book, and lets the oldest go.
    pub(crate) async fn sign(&self, entry: &str) -> RedisResult<()> {
        let mut pipeline = pipe();
        pipeline.cmd("LPUSH").arg("coffee:guestbook").arg(entry).ignore();
        pipeline.cmd("LTRIM").arg("coffee:guestbook").arg(0).arg(GUESTBOOK_KEPT - 1).ignore();
        pipeline.query_async(&mut self.connection()).await
    }

    /// The latest entries of the guest book, newest first.
    pub(crate) async fn guestbook(&self) -> RedisResult<Vec<String>> {
        let mut range = cmd("LRANGE");
        range.arg("coffee:guestbook").arg(0).arg(GUESTBOOK_SHOWN - 1);
        range.query_async(&mut self.connection()).await
    }

    pub(crate) async fn cart(&self, id: &str) -> RedisResult<Counts> {
        cmd("HGETALL").arg(cart_key(id)).query_async(&mut self.connection()).await
    }

    /// Puts drinks into a cart. Returns what is in it.
    pub(crate) async fn fill_cart(&self, id: &str, drink: &str, quantity: u32) -> RedisResult<Counts> {
        let key = cart_key(id);
        let mut transaction = pipe();
        transaction.atomic();
        transaction.cmd("HINCRBY").arg(&key).arg(drink).arg(quantity).ignore();
        transaction.cmd("EXPIRE").arg(&key).arg(CART_KEPT_S).ignore();
        transaction.cmd("HGETALL").arg(&key);
        let (items,) = transaction.query_async(&mut self.connection()).await?;
        Ok(items)
    }

    pub(crate) async fn empty_cart(&self, id: &str) -> RedisResult<()> {
        cmd("DEL").arg(cart_key(id)).query_async(&mut self.connection()).await
    }
}

fn cart_key(id: &str) -> String {
    format!("coffee:cart:{id}")
}
