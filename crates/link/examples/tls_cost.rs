//! What TLS costs: processor time per GiB that one geode sends another over loopback, both ends together, with and without.
//! Run it with `cargo run --release -p geode-link --example tls_cost`.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use geode_link::{Authority, Credentials, Dialer, Identity, Listener, Purpose};
use geode_planet::{HostPort, RegionName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the engine reads from a socket at once.
const CHUNK: usize = 64 << 10;
const GIB: usize = 1 << 30;

/// What this process has run, in nanoseconds; it has one thread.
fn cpu_ns() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Brings a GiB from one end to the other, and says how many seconds of processor that took.
async fn cost(
    mut from: impl AsyncWrite + Unpin,
    mut to: impl AsyncRead + Unpin,
) -> Result<f64, Box<dyn Error>> {
    let before = cpu_ns()?;
    let chunk = vec![7; CHUNK];
    let send = async {
        for _ in 0..GIB / CHUNK {
            from.write_all(&chunk).await?;
        }
        from.flush().await
    };
    let receive = async {
        let (mut buffer, mut left) = (vec![0; CHUNK], GIB);
        while left > 0 {
            left -= to.read(&mut buffer).await?;
        }
        Ok(())
    };
    tokio::try_join!(send, receive)?;
    Ok((cpu_ns()? - before) as f64 / 1e9)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (us, eu) = (RegionName::new("us-east-1")?, RegionName::new("eu-west-1")?);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let plain = TcpListener::bind(loopback).await?;
    let (from, to) = tokio::join!(TcpStream::connect(plain.local_addr()?), plain.accept());
    let without = cost(from?, to?.0).await?;

    let authority = Authority::new("acme")?;
    let credentials = |region: &RegionName| -> Result<Arc<Credentials>, Box<dyn Error>> {
        let identity = Identity { planet: "acme".to_owned(), region: region.clone() };
        Ok(Arc::new(Credentials::new(identity, &authority.issue(region)?)?))
    };
    let mut listener = Listener::bind(loopback, credentials(&us)?, vec![eu.clone()]).await?;
    let address = listener.local_addr()?;
    let peer = HostPort { host: address.ip().to_string(), port: address.port() };
    let dialer = Dialer::new(credentials(&eu)?, None, BTreeMap::from([(us.clone(), peer)]));
    let (from, call) = tokio::join!(dialer.dial(&us, Purpose::Replication), listener.accept());
    let with = cost(from?, call.stream).await?;
    println!("plain TCP {without:.2} s/GiB, mutual TLS {with:.2} s/GiB, both ends together");
    Ok(())
}
