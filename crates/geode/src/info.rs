//! What the process adds to the answer of INFO: lines under the names that operators and client libraries look for.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use geode_resp::RespMetrics;
use geode_store::InfoLines;

/// Where the numbers come from.
pub(crate) struct Info {
    pub(crate) started: Instant,
    pub(crate) tcp_port: u16,
    pub(crate) max_clients: usize,
    pub(crate) metrics: Arc<RespMetrics>,
}

impl Info {
    pub(crate) fn lines(self) -> InfoLines {
        Box::new(move |section, text| {
            // Writing to a String cannot fail.
            let _ = self.write(section, text);
        })
    }

    fn write(&self, section: &str, text: &mut String) -> fmt::Result {
        let metrics = &self.metrics;
        let mut line = |name: &str, value: u64| write!(text, "{name}:{value}\r\n");
        match section {
            "server" => {
                let uptime_s = self.started.elapsed().as_secs();
                line("process_id", std::process::id().into())?;
                line("tcp_port", self.tcp_port.into())?;
                line("uptime_in_seconds", uptime_s)?;
                line("uptime_in_days", uptime_s / 86_400)
            }
            "clients" => {
                line("connected_clients", metrics.connections_open.get())?;
                line("maxclients", self.max_clients as u64)
            }
            "persistence" => {
                // Commands are answered once the log is read, and no longer once it cannot be written.
                line("loading", 0)?;
                line("aof_enabled", 1)?;
                line("aof_rewrite_in_progress", 0)?;
                line("rdb_bgsave_in_progress", 0)?;
                text.push_str("aof_last_write_status:ok\r\n");
                Ok(())
            }
            "stats" => {
                line("total_connections_received", metrics.connections_accepted.get())?;
                line("total_commands_processed", metrics.commands.get())?;
                line("total_net_input_bytes", metrics.bytes_in.get())?;
                line("total_net_output_bytes", metrics.bytes_out.get())?;
                line("rejected_connections", metrics.connections_refused.get())?;
                line("total_error_replies", metrics.errors.get())
            }
            _ => Ok(()),
        }
    }
}
