//! Everything that `geode dev` itself listens on, bound before anything is written or started.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

use super::DevError;
use super::plan::Plan;

/// Calls that may wait in the kernel: a call too many is tried again by its caller only after a second. Linux caps it at
/// net.core.somaxconn, 4096 by default.
const BACKLOG: i32 = 4096;

/// The sockets of one planet.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The address that stands for the internet.
    pub(super) internet: TcpListener,
    /// The address of `geode chaos`.
    pub(super) control: TcpListener,
    /// The relay's address of each region, in the plan's order.
    pub(super) links: Vec<TcpListener>,
}

impl Sockets {
    /// Binds them, and makes sure that the geodes' own addresses are free too.
    ///
    /// # Errors
    /// The first address that cannot be had.
    pub(super) fn bind(plan: &Plan) -> Result<Self, DevError> {
        let internet = bind(plan.internet, "the internet address")?;
        let control = bind(plan.control, "the control address")?;
        let mut links = Vec::new();
        for region in &plan.regions {
            for address in region.bound_by_geode() {
                // Only to say early and clearly that it is taken; the geode binds it again.
                bind(address, region.name.as_str())?;
            }
            links.push(bind(region.link(), "the relay between regions")?);
        }
        Ok(Self { internet, control, links })
    }
}

fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, DevError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => DevError::PortInUse { address, what: what.to_owned() },
        _ => DevError::Listen { address, what: what.to_owned(), source },
    };
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dev::plan::Addresses;

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let names = ["tokyo".to_owned()];
        let plan = Plan::new(&names, port, None, PathBuf::from("/x"), Addresses::PerRegion).unwrap();
        let error = Sockets::bind(&plan).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            format!(
                "127.0.0.1:{port} is in use (the internet address would listen there), perhaps by another `geode dev`: \
                 end that (`ss -ltnp 'sport = :{port}'` names it) or choose other ports with --base-port"
            )
        );
    }
}
