//! The engine: what the data thread owns.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use geode_crdt::frame::Checkpoint;
use geode_crdt::{FrameBuilder, HybridTime};
use geode_store::{Engine, Need, Position, Ticket};
use tokio::net::TcpStream;
use tokio::runtime;

use crate::config::Config;
use crate::error::OpenError;
use crate::handle::EmbeddedHandle;
use crate::table::Table;

/// Opens a connection for replication to the named region.
pub type Dial =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

/// Wakes the data thread so that it calls [`Engine::turn`] soon.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The embedded engine. One thread owns it.
#[derive(Debug)]
pub struct Embedded {}

impl Embedded {
    /// Opens the data directory and replays its log. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(config: Config) -> Result<(Self, EmbeddedHandle), OpenError> {
        unimplemented!("{config:?}")
    }

    /// Begins to talk to the other regions: of each pair, the one whose name comes first dials. `wake` is called from
    /// other threads whenever there is work for [`Engine::turn`]. A planet of one region needs the wake only.
    pub fn start(&mut self, runtime: runtime::Handle, dial: Dial, wake: Wake) {
        let _ = (runtime, dial, wake);
        unimplemented!()
    }

    /// Flushes, forces the log onto the disk and leaves the mark of a clean stop, like [`EmbeddedHandle::stop`].
    ///
    /// # Errors
    /// What the disk said; the mark is then missing.
    pub fn stop(&mut self) -> io::Result<()> {
        unimplemented!()
    }
}

impl Engine for Embedded {
    type View = Table;

    fn set_wall(&mut self, wall: HybridTime) {
        unimplemented!("{wall}")
    }

    fn now(&self) -> HybridTime {
        unimplemented!()
    }

    fn begin(&mut self) -> HybridTime {
        unimplemented!()
    }

    fn parts(&mut self) -> (&Table, &mut FrameBuilder) {
        unimplemented!()
    }

    fn view(&self) -> &Table {
        unimplemented!()
    }

    fn apply(&mut self, from: Checkpoint) {
        unimplemented!("{from:?}")
    }

    fn end(&mut self) -> Option<u64> {
        unimplemented!()
    }

    fn fetch(&mut self, _need: &Need) -> Ticket {
        unimplemented!()
    }

    fn completed(&mut self, _tickets: &mut Vec<Ticket>) {}

    fn flush(&mut self) -> io::Result<Position> {
        unimplemented!()
    }

    fn durable(&self) -> Position {
        unimplemented!()
    }

    fn last_sequence(&self) -> u64 {
        unimplemented!()
    }

    fn acknowledged(&self, sequence: u64) -> usize {
        unimplemented!("{sequence}")
    }

    fn regions(&self) -> usize {
        unimplemented!()
    }

    fn turn(&mut self) -> bool {
        unimplemented!()
    }
}
