//! The commands, a file for each family, and the table that names them.

mod counter;
mod expiry;
mod hash;
mod key;
mod list;
pub(crate) mod server;
mod set;
mod string;
pub(crate) mod table;
