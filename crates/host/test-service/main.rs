//! A service for the tests of the host: a real process that answers, floods, or will not end, as it is told.
//!
//! - `serve [OPTION…]` answers HTTP on 127.0.0.1:$PORT.
//! - `supervise PARENT -- COMMAND…` becomes a service that dies with its parent.
//! - `host DIRECTORY` is a small geode: it hosts `serve` through `supervise` and prints the address.

use std::error::Error;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geode_host::{Host, HostSettings, RunSettings, ServiceSource, launch};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match words.as_slice() {
        ["serve", options @ ..] => serve(options),
        ["supervise", parent, "--", ..] => {
            Err(launch::become_service(parent.parse()?, &arguments[3..]).into())
        }
        ["host", directory] => host(Path::new(directory)),
        _ => Err("usage: serve [OPTION…] | supervise PARENT -- COMMAND… | host DIRECTORY".into()),
    }
}

/// Options: `--ignore-term`, `--flood` (numbered lines without end), `--child` (starts another `serve`).
fn serve(options: &[&str]) -> Outcome {
    let written = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for option in options {
        match *option {
            "--ignore-term" => {
                let _entered = runtime.enter();
                // From now on the signal is caught, and nobody looks at it.
                let _caught = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            }
            "--flood" => {}
            "--child" => {
                std::process::Command::new(std::env::current_exe()?).arg("serve").env("PORT", "0").spawn()?;
            }
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let port: u16 = std::env::var("PORT")?.parse()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("listening on {}", listener.local_addr()?);
    if options.contains(&"--flood") {
        let written = Arc::clone(&written);
        std::thread::spawn(move || flood(&written));
    }
    for stream in listener.incoming().flatten() {
        let written = Arc::clone(&written);
        // A client that goes away is the client's affair.
        std::thread::spawn(move || drop(answer(stream, port, &written)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, port: u16, written: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::from("-");
    while !header.trim().is_empty() {
        header.clear();
        reader.read_line(&mut header)?;
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, body) = match path.strip_prefix("/env/") {
        Some(name) => ("200 OK", std::env::var(name).unwrap_or_default()),
        None if path == "/hold" => {
            stream.write_all(b"holding\n")?;
            return stream.read_to_end(&mut Vec::new()).map(drop);
        }
        None if path == "/directory" => ("200 OK", std::env::current_dir()?.display().to_string()),
        None if path == "/written" => ("200 OK", written.load(Ordering::SeqCst).to_string()),
        None if Path::new(&format!("sick.{port}")).exists() => ("503 Service Unavailable", String::new()),
        None => ("200 OK", String::new()),
    };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn flood(written: &AtomicUsize) {
    let mut output = std::io::stdout().lock();
    for number in 0_u64.. {
        let line = format!("flood {number}\n");
        if output.write_all(line.as_bytes()).is_err() {
            return;
        }
        written.fetch_add(line.len(), Ordering::SeqCst);
    }
}

fn host(directory: &Path) -> Outcome {
    let program = std::env::current_exe()?.display().to_string();
    let mut run = RunSettings::new(
        vec![program.clone(), "serve".to_owned()],
        Ipv4Addr::LOCALHOST.into(),
        Arc::new(|line| eprintln!("{line}")),
    );
    run.launcher = vec![program, "supervise".to_owned()];
    run.working_directory = directory.to_owned();
    let settings = HostSettings {
        region: "test".to_owned(),
        service: ServiceSource::Run(run),
        health: geode_host::HealthSettings::default(),
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let host = Host::start(settings)?;
        host.until(|status| status.healthy() == 1).await;
        let address: Option<SocketAddr> = host.acquire().map(|lease| lease.addr());
        println!("{}", address.ok_or("no healthy instance")?);
        std::future::pending::<Outcome>().await
    })
}
