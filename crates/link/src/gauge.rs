//! What the kernel knows of a connection's path: `TCP_INFO` of Linux (`tcp(7)`, `include/uapi/linux/tcp.h`).
//!
//! # Safety
//! The one unsafe call is getsockopt. It gets a descriptor that is open as long as the [`Gauge`], a buffer that outlives
//! the call and its true length, and returns how much of the buffer it filled; older kernels fill less of it.
#![cfg_attr(target_os = "linux", allow(unsafe_code))]

use std::os::fd::OwnedFd;

/// The state of a connection's path as the kernel of this side measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathState {
    /// Round trip, smoothed (RFC 6298), in microseconds.
    pub rtt_us: u32,
    /// The least round trip of the last minutes, in microseconds: the path without queues.
    pub least_rtt_us: u32,
    /// What waits here to be sent for the first time, in bytes.
    pub unsent: u32,
    /// What the other side has lately received, in bytes per second.
    pub delivered_per_second: u64,
}

/// Reads the state of one connection's path.
#[derive(Debug)]
pub struct Gauge(OwnedFd);

impl Gauge {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The state now; `None` where the system does not tell, or before anything was sent. One system call.
    pub fn read(&self) -> Option<PathState> {
        let info = tcp_info(&self.0)?;
        let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let (rtt_us, least_rtt_us) = (word(RTT)?, word(MIN_RTT)?);
        // The kernel's value of a path that it has not measured.
        let measured = rtt_us > 0 && least_rtt_us < u32::MAX;
        let (unsent, delivered_per_second) = (word(NOTSENT_BYTES)?, long(DELIVERY_RATE)?);
        measured.then_some(PathState { rtt_us, least_rtt_us, unsent, delivered_per_second })
    }
}

/// Where the fields of `struct tcp_info` are. It only grows at its end.
const RTT: usize = 68;
const NOTSENT_BYTES: usize = 144;
const MIN_RTT: usize = 148;
const DELIVERY_RATE: usize = 160;
#[cfg(target_os = "linux")]
const END: usize = 168;

#[cfg(target_os = "linux")]
fn tcp_info(socket: &OwnedFd) -> Option<[u8; END]> {
    use std::os::fd::AsRawFd as _;
    let (mut info, mut length) = ([0; END], END as libc::socklen_t);
    // SAFETY: see above.
    let result = unsafe {
        let (socket, info) = (socket.as_raw_fd(), info.as_mut_ptr().cast());
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut length)
    };
    (result == 0 && length as usize == END).then_some(info)
}

#[cfg(not(target_os = "linux"))]
fn tcp_info(_: &OwnedFd) -> Option<[u8; DELIVERY_RATE + 8]> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_path_that_was_used_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        for _ in 0..10 {
            near.write_all(&[0; 10_000]).unwrap();
            far.read_exact(&mut [0; 10_000]).unwrap();
            far.write_all(&[0]).unwrap();
            near.read_exact(&mut [0]).unwrap();
        }
        let state = Gauge::new(near.into()).read().unwrap();
        assert!(state.least_rtt_us > 0 && state.least_rtt_us <= state.rtt_us, "{state:?}");
        assert!(state.rtt_us < 60_000_000 && state.delivered_per_second > 0, "{state:?}");
    }

    #[test]
    fn what_is_no_tcp_connection_has_no_path() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert_eq!(Gauge::new(near.into()).read(), None);
    }
}
