//! The HTTP front door of a geode.
//!
//! Every geode has one, and all are the same: a client that reaches any of them is served. A door gives a request to an
//! instance of its own geode's service, and when that cannot serve, brings it to the door of another geode: one hop at
//! most. It streams bodies both ways, passes WebSockets, keeps a client's session across regions, and takes from the
//! internet only what can be read in one way.
//!
//! A connection is handed to [`Door::serve_client`] or [`Door::serve_peer`]; what the door needs of its geode stands in
//! the traits of [`Seams`]. Inside, a request passes these places: `screen` (is this one request, beyond doubt?),
//! [`serve`] (limits of the connection), [`Door`] (what is it, where may it go, what is said on the answer),
//! [`Forwarder`] (the first target that answers, and the body along).
//!
//! The last two are of use without a door. Whoever brings clients to an ordered list of upstreams accepts connections
//! with [`serve`] and calls [`Forwarder::forward`]`(Outgoing, targets)`: [`Upstreams`] says what a target is, and the
//! forwarder retries, streams, and pools connections by the same rules as the door.
//!
//! This crate must not know how regions are ordered (steering does), how instances are run (the host does), how peers
//! are authenticated (links do), or what a session's vector means (the store does).

mod answer;
mod budget;
mod connection;
mod door;
mod forward;
mod headers;
mod itinerary;
mod metrics;
mod replay;
mod screen;
mod seams;
mod session;
mod trace;
mod tunnel;
mod upstream;
mod upstream_stream;

pub use answer::DoorBody;
pub use budget::{BudgetSettings, RetryBudget};
pub use connection::{Arrival, ConnectionLimits, Socket, serve};
pub use door::{Door, DoorSettings, NoRandomness, Seams};
pub use forward::{AnswerBody, Failure, ForwardSettings, Forwarded, Forwarder, Outgoing, Upstreams};
pub use headers::{EXPLAIN, REASON, REGION, SESSION, STALE};
pub use itinerary::{Geode, Place, PlaceName};
pub use metrics::{ConnectionMetrics, Count, DoorMetrics, ForwardMetrics};
pub use screen::Refusal;
pub use seams::{
    Boxed, ClientHints, Coverage, Duplex, Lease, Origin, PeerStream, Peers, RouteEntry, Router, Service,
    Sessions,
};
pub use session::{MAX_TOKEN_BYTES, SessionKey};
pub use upstream_stream::UpstreamStream;
