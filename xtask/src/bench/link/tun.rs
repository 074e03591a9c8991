//! A TUN interface: what the kernel sends into it is read here, what is written here it receives.
//!
//! # Safety
//! The one unsafe call is the ioctl TUNSETIFF. It reads and writes a `struct ifreq`, which is 40 bytes on every 64-bit
//! Linux; [`Request`] has that size and layout (`netdevice(7)`), is initialised, and outlives the call.
#![allow(unsafe_code)]

use std::fs::File;

use rustix::ioctl::{Setter, ioctl};

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
/// Packets of IP without a header before them.
const IFF_TUN_NO_PI: u16 = 0x1001;

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == 40);

/// Makes an interface on the network of the calling thread; it goes with the file.
pub(super) fn open(name: &str) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TUN_NO_PI, rest: [0; 22] };
    let length = name.len().min(request.name.len() - 1);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: see above.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request))? };
    Ok(file)
}
