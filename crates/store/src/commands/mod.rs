//! The commands, a file for each family, and the table that names them.

mod counter;
mod expiry;
mod hash;
pub(crate) mod key;
mod list;
pub(crate) mod server;
mod set;
mod string;
pub(crate) mod table;
