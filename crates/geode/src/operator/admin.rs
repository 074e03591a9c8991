//! Finding a geode to ask, and asking it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Uri};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::OperatorError;
use crate::ask::{AskError, ask, open};
use crate::dev::{DEFAULT_DATA, RUNNING_FILE};

/// A geode asks others for up to eleven seconds (dial, answer) before it answers for the planet.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a connection to an admin address may take; it is usually on this machine.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Which geode to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct AdminArgs {
    /// Admin address of any geode of the planet, such as http://127.0.0.1:7401. Without it: $GEODE_ADMIN, else the
    /// planet that `geode dev` runs from this directory.
    #[arg(long, value_name = "URL", env = "GEODE_ADMIN", hide_env_values = true)]
    admin: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A geode that answers.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
}

impl AdminArgs {
    /// The geode to ask: the one named, else the first of the planet on this machine that answers.
    ///
    /// # Errors
    /// Nobody is named, or nobody named answers.
    pub(crate) async fn find(&self) -> Result<Admin, OperatorError> {
        let urls = match &self.admin {
            Some(url) => vec![url.clone()],
            None => running_planet(Path::new(DEFAULT_DATA))?,
        };
        for url in &urls {
            let authority = authority(url)?;
            let connected = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(&authority)).await;
            if let Ok(Ok(stream)) = connected
                && let Ok(address) = stream.peer_addr()
            {
                return Ok(Admin { address });
            }
        }
        Err(OperatorError::Silent(urls.join(", ")))
    }
}

impl Admin {
    /// Asks for `path` and reads the answer as JSON.
    ///
    /// # Errors
    /// No answer, a refusal in words, or an answer of another shape.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, OperatorError> {
        let text = self.ask_text(path).await?;
        serde_json::from_str(&text).map_err(|error| self.garbled(path, error))
    }

    /// Orders `path` with a JSON body and reads the answer as JSON.
    ///
    /// # Errors
    /// No answer, a refusal in words, or an answer of another shape.
    pub(crate) async fn order<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, OperatorError> {
        let body = serde_json::to_string(body).map_err(|error| self.garbled(path, error))?;
        let text = self.exchange(Method::POST, path, Some(body)).await?;
        serde_json::from_str(&text).map_err(|error| self.garbled(path, error))
    }

    /// Asks for `path` and reads the answer as text.
    ///
    /// # Errors
    /// No answer, or a refusal in words.
    pub(crate) async fn ask_text(&self, path: &str) -> Result<String, OperatorError> {
        self.exchange(Method::GET, path, None).await
    }

    /// Asks for `path`, whose answer may be long and take its time, and returns its body once it begins.
    ///
    /// # Errors
    /// No answer, or a refusal in words.
    pub(crate) async fn stream(&self, path: &str) -> Result<hyper::body::Incoming, OperatorError> {
        let silent = || OperatorError::Silent(format!("http://{}", self.address));
        let response =
            tokio::time::timeout(PATIENCE, open(self.address, path)).await.map_err(|_| silent())?;
        let response = response.map_err(|_| silent())?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let body = response.into_body().collect().await.map_err(|error| self.garbled(path, error))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned();
        Err(OperatorError::Refused(text))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<String, OperatorError> {
        let asked = ask(self.address, method, path, body, PATIENCE).await;
        let (status, body) = asked.map_err(|error| match error {
            AskError::Connect(_) | AskError::Late(_) => {
                OperatorError::Silent(format!("http://{}", self.address))
            }
            AskError::Http(reason) => self.garbled(path, reason),
        })?;
        let text = String::from_utf8(body.into()).map_err(|error| self.garbled(path, error))?;
        if status.is_success() { Ok(text) } else { Err(OperatorError::Refused(text.trim_end().to_owned())) }
    }

    fn garbled(&self, path: &str, reason: impl std::fmt::Display) -> OperatorError {
        OperatorError::Garbled { url: format!("http://{}{path}", self.address), reason: reason.to_string() }
    }
}

/// `HOST:PORT` of an admin URL; a bare `HOST:PORT` will do.
fn authority(url: &str) -> Result<String, OperatorError> {
    let wrong = || OperatorError::Url(url.to_owned());
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
    let host = authority.host();
    if !plain || host.is_empty() || authority.as_str().contains('@') {
        return Err(wrong());
    }
    Ok(format!("{host}:{}", authority.port_u16().unwrap_or(80)))
}

/// The admin addresses of the planet that `geode dev` runs from this directory.
fn running_planet(directory: &Path) -> Result<Vec<String>, OperatorError> {
    #[derive(serde::Deserialize)]
    struct Running {
        regions: Vec<Region>,
    }
    #[derive(serde::Deserialize)]
    struct Region {
        admin: String,
    }
    let file: PathBuf = directory.join(RUNNING_FILE);
    let text = std::fs::read_to_string(&file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => OperatorError::NoAdmin(file.clone()),
        _ => OperatorError::Running { file: file.clone(), reason: error.to_string() },
    })?;
    let running: Running = serde_json::from_str(&text)
        .map_err(|error| OperatorError::Running { file: file.clone(), reason: error.to_string() })?;
    Ok(running.regions.into_iter().map(|region| region.admin).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_addresses_are_read_as_people_write_them() {
        for (url, expected) in [
            ("http://127.0.0.1:7401", "127.0.0.1:7401"),
            ("http://127.0.0.1:7401/", "127.0.0.1:7401"),
            ("127.0.0.11:8402", "127.0.0.11:8402"),
            ("localhost:7401", "localhost:7401"),
            ("http://[::1]:7401", "[::1]:7401"),
            ("http://geode.example", "geode.example:80"),
        ] {
            assert_eq!(authority(url).unwrap(), expected);
        }
        for url in [
            "",
            "https://127.0.0.1:7401",
            "http://",
            "http://a:1/v1",
            "http://me@a:1",
            "a b:1",
            "http://a:1?x",
        ] {
            assert!(authority(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn the_planet_of_this_directory_is_found_or_the_reason_told() {
        let directory = tempfile::tempdir().unwrap();
        let error = running_planet(directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("no geode to ask: give --admin URL or set GEODE_ADMIN"), "{error}");
        let file = directory.path().join(RUNNING_FILE);
        std::fs::write(&file, "{").unwrap();
        let error = running_planet(directory.path()).unwrap_err().to_string();
        assert!(error.contains("does not name a running planet"), "{error}");
        std::fs::write(
            &file,
            r#"{"door":"x","regions":[{"name":"a","admin":"http://1:2"},{"admin":"http://3:4"}]}"#,
        )
        .unwrap();
        assert_eq!(running_planet(directory.path()).unwrap(), ["http://1:2", "http://3:4"]);
    }
}
