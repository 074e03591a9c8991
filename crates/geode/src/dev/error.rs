//! Why a planet on this machine did not start, or ended: one line each, with what to do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;

use geode_host::HostError;
use geode_planet::{RegionName, UnknownPlace};

use super::plan::MAX_REGIONS;
use crate::init::FilesError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevError {
    #[error("--regions: {0}")]
    UnknownRegion(UnknownPlace),
    #[error("--regions: {0}")]
    RegionName(String),
    #[error("--regions: {0} stands twice; name each region once")]
    RegionTwice(RegionName),
    #[error("--regions: {0} regions are asked for; give 1 to {MAX_REGIONS}, separated by commas")]
    RegionCount(usize),
    #[error(
        "the command holds {0:?}: empty words and control characters cannot stand in planet.toml; put the command \
             into a script"
    )]
    Command(String),
    #[error("{0}")]
    Service(#[from] HostError),
    #[error("{address} is in use ({what} would listen there), perhaps by another `geode dev`: end that \
             (`ss -ltnp 'sport = :{port}'` names it) or choose other ports with --base-port", port = .address.port())]
    PortInUse { address: SocketAddr, what: String },
    #[error("cannot listen on {address} ({what}): {source}; choose other ports with --base-port")]
    Listen { address: SocketAddr, what: String, source: std::io::Error },
    #[error("{} is in use by another `geode dev`{owner}: end that one, or choose another directory with --data",
            .directory.display())]
    DirectoryInUse { directory: PathBuf, owner: String },
    #[error("{} holds another planet ({difference}): start it with the same options as before, choose another \
             directory with --data, change its planet.toml, or delete it with its data", .directory.display())]
    OtherPlanet { directory: PathBuf, difference: String },
    #[error("{} cannot be read as a planet; correct it, or delete it to have it written anew:\n{details}",
            .file.display())]
    PlanetFile { file: PathBuf, details: String },
    #[error("{0}")]
    Bundles(#[from] FilesError),
    #[error("{doing} {}: {source}", .path.display())]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{doing}: {source}")]
    System { doing: &'static str, source: std::io::Error },
    #[error("{region} ended before it was ready ({status}); its last words are above, its data is in {}",
            .data.display())]
    NeverReady { region: RegionName, status: ExitStatus, data: PathBuf },
}

impl DevError {
    /// 2 when what was asked for has to change, also when it is a geode that says so; 1 when the planet failed.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::NeverReady { status, .. } if status.code() == Some(2) => 2,
            Self::NeverReady { .. } | Self::System { .. } | Self::File { .. } => 1,
            _ => 2,
        }
    }
}
