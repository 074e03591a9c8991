//! How one geode calls another.
//!
//! A geode has one TCP port for its peers, whatever they want of it. A call opens with a *preface*: which planet the
//! caller belongs to, who calls whom, for what [`Purpose`], in which protocol versions. The acceptor answers in one
//! round trip with the version both speak, or with a refusal in words that both sides can log. After that the bytes
//! belong to whoever asked for the connection; each purpose has connections of its own, so that a bulk transfer never
//! delays a heartbeat.
//!
//! Below the preface lies mutual TLS 1.3. Each region has a certificate of the planet's own authority ([`Authority`]),
//! which comes with its key in one file ([`Bundle`]) and names planet and region. A caller is the region that its
//! certificate names, whatever its preface claims.
//!
//! This crate exists so that replication, hops, gossip and questions share one answer to "who is this?". It must not
//! know what is said on a connection.

mod authority;
mod bundle;
mod credentials;
mod dialer;
mod failure;
mod gauge;
mod listener;
mod peers;
mod preface;
mod stream;
mod trust;

pub use authority::{Authority, AuthorityError, BUNDLE_DAYS, utc_day};
pub use bundle::{Bundle, BundleError};
pub use credentials::Credentials;
pub use dialer::{Dialer, LinkError};
pub use gauge::{Gauge, PathState};
pub use listener::{Call, Listener};
pub use peers::{Peer, Peers};
pub use preface::{Identity, Purpose};
pub use stream::Stream;
